"""All access to files: a folder on a local disk or on any store that fsspec reaches.

A root's URL is parsed once.  From there on files are named by path, and no URL is built from a path to read it:
``x::y.jpg``, ``a[1].jpg``, ``b?.jpg``, ``c#d.jpg`` and ``50%.jpg`` are names like any other.
"""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any, BinaryIO

from vbp.errors import StorageError, UsageError
from vbp.storage.stores.branches import Branch, cut_up
from vbp.storage.stores.local import LocalStore, display, temporaries, without_traces
from vbp.storage.stores.objects import ObjectStore, open_objects
from vbp.storage.stores.options import check_options, options_for, protocol_of
from vbp.storage.stores.remote import open_store, quoted
from vbp.storage.stores.sftp import open_sftp
from vbp.storage.stores.store import File, Store

__all__ = ["Branch", "File", "Folder", "open_uri", "read_uri", "write_uri"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# One file system within another, as in zip://photos::s3://bucket/a.zip; unlike the :: of s3://bucket/x::y.jpg.
_CHAINED = re.compile(r"(?:zip|tar|libarchive|dir|\w+cache)(?:://[^:]*)?::|.*?::(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_PASSWORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@]*:[^/@]+@")
_NEEDS_BUCKET = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
_READ_AHEAD = 1 << 20


class Folder:
    """A folder and the files below it, named by their path relative to it (with ``/`` between its parts).

    A pickled folder holds only its URL and options; each process opens the file system again, with
    the credentials that it finds there. All methods may be called from many threads.

    Errors, after retries where these can help: a missing file raises FileNotFoundError, a forbidden one
    PermissionError.  Every other error, and every error of a write, raises StorageError.
    """

    attempt = ""
    """The attempt that holds the folder and changes it (see ``HeldFolder``); empty otherwise."""

    def __init__(self, url: str | os.PathLike[str], options: Mapping[str, Any] | None = None):
        """Open a folder; nothing is read yet, and the folder need not exist.

        Args:
            url: a path (``~`` is expanded), or any URL that fsspec knows: ``s3://bucket/photos``,
                ``zip://photos::s3://bucket/a.zip``.
            options: settings for the file systems by URL prefix, without secrets:
                ``{"s3://bucket": {"endpoint_url": "http://host:9000"}}``. The longest prefix wins.

        Raises:
            UsageError: the URL or the options cannot be used.
        """
        self._options = check_options(options)
        self.url, self._base, self._settings, self._root = _locate(os.fspath(url), self._options)

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.url, self._options)

    def __repr__(self) -> str:
        return f"Folder({display(self.url)!r})"

    @property
    def is_web(self) -> bool:
        """Whether the folder is on a web server."""
        return protocol_of(self.url) in ("http", "https")

    @property
    def options(self) -> Mapping[str, Any]:
        """The settings with which the folder was opened."""
        return self._options

    @property
    def changes_may_come_late(self) -> bool:
        """Whether a change may come when another attempt has the output already; on a disk the fence stops it."""
        return not self.is_local

    @property
    def is_local(self) -> bool:
        """Whether the folder lies on a disk of this machine, or on one mounted here."""
        return not self._base

    def walk(self) -> Iterator[File]:
        """Every file, streamed in byte order of its path.

        Raises:
            FileNotFoundError: there is no such folder or bucket (a bucket has no real folders: a path in it
                that no object begins with lists nothing).
            StorageError: a folder below cannot be listed; none is skipped in silence.
        """
        return self._store.walk(self._root)

    def cut_up(self, after: bytes = b"") -> list[Branch] | None:
        """The branches of the tree that may have files after a path; None if it cannot be cut into several.

        Disks and buckets can be cut; a bucket's folder not if it has too many entries.  Errors as for ``walk``.
        """
        store = self._store
        if not isinstance(store, (LocalStore, ObjectStore)):
            return None
        branches = cut_up(partial(store.cut, self._root), after)
        return branches if len(branches) > 1 else None

    def walk_branches(self, branches: Sequence[Branch]) -> Iterator[File]:
        """The files of some of these branches, which follow each other, in byte order; errors as for ``walk``."""
        store = self._store
        assert isinstance(store, (LocalStore, ObjectStore))
        return store.walk_branches(self._root, branches)

    def first(self) -> File | None:
        """Some file of the folder, found without listing all; None if there is none; errors as for ``walk``."""
        return self._store.first(self._root)

    def list(self, prefix: str = "") -> list[str]:
        """The paths of all files below the folder ``prefix``, in byte order; empty if it does not exist."""
        start = f"{prefix}/" if prefix else ""
        try:
            return [start + file.path for file in self._store.walk(self._at(prefix))]
        except FileNotFoundError:
            return []

    def temporaries(self, age: float = 0.0) -> Iterator[str]:
        """The paths of temporary files of unfinished writes, running or killed; no other method shows them.

        Args:
            age: only files that have not changed for so many seconds. Object stores have no temporary files.
        """
        return temporaries(self._root, age) if self.is_local else iter(())

    def without_traces(self, path: str) -> AbstractContextManager[None]:
        """A context at whose end folders made in it, ``path`` and its parents, are removed if empty; for disks."""
        return without_traces(self._at(path)) if self.is_local else nullcontext()

    def read(self, path: str, start: int | None = None, end: int | None = None, *, limit: int | None = None) -> bytes:
        """The file's bytes, by default all, else those from ``start`` up to ``end``; errors as for ``read_uri``."""
        return self._store.read(self._at(path), start, end, limit=limit)

    def open(self, path: str) -> BinaryIO:
        """The file, opened with random access; of a remote file only the pieces that are read are fetched."""
        return _open_file(self._store, self._at(path))

    def write(self, path: str, data: bytes) -> None:
        """Write the file atomically: readers see the old file or the new one, also after a crash."""
        self._store.write(self._at(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Create the file unless it exists; True if this call has written ``data``.

        Of several callers with different data exactly one gets True. (An object store cannot distinguish a repeated
        request from a second caller with the same bytes: make each caller's data different.)
        """
        return self._store.create(self._at(path), data)

    def size(self, path: str = "") -> int | None:
        """Bytes in the file; None if it does not exist.  Without a path: of the folder itself, if it is a file."""
        return self._store.size(self._at(path))

    def version(self) -> str | None:
        """The version of the folder itself if it is a local file: it changes with the content.  None on stores."""
        return str(os.stat(self._root).st_mtime_ns) if self.is_local else None

    def exists(self, path: str) -> bool:
        """Whether the file exists."""
        return self.size(path) is not None

    def delete(self, path: str) -> None:
        """Remove the file; nothing happens if it does not exist."""
        self._store.delete(self._at(path))

    def is_behind_link(self, folder: str) -> bool:
        """Whether a folder below this one, or a folder on the path to it, is a link that leads elsewhere."""
        parts = folder.split("/") if self.is_local and folder else []
        return any(os.path.islink(self._at("/".join(parts[: n + 1]))) for n in range(len(parts)))

    def uri(self, path: str = "") -> str:
        """The file's absolute URL or, on a local disk, its absolute path, always valid UTF-8."""
        return display(self._url_of(path) if path else self.url)

    def child(self, path: str) -> "Folder":
        """The folder ``path`` below this one."""
        return Folder(self._url_of(path), self._options)

    @property
    def _store(self) -> Store:
        return _open(self._base, self._settings, os.getpid())[0]

    def _at(self, path: str) -> str:
        """The file's full path in the store; in a bucket any key is allowed, also one with ``..``."""
        is_key = protocol_of(self.url) in _NEEDS_BUCKET
        if "\0" in path or (not is_key and (path.startswith("/") or ".." in path.split("/"))):
            raise StorageError(f"the path {path!r} does not lie within {self!r}; nothing was touched")
        if self.is_web:
            path = quoted(path)
        return _join(self._root, path) if path else self._root

    def _url_of(self, path: str) -> str:
        if self.is_local:
            return _join(self.url, path)
        if self.is_web:
            path = quoted(path)
        links = self.url.split("::") if _CHAINED.match(self.url) else [self.url]
        first = next(i for i, link in enumerate(links) if "://" in link)
        links[first] += path if links[first].endswith("/") else f"/{path}"
        return "::".join(links)


def read_uri(
    uri: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    start: int | None = None,
    end: int | None = None,
    *,
    limit: int | None = None,
) -> bytes:
    """The bytes of the file at a path or URL.

    Args:
        uri: a path, or any URL that fsspec knows.
        options: as for ``Folder``.
        start: offset of the first byte; by default 0.
        end: offset after the last byte; by default the end of the file.
        limit: largest file that is read as a whole; with it a local file must also be a regular file.

    Raises:
        FileTooLargeError: the file is larger; no more than ``limit`` is read.
        FileNotFoundError: the file does not exist.
        PermissionError: the file may not be read.
        UsageError: the URL or the options cannot be used.
        StorageError: the store does not answer, after retries.
    """
    store, path = _find(uri, options)
    return store.read(path, start, end, limit=limit)


def write_uri(uri: str | os.PathLike[str], data: bytes, options: Mapping[str, Any] | None = None) -> None:
    """Write the file at a path or URL atomically; arguments and errors as for ``read_uri``."""
    store, path = _find(uri, options)
    store.write(path, data)


def open_uri(uri: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> BinaryIO:
    """The file at a path or URL, opened with random access; arguments and errors as for ``read_uri``."""
    return _open_file(*_find(uri, options))


class _Pieces(io.RawIOBase):
    """A remote file, read range by range."""

    def __init__(self, store: Store, path: str):
        size = store.size(path)
        if size is None:
            raise FileNotFoundError(f"there is no file {path}")
        self._store, self._path, self._size, self._position = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._take(self._size)

    def _take(self, count: int) -> bytes:
        end = min(self._position + count, self._size)
        if end <= self._position:
            return b""
        data = self._store.read(self._path, self._position, end)
        self._position += len(data)
        return data


def _find(uri: str | os.PathLike[str], options: Mapping[str, Any] | None) -> tuple[Store, str]:
    if "\0" in os.fspath(uri):
        raise FileNotFoundError(f"no file is called {os.fspath(uri)!r}: a name ends at its zero byte")
    _, base, settings, path = _locate(os.fspath(uri), check_options(options))
    return _open(base, settings, os.getpid())[0], path


def _open_file(store: Store, path: str) -> BinaryIO:
    if isinstance(store, LocalStore):
        return open(path, "rb")
    return io.BufferedReader(_Pieces(store, path), _READ_AHEAD)


def _locate(url: str, options: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Parse a URL into: the absolute URL, the URL of its store, the store's settings, the path in the store.

    The store's URL is empty for local files. The settings are JSON text, by which an opened store is cached.
    """
    protocol = protocol_of(url)
    if url.startswith(("/", "~")) or not (_URL.match(url) or _CHAINED.match(url)) or protocol in ("file", "local"):
        path = _absolute(url.partition("://")[2] if _URL.match(url) else url)
        return path, "", "", path
    if _PASSWORD.match(url):
        raise UsageError("a URL must not hold a password; set it in the environment of every node instead")
    if _CHAINED.match(url):
        *links, last = url.split("::")
        url = "::".join([*links, last if "://" in last else _absolute(last)])
        base, rest, settings = url, "", json.dumps(options)
    else:
        host, slash, rest = url.partition("://")[2].partition("/")
        if not host and protocol in _NEEDS_BUCKET:
            raise UsageError(f"{url} names no bucket; write {protocol}://bucket/folder")
        base = f"{protocol}://{host}"
        settings = json.dumps({base: options_for(url, options)})
        url, rest = (text if text.endswith("://") else text.rstrip("/") for text in (url, rest))
    root = _open(base, settings, os.getpid())[1]
    return url, base, settings, _join(root, rest) if rest else root


@lru_cache(maxsize=256)
def _open(base: str, settings: str, process: int) -> tuple[Store, str]:
    """The store of ``base`` and its path in there; each process opens a store once.  Only here a store is chosen."""
    if not base:
        return LocalStore(), ""
    options = json.loads(settings)
    return open_objects(base, options) or open_sftp(base, options) or open_store(base, options)


def _absolute(path: str) -> str:
    path = os.path.expanduser(path)
    # Only the disk knows where .. leads after a link; without .. the path stays as the user wrote it.
    return os.path.realpath(path) if ".." in path.split("/") else os.path.abspath(path)


def _join(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}" if root else path
