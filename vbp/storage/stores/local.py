"""Files of a local or mounted disk: streamed listings and atomic writes."""

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from typing import TypeVar

from vbp.errors import StorageError
from vbp.storage.leftout import is_system
from vbp.storage.stores.branches import LOOSE, Branch, branches_in
from vbp.storage.stores.retry import attempt
from vbp.storage.stores.store import File, refuse_larger
from vbp.storage.stores.walk import PIECE, Level, Piece, walk

T = TypeVar("T")

_TEMPORARY = re.compile(rb"\.vbp-[0-9a-f]{16}\.tmp")
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStore:
    """Files by absolute path."""

    def walk(self, root: str) -> Iterator[File]:
        """Files below ``root`` in byte order of their relative path, linked folders included.

        A link to a folder that contains the link is not followed. Only regular files are listed; a broken link is
        listed without a size, so that reading it raises the error. Temporary files of writes are left out.

        Raises:
            FileNotFoundError: ``root`` does not exist.
            StorageError: a folder cannot be listed; names it.
        """
        yield from walk(_enter(os.fsencode(root), b""))

    def cut(self, root: str, folder: str) -> list[Branch] | None:
        """The branches of a folder below ``root``; its files are named, but not looked up.

        Returns:
            None if there are no folders in it, or none among its first ``LOOSE`` entries, or more files.

        Raises:
            OSError, StorageError: it cannot be listed.
        """
        top, path = os.fsencode(root), os.fsencode(folder)
        with os.scandir(os.path.join(top, path)) as entries:
            if not any(map(_is_folder, islice(entries, LOOSE))):
                return None
        identity, names = _names(top, path)
        if path and identity in _above(top, path):
            return []
        if sum(not name.endswith(b"/") for name in names) > LOOSE:
            return None
        return branches_in(folder, (File(os.fsdecode(path + name), None, None) for name in names))

    def walk_branches(self, root: str, branches: Sequence[Branch]) -> Iterator[File]:
        """The files of branches that follow each other, as ``walk`` lists them."""
        top = os.fsencode(root)
        for parent, group in groupby(branches, _parent):
            pieces: list[Piece] = []
            for branch in group:
                if branch.files is None:
                    pieces.append(partial(_enter, top, os.fsencode(branch.folder)))
                else:
                    names = [os.fsencode(file.path).removeprefix(parent) for file in branch.files]
                    pieces += _file_pieces(top, parent, names)
            yield from walk(Level(None, pieces), _above(top, parent + b"/"))

    def first(self, root: str) -> File | None:
        """The first file below ``root``; errors as for ``walk``."""
        return next(self.walk(root), None)

    def size(self, path: str) -> int | None:
        """Bytes in the file; None if it does not exist or is a folder."""
        try:
            info = attempt(lambda: os.stat(path), f"look at {display(path)}")
        except FileNotFoundError:
            return None
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def read(self, path: str, start: int | None = None, end: int | None = None, *, limit: int | None = None) -> bytes:
        """The bytes from ``start`` up to ``end``; with a ``limit`` only a regular file is read.

        Reading a device or a pipe may never end, and opening one may never return.
        """

        def read() -> bytes:
            if limit is not None:
                _check_regular(path, limit)
            with open(path, "rb") as file:
                file.seek(start or 0)
                return file.read() if end is None else file.read(end - (start or 0))

        return attempt(read, f"read {display(path)}")

    def write(self, path: str, data: bytes) -> None:
        """Replace the file atomically, and make its folders; after a crash, the old file or the new one exists."""

        def write() -> None:
            temporary = self._write_temporary(path, data)
            with _removed_on_failure(temporary):
                self._replace(temporary, path)

        self._attempt_change(write, path)

    def create(self, path: str, data: bytes) -> bool:
        """Create the file unless it exists; of several processes exactly one gets True."""

        def create() -> bool:
            temporary = self._write_temporary(path, data)
            with removed(temporary):
                return self._link(temporary, path, data)

        return self._attempt_change(create, path)

    def delete(self, path: str) -> None:
        """Remove the file; nothing happens if it does not exist."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._remove(path)

        self._attempt_change(delete, path)

    def _attempt_change(self, operation: Callable[[], T], path: str) -> T:
        try:
            return attempt(operation, f"write {display(path)}")
        except OSError as error:
            raise StorageError(str(error)) from error

    def _write_temporary(self, path: str, data: bytes) -> str:
        """Write the data to a new name in the same folder, which is made if it is missing."""
        folder = os.path.dirname(path)
        try:
            return write_temporary(folder, data)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            return write_temporary(folder, data)

    def _replace(self, temporary: str, path: str) -> None:
        os.replace(temporary, path)

    def _link(self, temporary: str, path: str, data: bytes) -> bool:
        return _link(temporary, path, data)

    def _remove(self, path: str) -> None:
        os.unlink(path)


def _check_regular(path: str, limit: int) -> None:
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is no regular file, but a folder, a device or a pipe")
    refuse_larger(display(path), info.st_size, limit)


@contextlib.contextmanager
def without_traces(folder: str) -> Iterator[None]:
    """Remove the empty folders that were made in the context: ``folder`` with all below it, and its parents."""
    new: list[str] = []
    above = folder
    while not os.path.isdir(above):
        new.append(above)
        above = os.path.dirname(above)
    try:
        yield
    finally:
        below = [path for path, _, _ in os.walk(folder, topdown=False) if not _is_anothers(path)] if new else []
        for path in (*below, *new):
            with contextlib.suppress(OSError):  # not empty, or removed already
                os.rmdir(path)


def _is_anothers(path: str) -> bool:
    """Whether `path` is the folder of another attempt that holds the output (see ``vbp.storage.ledger.staged``)."""
    return os.path.basename(os.path.dirname(path)) == "holders"


def display(path: str) -> str:
    """The path as valid UTF-8; other bytes are percent-escaped."""
    if path.isascii():
        return path
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in path)


def temporaries(root: str, age: float = 0.0) -> Iterator[str]:
    """Temporary files of running and killed writes below ``root``; links are not followed.

    Only names that `temporary_name` has made count; listings also leave out some similar names.
    """
    for folder, _, names in os.walk(os.fsencode(root)):
        for name in filter(_TEMPORARY.fullmatch, names):
            path = os.path.join(folder, name)
            if _is_older(path, age):
                yield os.fsdecode(os.path.relpath(path, os.fsencode(root)))


def _is_older(path: bytes, age: float) -> bool:
    try:
        return time.time() - os.lstat(path).st_mtime >= age
    except OSError:  # removed in the meantime
        return False


def _enter(top: bytes, path: bytes) -> Level:
    """List a folder; `path` is relative to `top`, and ends with ``/``."""
    identity, names = _names(top, path)
    return Level(identity, _pieces(top, path, names))


def _names(top: bytes, path: bytes) -> tuple[Hashable, list[bytes]]:
    """The identity of a folder, and its names in order; those of folders end with ``/``."""
    folder = os.path.join(top, path)
    try:
        info = os.stat(folder)
        with os.scandir(folder) as entries:
            # With a / after the names of folders, their order is the order of whole paths.
            names = sorted(entry.name + b"/" if _is_folder(entry) else entry.name for entry in entries)
    except OSError as error:
        if is_system(os.fsdecode(path).rstrip("/")) and isinstance(error, PermissionError):
            return path, []  # lost+found, a Mac's .Trashes: not readable, and without images
        message = f"cannot list the folder {display(os.fsdecode(folder)).rstrip('/')}: {error.strerror}"
        missing = isinstance(error, FileNotFoundError) and not path
        raise (FileNotFoundError if missing else StorageError)(message) from error
    return (info.st_dev, info.st_ino), names


def _pieces(top: bytes, path: bytes, names: list[bytes]) -> list[Piece]:
    """Pieces of a folder's names: each folder alone, and the files between two folders together."""
    pieces: list[Piece] = []
    for are_folders, group in groupby(names, lambda name: name.endswith(b"/")):
        if are_folders:
            pieces += [partial(_enter, top, path + name) for name in group]
        else:
            pieces += _file_pieces(top, path, list(group))
    return pieces


