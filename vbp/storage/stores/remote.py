"""Files of an object store or another fsspec file system, with one request for each file.

fsspec is imported when a store is opened, since outputs on a disk do not need it.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

from vbp.errors import StorageError, UsageError
from vbp.storage.addresses import without_secrets
from vbp.storage.stores.options import family_of, options_for, protocol_of
from vbp.storage.stores.retry import attempt, created, is_out_of_range, reason
from vbp.storage.stores.store import File, refuse_larger
from vbp.storage.stores.walk import Level, Piece, walk

# Our extras with the packages for protocols; fsspec itself knows the other protocols.
_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "sftp": "sftp",
    "ssh": "sftp",
}

# Listings are never cached: other processes write there too. One GET a file: s3fs otherwise asks for the size
# first (374 reads a second against 628). botocore repeats single requests; beyond that, retry.py decides.
_S3 = {
    "use_listings_cache": False,
    "max_concurrency": 1,
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 15,
        "max_pool_connections": 64,
        "retries": {"mode": "standard", "total_max_attempts": 4},
    },
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "s3": _S3,
    "s3a": _S3,
    "gs": {"use_listings_cache": False},
    "gcs": {"use_listings_cache": False},
    "az": {"use_listings_cache": False},
    "abfs": {"use_listings_cache": False},
}


_QUOTED = re.compile(r"(?:[!#$&-;=?-Z_a-z~\[\]]|%[0-9A-Fa-f]{2})*")
"""Pattern of URLs that hold only allowed characters, so that they are sent unchanged."""
CONNECT_SECONDS = IDLE_SECONDS = 15.0
"""Time limits in seconds: for a web server to accept a connection, and between two pieces of its answer."""
ANSWER_SECONDS = 600.0
"""Time limit in seconds for one whole file."""


def _http() -> dict[str, Any]:
    """Settings for web servers: time limits, the proxy of the environment, and our own user agent."""
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=IDLE_SECONDS)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True, "headers": {"User-Agent": "vbp"}}}


class RemoteStore:
    """Files by their path in an fsspec file system."""

    def __init__(self, filesystem: Any):
        self.filesystem = filesystem

    def walk(self, root: str) -> Iterator[File]:
        """Objects below ``root`` in byte order; markers of folders are left out.

        Most file systems (HTTP, WebDAV) are listed folder by folder, some folders ahead, and only these folders
        are in memory. A few list a whole tree in one call (the Hugging Face hub, archives, s3fs, gcsfs, adlfs),
        and then fsspec holds all of it, about 1 GB for a million keys of s3fs.
        """
        if _is_listed_by_folder(self.filesystem):
            yield from walk(self._level(root, root.rstrip("/") + "/" if root else ""))
        else:
            yield from self._whole_tree(root)

    def _whole_tree(self, root: str) -> Iterator[File]:
        found = attempt(lambda: self.filesystem.find(root, detail=True), f"list {self._name(root)}")
        start = root.rstrip("/") + "/" if root else ""
        for name in sorted(found):
            path = name.removeprefix(start) if start else name.lstrip("/")
            info = found[name]
            if info.get("type") == "file" and path and path != root and not path.endswith("/"):
                yield File(path, info.get("size"), _version(info))

    def first(self, root: str) -> File | None:
        """Some object below ``root``, searched folder by folder."""
        if _is_listed_by_folder(self.filesystem):
            return next(self.walk(root), None)

        def first() -> File | None:
            start = root.rstrip("/") + "/" if root else ""
            for _, _, files in self.filesystem.walk(root, detail=True, on_error="raise"):
                for name, info in files.items():
                    if name and info.get("type") == "file":
                        return File(self._path(info["name"], start), info.get("size"), _version(info))
            return None

        return attempt(first, f"list {self._name(root)}")

    def _level(self, folder: str, start: str) -> Level:
        """List one folder; the paths of its files are relative to ``start``."""
        found = attempt(lambda: self.filesystem.ls(folder, detail=True), f"list {self._name(folder)}")
        entries: dict[str, dict[str, Any]] = {}
        for info in found:
            is_folder = info.get("type") == "directory"
            path = self._path(info["name"].rstrip("/") if is_folder else info["name"], start)
            # With a / after the names of folders, their order is the order of whole paths.
            entries[f"{path}/" if is_folder else path] = info
        pieces: list[Piece] = []
        files: list[File] = []
        for path in sorted(entries):
            info = entries[path]
            if info.get("type") == "directory":
                pieces.append(partial(self._level, info["name"], start))
                files = []
            elif info["name"].rstrip("/") != folder.rstrip("/"):
                if not files:
                    pieces.append(partial(_same, files))
                files.append(File(path, info.get("size"), _version(info)))
        return Level(folder.rstrip("/"), pieces)

    def _path(self, name: str, start: str) -> str:
        """The path, relative to ``start``, of the file system's ``name``."""
        return name.removeprefix(start) if start else name.lstrip("/")

    def size(self, path: str) -> int | None:
        """Bytes in the object; None if it does not exist."""
        try:
            info = attempt(lambda: self.filesystem.info(path), f"look at {self._name(path)}")
        except FileNotFoundError:
            return None
        return int(info["size"]) if info.get("type") == "file" else None

    def read(self, path: str, start: int | None = None, end: int | None = None, *, limit: int | None = None) -> bytes:
        """The bytes from ``start`` up to ``end``; with a ``limit``, one byte more shows whether it is larger."""
        _refuse_version(path)
        if limit is not None and start is None and end is None:
            start, end = 0, limit + 1

        def read() -> bytes:
            try:
                return bytes(self.filesystem.cat_file(path, start=start, end=end))
            except Exception as error:
                if limit is not None and is_out_of_range(error):  # an empty file has no first byte
                    return b""
                raise

        data = attempt(read, f"read {self._name(path)}")
        refuse_larger(self._name(path), len(data), limit)
        return data

    def write(self, path: str, data: bytes) -> None:
        """Replace the object atomically, by one PUT."""
        _refuse_version(path)
        try:
            attempt(lambda: self.filesystem.pipe_file(path, data), f"write {self._name(path)}")
        except OSError as error:
            raise StorageError(str(error)) from error

    def create(self, path: str, data: bytes) -> bool:
        """Create the object unless it exists.

        Stores that ignore conditional requests (rclone's server) overwrite it; WebDAV cannot do this at all.
        """
        _refuse_version(path)

        def create() -> None:
            attempt(lambda: self.filesystem.pipe_file(path, data, mode="create"), f"create {self._name(path)}")

        return created(create, lambda: self.read(path), data)

    def delete(self, path: str) -> None:
        """Remove the object; nothing happens if it does not exist."""
        try:
            attempt(lambda: self.filesystem.rm_file(path), f"delete {self._name(path)}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(str(error)) from error

    def _name(self, path: str) -> str:
        return str(self.filesystem.unstrip_protocol(path))


class HttpStore(RemoteStore):
    """Files of a web server: a path is a URL whose names are quoted."""

    def read(self, path: str, start: int | None = None, end: int | None = None, *, limit: int | None = None) -> bytes:
        """The bytes from ``start`` up to ``end``, also from a server that always sends the whole file."""
        from fsspec.asyn import sync

        if end is not None and end <= (start or 0):
            return b""
        read = partial(sync, self.filesystem.loop, self._get, path, start or 0, end, limit)
        return bytes(attempt(read, f"read {path}"))

    async def _get(self, url: str, start: int, end: int | None, limit: int | None) -> bytes:
        wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}", "Accept-Encoding": "identity"}
        headers = wanted if start or end is not None else {}
        session = await self.filesystem.set_session()
        given = dict(self.filesystem.kwargs)
        headers |= given.pop("headers", {})
        async with session.get(_exactly(url), headers=headers, **given) as answer:
            if answer.status == 416:  # the range begins after the end
                return b""
            answer.raise_for_status()
            name = without_secrets(url)
            refuse_larger(name, answer.content_length, limit)
            data = bytearray()
            async for piece in answer.content.iter_any():
                data += piece
                refuse_larger(name, len(data), limit)
        return bytes(data if answer.status == 206 else data[start:end])

    def _path(self, name: str, start: str) -> str:
        return unquote(super()._path(name, start))

    def _name(self, path: str) -> str:
        return without_secrets(path)


