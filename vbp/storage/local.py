"""Files of a local or mounted disk: streamed listings, and writes that are whole or absent."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from vbp.errors import StorageError
from vbp.storage.retry import attempt
from vbp.storage.store import File

T = TypeVar("T")

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStore:
    """Files by absolute path."""

    def walk(self, root: str) -> Iterator[File]:
        """Files below ``root`` in byte order of their relative path, linked folders included.

        A link to a folder that it lies in is not followed. Only regular files are listed; a broken link is
        listed without a size, so that reading it tells the error. Temporary names of writes are left out.

        Raises:
            FileNotFoundError: there is no ``root``.
            StorageError: a folder cannot be listed; named in the message.
        """
        top = os.fsencode(root)
        # The folders from root down to here, on a stack of our own: a tree may be deeper than Python's.
        trail = [_enter(top, b"")]
        while trail:
            name = next(trail[-1].names, None)
            if name is None:
                trail.pop()
                continue
            path = trail[-1].path + name
            if name.endswith(b"/"):
                entered = _enter(top, path)
                if entered.identity not in [folder.identity for folder in trail]:
                    trail.append(entered)
                continue
            file = _file(top, path)
            if file is not None:
                yield file

    def first(self, root: str) -> File | None:
        """The first file below ``root``; errors as for ``walk``."""
        return next(self.walk(root), None)

    def size(self, path: str) -> int | None:
        """Bytes in the file; None where there is none, or a folder."""
        try:
            info = attempt(lambda: os.stat(path), f"look at {display(path)}")
        except FileNotFoundError:
            return None
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes from ``start`` up to ``end``."""

        def read() -> bytes:
            with open(path, "rb") as file:
                file.seek(start or 0)
                return file.read() if end is None else file.read(end - (start or 0))

        return attempt(read, f"read {display(path)}")

    def write(self, path: str, data: bytes) -> None:
        """Replace the file; its folders are made. After a crash, the old file is there or the new one."""

        def write() -> None:
            temporary = _write_temporary(path, data)
            with _removed_on_failure(temporary):
                os.replace(temporary, path)

        _attempt_write(write, path)

    def create(self, path: str, data: bytes) -> bool:
        """Write the file unless there is one; of several processes exactly one gets True."""

        def create() -> bool:
            temporary = _write_temporary(path, data)
            try:
                return _link(temporary, path, data)
            finally:
                os.unlink(temporary)

        return _attempt_write(create, path)

    def delete(self, path: str) -> None:
        """Remove the file; nothing happens where there is none."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

        _attempt_write(delete, path)


def display(path: str) -> str:
    """The path as valid UTF-8: bytes that are none are percent-escaped."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in path)


def temporaries(root: str) -> Iterator[str]:
    """Temporary names of writes below ``root``, of those that go on and those that were cut off."""
    for folder, _, names in os.walk(os.fsencode(root)):
        for name in filter(_is_temporary, names):
            yield os.fsdecode(os.path.relpath(os.path.join(folder, name), os.fsencode(root)))


class _Entered(NamedTuple):
    path: bytes
    """Relative to the root, ``/`` at its end."""
    identity: tuple[int, int]
    """Device and inode."""
    names: Iterator[bytes]
    """Yet to visit, folders with a ``/`` behind, so that their order is that of whole paths."""


def _enter(top: bytes, path: bytes) -> _Entered:
    folder = os.path.join(top, path)
    try:
        info = os.stat(folder)
        with os.scandir(folder) as entries:
            names = sorted(entry.name + b"/" if _is_folder(entry) else entry.name for entry in entries)
    except OSError as error:
        message = f"cannot list the folder {display(os.fsdecode(folder)).rstrip('/')}: {error.strerror}"
        missing = isinstance(error, FileNotFoundError) and not path
        raise (FileNotFoundError if missing else StorageError)(message) from error
    return _Entered(path, (info.st_dev, info.st_ino), iter(names))


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file(top: bytes, path: bytes) -> File | None:
    if _is_temporary(os.path.basename(path)):
        return None
    try:
        info = os.stat(os.path.join(top, path))
    except OSError:
        return File(os.fsdecode(path), None, None)
    return File(os.fsdecode(path), info.st_size, str(info.st_mtime_ns)) if stat.S_ISREG(info.st_mode) else None


def _is_temporary(name: bytes) -> bool:
    return name.startswith(b".vbp-") and name.endswith(b".tmp")


def _attempt_write(operation: Callable[[], T], path: str) -> T:
    try:
        return attempt(operation, f"write {display(path)}")
    except OSError as error:
        raise StorageError(str(error)) from error


def _write_temporary(path: str, data: bytes) -> str:
    """Put the data on disk under a new name in the same folder, which is made where it is missing.

    The name owes nothing to that of the file, which may be as long as the disk allows.
    """
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".vbp-{secrets.token_hex(8)}.tmp")
    try:
        descriptor = _open_new(temporary)
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)
        descriptor = _open_new(temporary)
    with _removed_on_failure(temporary):
        _fill(descriptor, data)
    return temporary


def _open_new(path: str) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)


def _fill(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


@contextlib.contextmanager
def _removed_on_failure(path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _link(temporary: str, path: str, data: bytes) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _create_in_place(path, data)
    return True


def _create_in_place(path: str, data: bytes) -> bool:
    """For disks without hard links: still exactly one winner, but readers may see a part of the data."""
    try:
        descriptor = _open_new(path)
    except FileExistsError:
        return False
    with _removed_on_failure(path):
        _fill(descriptor, data)
    return True
