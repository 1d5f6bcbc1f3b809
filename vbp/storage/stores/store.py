"""Store: the interface of all stores, behind ``vbp.storage.files.Folder``.

A store names files by their full path: an absolute path on a local disk, ``bucket/key`` in an object store.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from vbp.errors import FileTooLargeError


class File(NamedTuple):
    """One file of a folder."""

    path: str
    """Path relative to the folder, with ``/`` between its parts; bytes that are not UTF-8 are lone surrogates."""
    size: int | None
    """Size in bytes; None if the store does not report it."""
    version: str | None
    """The etag or the time of the last modification, which changes with the content."""


class Store(Protocol):
    """Files by full path. A missing file raises FileNotFoundError, a forbidden one PermissionError."""

    def walk(self, root: str) -> Iterator[File]:
        """All files below ``root``, in byte order of the path relative to it."""
        ...

    def first(self, root: str) -> File | None:
        """Some file below ``root``, found without listing all; None if there is none."""
        ...

    def size(self, path: str) -> int | None:
        """Bytes in the file; None if it does not exist."""
        ...

    def read(self, path: str, start: int | None = None, end: int | None = None, *, limit: int | None = None) -> bytes:
        """The bytes from ``start`` up to ``end``; by default the whole file, which may have at most ``limit`` bytes."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace the file atomically."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Create the file unless it exists; True if it now holds ``data``."""
        ...

    def delete(self, path: str) -> None:
        """Remove the file; nothing happens if it does not exist."""
        ...


def refuse_larger(name: str, size: int | None, limit: int | None) -> None:
    """Refuse a file that is larger than the limit, by its declared size or by the bytes that were read so far.

    Args:
        name: the file's name, for the message.
        size: size in bytes; None if unknown.
        limit: the largest size in bytes; None: no limit.

    Raises:
        FileTooLargeError: the file is larger.
    """
    if size is not None and limit is not None and size > limit:
        raise FileTooLargeError(
            f"{name} has {size} bytes or more, and --max-bytes allows {limit}; if it is an image, allow more and run "
            "with --retry-failed"
        )
