"""What every store can do: the whole of the interface behind ``vbp.storage.files.Folder``.

A store knows files by their full path: an absolute path on a local disk, ``bucket/key`` in an object store.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from vbp.errors import FileTooLargeError


class File(NamedTuple):
    """One file of a folder."""

    path: str
    """Relative to the folder, parts joined by ``/``; bytes that are not UTF-8 are held as lone surrogates."""
    size: int | None
    """In bytes; None where the store does not say."""
    version: str | None
    """Changes when the content does: the etag, or the time of the last modification."""


class Store(Protocol):
    """Files by full path. A missing file raises FileNotFoundError, a forbidden one PermissionError."""

    def walk(self, root: str) -> Iterator[File]:
        """All files below ``root``, in byte order of the path relative to it."""
        ...

    def first(self, root: str) -> File | None:
        """Some file below ``root``, found without listing them all; None where there is none."""
        ...

    def size(self, path: str) -> int | None:
        """Bytes in the file; None where there is no such file."""
        ...

    def read(self, path: str, start: int | None = None, end: int | None = None, *, limit: int | None = None) -> bytes:
        """The bytes from ``start`` up to ``end``; the whole file by default, of at most ``limit`` bytes."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace the file as a whole: nobody ever sees a part of it."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write the file unless there is one; True if it now holds ``data``."""
        ...

    def delete(self, path: str) -> None:
        """Remove the file; nothing happens where there is none."""
        ...


def refuse_larger(name: str, size: int | None, limit: int | None) -> None:
    """Refuse what is too much to be held, by the size that is declared or, while it is read, by what has come.

    Args:
        name: of the file, for the message.
        size: in bytes; None where it is not known.
        limit: most bytes that are taken; None: any number.

    Raises:
        FileTooLargeError: it is more.
    """
    if size is not None and limit is not None and size > limit:
        raise FileTooLargeError(
            f"{name} has {size} bytes or more, and --max-bytes allows {limit}; if it is an image, allow more and run "
            "with --retry-failed"
        )
