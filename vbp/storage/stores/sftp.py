"""Files of an SFTP server by paramiko, with atomic writes as on a local disk.

fsspec's SFTP file system sends the requests of all threads over one channel, where paramiko mixes up the answers.
It also writes in place and trusts any host.
"""

import contextlib
import errno
import posixpath
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import groupby
from threading import Semaphore
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from vbp.errors import StorageError, UsageError
from vbp.storage.stores.options import options_for, protocol_of
from vbp.storage.stores.retry import Kind, Refusal, attempt, reason
from vbp.storage.stores.store import File, refuse_larger
from vbp.storage.stores.walk import Level, Piece, walk

T = TypeVar("T")

CONNECTIONS = 8
"""The most connections of one process at a time; OpenSSH begins to refuse new ones at ten."""
SECONDS = 15.0
"""Time limit in seconds for an answer, before a connection is given up."""


class SftpStore:
    """Files by absolute path on the server."""

    def __init__(self, url: str, connect: Callable[[], "Connection"]):
        """Nothing is connected yet.

        Args:
            url: URL of the server, for messages.
            connect: opens a connection.
        """
        self._url, self._connect = url, connect
        self._slots, self._idle = Semaphore(CONNECTIONS), list[Connection]()

    def walk(self, root: str) -> Iterator[File]:
        """Files below ``root`` in byte order, linked folders included; temporary files of writes are left out."""
        yield from walk(self._enter(root, ""))

    def first(self, root: str) -> File | None:
        """The first file below ``root``."""
        return next(self.walk(root), None)

    def size(self, path: str) -> int | None:
        """Bytes in the file; None if it does not exist or is a folder."""
        try:
            info = self._attempt(lambda ftp: ftp.stat(path), "look at", path)
        except FileNotFoundError:
            return None
        return int(info.st_size) if stat.S_ISREG(info.st_mode) else None

    def read(self, path: str, start: int | None = None, end: int | None = None, *, limit: int | None = None) -> bytes:
        """The bytes from ``start`` up to ``end``."""

        def read(ftp: Any) -> bytes:
            with ftp.open(path, "rb") as file:
                first, size = start or 0, file.stat().st_size
                refuse_larger(path, size, limit)
                count = (size if end is None else min(end, size)) - first
                return b"".join(file.readv([(first, count)])) if count > 0 else b""

        return self._attempt(read, "read", path)

    def write(self, path: str, data: bytes) -> None:
        """Replace the file atomically, and make its folders."""

        def write(ftp: Any) -> None:
            with _temporary(ftp, path, data) as temporary:
                ftp.posix_rename(temporary, path)

        self._attempt_change(write, "write", path)

    def create(self, path: str, data: bytes) -> bool:
        """Create the file unless it exists; True also if only the answer was lost, as ``created`` finds out."""

        def create(ftp: Any) -> None:
            with _temporary(ftp, path, data) as temporary:
                try:
                    ftp.rename(temporary, path)  # never replaces a file: OpenSSH makes a hard link
                except OSError as error:
                    if _is_there(ftp, path):
                        raise FileExistsError(errno.EEXIST, "it exists") from error
                    raise

        try:
            self._attempt_change(create, "create", path)
        except FileExistsError:
            try:
                return self.read(path) == data
            except FileNotFoundError:  # deleted in between
                return False
        return True

    def delete(self, path: str) -> None:
        """Remove the file; nothing happens if it does not exist."""

        def delete(ftp: Any) -> None:
            with contextlib.suppress(FileNotFoundError):
                ftp.remove(path)

        self._attempt_change(delete, "delete", path)

    def _enter(self, top: str, inner: str) -> Level:
        """List a folder; ``inner`` is its path relative to ``top``, and ends with ``/``."""
        folder = posixpath.join(top, inner)

        def look(ftp: Any) -> tuple[str, dict[str, Any]]:
            return ftp.normalize(folder), dict(_entry(ftp, folder, info) for info in ftp.listdir_attr(folder))

        identity, entries = self._attempt(look, "list", folder.rstrip("/"))
        pieces: list[Piece] = []
        for is_folder, names in groupby(sorted(entries), lambda name: name.endswith("/")):
            if is_folder:
                pieces += [partial(self._enter, top, inner + name) for name in names]
            else:
                files = [_file(inner + name, entries[name]) for name in names if not _is_temporary(name)]
                pieces.append(partial(list, [file for file in files if file is not None]))
        return Level(identity, pieces)

    def _attempt_change(self, operation: Callable[[Any], T], verb: str, path: str) -> T:
        try:
            return self._attempt(operation, verb, path)
        except FileExistsError:
            raise
        except OSError as error:
            raise StorageError(str(error)) from error

    def _attempt(self, operation: Callable[[Any], T], verb: str, path: str) -> T:
        return attempt(lambda: self._once(operation), f"{verb} {self._url}{path}")

    def _once(self, operation: Callable[[Any], T]) -> T:
        """Run ``operation`` with a connection of its own; a connection that may be broken is not used again."""
        with self._slots, _translated():
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            try:
                done = operation(connection.ftp)
            except (FileNotFoundError, FileExistsError, PermissionError):
                self._idle.append(connection)
                raise
            except BaseException:
                connection.client.close()
                raise
            self._idle.append(connection)
            return done