def open_store(url: str, options: Mapping[str, Any] | None) -> tuple[RemoteStore, str]:
    """The store behind a URL, chained ones included, and the URL's path in it.

    Raises:
        UsageError: the protocol is unknown, a package is not installed, or the settings do not fit.
    """
    import fsspec

    protocol = protocol_of(url)
    try:
        filesystem, path = fsspec.url_to_fs(url, **_settings(url, options))
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        named = f"install the package it names ({reason(error)})"
        remedy = f"pip install 'visualbackprop[{extra}]'" if extra else named
        raise UsageError(f"{protocol}:// needs a package that is not installed: {remedy}") from error
    except (ValueError, TypeError, KeyError) as error:  # KeyError: a link of a chain has no protocol
        raise UsageError(f"cannot open {url}: {reason(error)}") from error
    if protocol in ("s3", "s3a"):
        filesystem.retries = 1
    return (HttpStore if protocol in ("http", "https") else RemoteStore)(filesystem), path


def _exactly(url: str) -> Any:
    """The URL as an object that aiohttp does not quote again, since that would break signatures."""
    from yarl import URL

    return URL(url, encoded=bool(_QUOTED.fullmatch(url)))


def quoted(path: str) -> str:
    """A file's path, quoted for an ``http(s)`` URL."""
    return quote(path)