def _file_pieces(top: bytes, path: bytes, names: list[bytes]) -> list[Piece]:
    return [partial(_files, top, path, names[i : i + PIECE]) for i in range(0, len(names), PIECE)]


def _parent(branch: Branch) -> bytes:
    """The path of the folder in which the branch's folder or files lie; empty, or with a ``/`` at its end."""
    path = os.fsencode(branch.folder)
    return path if branch.files is not None else path[: path.rstrip(b"/").rfind(b"/") + 1]


def _above(top: bytes, path: bytes) -> list[Hashable]:
    """The identities of the folders in which a folder lies, from `top` on; `path` ends with ``/``."""
    found: list[Hashable] = []
    for end in [0, *(match.end() for match in re.finditer(b"/", path[:-1]))]:
        with contextlib.suppress(OSError):  # whoever enters the folder below it says so
            info = os.stat(os.path.join(top, path[:end]))
            found.append((info.st_dev, info.st_ino))
    return found


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _files(top: bytes, path: bytes, names: list[bytes]) -> list[File]:
    found = (_file(top, path + name) for name in names if not _is_temporary(name))
    return [file for file in found if file is not None]


def _file(top: bytes, path: bytes) -> File | None:
    name = os.fsdecode(path)
    try:
        info = os.stat(top + b"/" + path)
    except OSError:
        return File(name, None, None)
    return File(name, info.st_size, str(info.st_mtime_ns)) if stat.S_ISREG(info.st_mode) else None


def _is_temporary(name: bytes) -> bool:
    return name.startswith(b".vbp-") and name.endswith(b".tmp")


def temporary_name(folder: str) -> str:
    """A new name in the folder; it does not contain the file's name, which may be as long as the disk allows."""
    return os.path.join(folder, f".vbp-{secrets.token_hex(8)}.tmp")


def write_temporary(folder: str, data: bytes) -> str:
    """Write the data to a new name in the folder; FileNotFoundError if the folder does not exist."""
    temporary = temporary_name(folder)
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


@contextlib.contextmanager
def removed(path: str) -> Iterator[None]:
    """A context that removes the file at its end, also after an error."""
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


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
    """For disks without hard links: exactly one caller succeeds, but readers may see incomplete data."""
    try:
        descriptor = _open_new(path)
    except FileExistsError:
        return False
    with _removed_on_failure(path):
        _fill(descriptor, data)
    return True