class Connection(NamedTuple):
    """A connection; it keeps the client, since some versions of paramiko close with a deleted client."""

    client: Any
    """``paramiko.SSHClient``."""
    ftp: Any
    """``paramiko.SFTPClient``."""


def open_sftp(url: str, options: Mapping[str, Any] | None) -> tuple[SftpStore, str] | None:
    """The store of a server's URL and its root; None for other protocols.

    User, keys and known hosts are those of ``ssh``: the URL's user, ``~/.ssh/id_*`` or the agent, and
    ``~/.ssh/known_hosts``. Options are those of ``paramiko.SSHClient.connect``.

    Raises:
        UsageError: paramiko is not installed, or the URL is wrong.
    """
    if "::" in url or protocol_of(url) not in ("sftp", "ssh"):
        return None
    try:
        import paramiko
    except ImportError as error:
        raise UsageError("sftp:// needs a package that is not installed: pip install 'visualbackprop[sftp]'") from error
    try:
        parts = urlsplit(url)
        address = {"hostname": parts.hostname, "port": parts.port or 22, "username": parts.username}
    except ValueError as error:
        raise UsageError(f"cannot open {url}: {reason(error)}") from error
    limits = {name: SECONDS for name in ("timeout", "banner_timeout", "auth_timeout", "channel_timeout")}
    settings = {**address, **limits, **options_for(url, options)}

    def connect() -> Connection:
        client = paramiko.SSHClient()
        client.load_system_host_keys()  # no other host is trusted
        try:
            client.connect(**settings)
            ftp = client.open_sftp()
        except BaseException:
            client.close()
            raise
        ftp.get_channel().settimeout(SECONDS)
        return Connection(client, ftp)

    return SftpStore(url.rstrip("/"), connect), "/"


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn paramiko's errors into those of ``vbp.storage.stores.store``."""
    from paramiko import AuthenticationException, BadHostKeyException, SSHException

    try:
        yield
    except AuthenticationException as error:
        raise Refusal(Kind.DENIED, f"the server refuses user and keys ({error})") from error
    except BadHostKeyException as error:
        raise Refusal(Kind.DENIED, "the server has another key than ~/.ssh/known_hosts says") from error
    except (SSHException, EOFError) as error:
        if "No authentication methods" in str(error):
            raise Refusal(Kind.DENIED, "no key found in ~/.ssh nor in ssh-agent") from error
        if "not found in known_hosts" in str(error):
            raise Refusal(Kind.DENIED, "the server is not in ~/.ssh/known_hosts; see ssh-keyscan") from error
        raise Refusal(Kind.TRANSIENT, f"the connection failed ({error})") from error
    except OSError as error:
        if error.errno is None and "closed" in str(error):
            raise Refusal(Kind.TRANSIENT, "the connection failed") from error
        raise


@contextlib.contextmanager
def _temporary(ftp: Any, path: str, data: bytes) -> Iterator[str]:
    """Write the data to a new name in the file's folder, which is made if it is missing; removed after a failure."""
    folder = posixpath.dirname(path)
    temporary = posixpath.join(folder, f".vbp-{secrets.token_hex(8)}.tmp")
    try:
        file = ftp.open(temporary, "wbx")
    except FileNotFoundError:
        _make_folder(ftp, folder)
        file = ftp.open(temporary, "wbx")
    try:
        with file:
            file.set_pipelined(True)
            file.write(data)
        if ftp.stat(temporary).st_size != len(data):  # paramiko does not check all answers of pipelined writes
            raise OSError(errno.EIO, "the server has not kept all bytes")
        yield temporary
    except BaseException:
        with contextlib.suppress(Exception):
            ftp.remove(temporary)
        raise


def _is_there(ftp: Any, path: str) -> bool:
    try:
        ftp.stat(path)
    except FileNotFoundError:
        return False
    return True


def _make_folder(ftp: Any, folder: str) -> None:
    try:
        ftp.mkdir(folder)
    except FileNotFoundError:
        _make_folder(ftp, posixpath.dirname(folder))
        _make_folder(ftp, folder)
    except OSError:
        if not stat.S_ISDIR(ftp.stat(folder).st_mode):  # another process has made it
            raise


def _entry(ftp: Any, folder: str, info: Any) -> tuple[str, Any]:
    """Name and properties of an entry; with a / after names of folders their order is that of whole paths."""
    if stat.S_ISLNK(info.st_mode):
        try:
            found = ftp.stat(posixpath.join(folder, info.filename))
        except OSError:  # a broken link: reading it raises the error
            return info.filename, None
        return (f"{info.filename}/" if stat.S_ISDIR(found.st_mode) else info.filename), found
    return (f"{info.filename}/" if stat.S_ISDIR(info.st_mode) else info.filename), info


def _file(path: str, info: Any) -> File | None:
    if info is None:
        return File(path, None, None)
    return File(path, int(info.st_size), str(info.st_mtime)) if stat.S_ISREG(info.st_mode) else None


def _is_temporary(name: str) -> bool:
    return name.startswith(".vbp-") and name.endswith(".tmp")