def _is_listed_by_folder(filesystem: Any) -> bool:
    """Whether the file system cannot list whole trees, so that fsspec would list folder by folder."""
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem
    from fsspec.implementations.cached import CachingFileSystem

    kind = type(filesystem)
    if issubclass(kind, CachingFileSystem):  # it wraps another file system
        return False
    if issubclass(kind, AsyncFileSystem):
        return kind._find is AsyncFileSystem._find and kind.find is AsyncFileSystem.find
    return bool(kind.find is AbstractFileSystem.find)


def _same(files: list[File]) -> list[File]:
    return files


def _settings(url: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    links = [link for link in url.split("::") if "://" in link]
    by_link = {
        protocol_of(link): _merged(_defaults(protocol_of(link)), _as_fsspec(link, options_for(link, options)))
        for link in links
    }
    return by_link if len(links) > 1 else by_link[protocol_of(url)]


def _defaults(protocol: str) -> dict[str, Any]:
    return _http() if protocol in ("http", "https") else _DEFAULTS.get(protocol, {})


def _as_fsspec(url: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Our options under the names of the file systems behind fsspec."""
    family, settings = family_of(url), dict(settings)
    if family == "s3" and "region" in settings:
        settings["client_kwargs"] = {"region_name": settings.pop("region")} | settings.get("client_kwargs", {})
    if family == "gs" and settings.pop("anon", False):
        settings["token"] = "anon"
    return settings


def _merged(defaults: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for field, value in settings.items():
        nested = isinstance(value, dict) and isinstance(merged.get(field), dict)
        merged[field] = _merged(merged[field], value) if nested else value
    return merged


def _version(info: dict[str, Any]) -> str | None:
    for field in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created"):
        if info.get(field):
            return str(info[field]).strip('"')
    return None


def _refuse_version(path: str) -> None:
    """Refuse a name that s3fs cuts off at its version mark, because it would read another object."""
    if re.search(r"\?versionId=", path):
        raise StorageError(f"cannot use {path}: names with '?versionId=' are not supported")
