"""Files of S3, Google Cloud Storage and Azure by obstore, which is fast for listings and small objects.

``open_objects`` decides whether obstore is used.  fsspec (``remote``) replaces it for options that obstore does not
know, and for single names that it cannot express.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

from vbp.errors import StorageError, UsageError
from vbp.storage.stores.branches import LOOSE, Branch, branches_in
from vbp.storage.stores.obstore_errors import aws_trouble, refusal
from vbp.storage.stores.options import family_of, options_for
from vbp.storage.stores.order import in_byte_order
from vbp.storage.stores.prefetch import AHEAD, PAGE, Listing, one_after_the_other
from vbp.storage.stores.remote import RemoteStore, open_store
from vbp.storage.stores.retry import attempt, created
from vbp.storage.stores.store import File, refuse_larger

T = TypeVar("T")

# Our names of options -> obstore's, by family of protocols. With any other option fsspec is used.
_SETTINGS: dict[str, dict[str, str]] = {
    "s3": {
        "endpoint_url": "endpoint",
        "region": "region",
        "anon": "skip_signature",
        "requester_pays": "request_payer",
    },
    "gs": {"anon": "skip_signature"},  # emulators lack the XML API that obstore speaks: an endpoint_url is for gcsfs
    "az": {"endpoint_url": "endpoint", "account_name": "account_name", "anon": "skip_signature"},
}
_CLIENT: dict[str, Any] = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=15),
    "timeout": timedelta(minutes=10),
    "pool_max_idle_per_host": "64",
}
_CREDENTIALS_LAST = timedelta(minutes=5)  # botocore renews its own at least ten minutes before they end
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MANGLED = "\ufffd"
_LEVEL_WITHIN = 2.0
"""Seconds for listing the names of one folder, which obstore returns all at once; after that, list sequentially."""
_CUT_WITHIN = 10.0
"""The same for a folder that several processes are to list: time for about 100,000 folders in it."""

_process: dict[str, int] = {}  # id of the process that used obstore first


class ObjectStore:
    """Files by ``bucket/key``, with one request for each file."""

    def __init__(self, store: Any, url: str, bucket: str, is_sorted: bool, by_fsspec: Callable[[], RemoteStore]):
        """Wrap an obstore store in the interface ``vbp.storage.stores.store``.

        Args:
            store: obstore's store of one bucket.
            url: URL of the bucket, for messages.
            bucket: the beginning of every path.
            is_sorted: whether the store is known to list in byte order.
            by_fsspec: opens the same bucket by fsspec.
        """
        self._store, self._url, self._bucket = store, url, bucket
        self._is_sorted, self._open_by_fsspec = is_sorted, by_fsspec

    def walk(self, root: str) -> Iterator[File]:
        """Objects below ``root`` in byte order, streamed; markers of folders are left out.

        Large folders are listed in parallel. Memory has a bound: the pages (``prefetch``), the names that
        a store lists within ``_LEVEL_WITHIN`` seconds, and for unsorted stores the runs of ``in_byte_order``.
        """
        return self._in_order(self._listed_ahead(root))

    def cut(self, root: str, folder: str) -> list[Branch] | None:
        """The branches of a folder below ``root``.

        Returns:
            None if its first page shows no folder in it, or if it has too many entries, or names that are refused.
        """
        start = islice(self.listed(f"{root}/{folder}".rstrip("/")), PAGE)
        level = self._level(root, folder, _CUT_WITHIN) if any("/" in file.path for file in start) else None
        if level is None or sum(not file.path.endswith("/") for file in level) > LOOSE:
            return None
        return branches_in(folder, (file._replace(path=folder + file.path) for file in level))

    def walk_branches(self, root: str, branches: Sequence[Branch]) -> Iterator[File]:
        """Objects of branches that follow each other, in byte order, ``AHEAD`` branches at a time."""
        if len(branches) == 1 and branches[0].files is None:  # the folders in it are listed at once
            folder = branches[0].folder
            return _placed(folder, self.walk(f"{root}/{folder.rstrip('/')}"))
        return self._in_order(one_after_the_other(partial(self._listed_in, root, branch) for branch in branches))

    def listed(self, root: str) -> Iterator[File]:
        """Objects below ``root`` in the order of the store, one page after the other; markers of folders are left out.

        If a name appears that obstore refuses, or that the answer's XML cannot hold, fsspec lists instead: only
        the rest if the order is known, else everything (``in_byte_order`` drops names that come twice).
        """
        last = ""
        try:
            for entry in self._entries(root):
                path = f"{self._bucket}/{entry['path']}"
                if _MANGLED in path:
                    raise _UnspeakableError
                # obstore cuts the final slash off a folder's marker, and no object has the shorter name
                if path.startswith(f"{root}/") and (entry["size"] or self.size(path) is not None):
                    last = path.removeprefix(f"{root}/")
                    yield File(last, int(entry["size"]), _version(entry))
        except _UnspeakableError:
            for file in self._by_fsspec.walk(root):
                if not self._is_sorted or file.path.encode() > last.encode():
                    yield file

    def first(self, root: str) -> File | None:
        """Some object below ``root``, by one request."""
        return next(self.listed(root), None)

    def size(self, path: str) -> int | None:
        """Bytes in the object; None if it does not exist."""
        if not _can_say(path):
            return self._by_fsspec.size(path)
        try:
            info = self._attempt(lambda: self._store.head(self._key(path)), "look at", path)
        except FileNotFoundError:
            return None
        return int(info["size"])

    def read(self, path: str, start: int | None = None, end: int | None = None, *, limit: int | None = None) -> bytes:
        """The bytes from ``start`` up to ``end``."""
        if not _can_say(path):
            return self._by_fsspec.read(path, start, end, limit=limit)
        if end is not None and end <= (start or 0):
            return b""

        def read() -> bytes:
            if end is None and not start:
                answer = self._store.get(self._key(path))
                refuse_larger(f"{self._url}/{self._key(path)}", answer.meta["size"], limit)
                return bytes(answer.bytes())
            try:
                if end is not None:
                    return bytes(self._store.get_range(self._key(path), start=start or 0, end=end))
                return bytes(self._store.get(self._key(path), options={"range": {"offset": start}}).bytes())
            except Exception as error:
                if "NotPartial" not in str(error):
                    raise
                # servers may send the whole object for a request of a range
                return bytes(self._store.get(self._key(path)).bytes())[start or 0 : end]

        return self._attempt(read, "read", path)

    def write(self, path: str, data: bytes) -> None:
        """Replace the object atomically, by one PUT."""
        if not _can_say(path):
            return self._by_fsspec.write(path, data)
        try:
            self._attempt(lambda: self._store.put(self._key(path), data, use_multipart=False), "write", path)
        except OSError as error:
            raise StorageError(str(error)) from error

    def create(self, path: str, data: bytes) -> bool:
        """Create the object unless it exists."""
        if not _can_say(path):
            return self._by_fsspec.create(path, data)

        def create() -> None:
            self._attempt(lambda: self._store.put(self._key(path), data, mode="create"), "create", path)

        return created(create, lambda: self.read(path), data)

    def version(self, path: str) -> dict[str, str] | None:
        """The object's etag and version, as far as the store has them; None if the object does not exist."""
        if not _can_say(path):
            return None
        try:
            info = self._attempt(lambda: self._store.head(self._key(path)), "look at", path)
        except FileNotFoundError:
            return None
        return {name: info[name] for name in ("e_tag", "version") if info.get(name)}

    def put_if(self, path: str, data: bytes, version: Mapping[str, str] | None) -> bool:
        """Write the object if it has this version, or does not exist (None); else return False.

        If the answer is lost after the store has written `data`, the result is False too. A store that
        ignores conditions writes always; so does fsspec, for a name that obstore cannot express.
        """
        if not _can_say(path) or version == {}:
            self.write(path, data)
            return True
        mode = "create" if version is None else dict(version)
        try:
            self._attempt(lambda: self._store.put(self._key(path), data, mode=mode, use_multipart=False), "write", path)
        except (FileExistsError, FileNotFoundError):
            return False
        except OSError as error:
            raise StorageError(str(error)) from error
        return True

    def delete(self, path: str) -> None:
        """Remove the object; nothing happens if it does not exist."""
        if not _can_say(path):
            return self._by_fsspec.delete(path)
        try:
            self._attempt(lambda: self._store.delete(self._key(path)), "delete", path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(str(error)) from error

    def _listed_ahead(self, root: str) -> Iterator[File]:
        """As ``listed``, but with folders in parallel if that is faster."""
        files = self.listed(root)
        start = list(islice(files, PAGE))
        listings = self._listings(root, start) if len(start) == PAGE else None
        yield from one_after_the_other(listings) if listings else chain(start, files)

    def _listings(self, root: str, start: Sequence[File]) -> list[Listing] | None:
        """Listings that can run in parallel, in order: one for each folder, and for the files between two folders.

        They are of the first level below ``root`` that has several entries.  None if ``start``, the first page, shows
        small folders or single files there: a request for each of them would take longer than listing page by page,
        even with ``AHEAD`` requests at a time.
        """
        inner, level = "", list[File]()
        while len(level) < 2:
            inner += level[0].path if level else ""
            if len({file.path.removeprefix(inner).partition("/")[0] for file in start}) > AHEAD:
                return None
            level = self._level(root, inner, _LEVEL_WITHIN) or []
            if not any(file.path.endswith("/") for file in level):
                return None
        entries = (file._replace(path=inner + file.path) for file in level)
        return [partial(self._listed_in, root, branch) for branch in branches_in(inner, entries)]

    def _listed_in(self, root: str, branch: Branch) -> Iterator[File]:
        """The files of a branch, with paths relative to ``root``, one page after the other."""
        if branch.files is not None:
            return iter(branch.files)
        return _placed(branch.folder, self.listed(f"{root}/{branch.folder.rstrip('/')}"))

    def _in_order(self, files: Iterator[File]) -> Iterator[File]:
        return files if self._is_sorted else in_byte_order(files)

    def _level(self, root: str, folder: str, within: float) -> list[File] | None:
        """The entries of ``folder`` in order, folders with a ``/``.

        None if they are too many to be listed `within` so many seconds, or a name is refused.
        """
        import asyncio

        prefix = self._key(f"{root}/{folder}".rstrip("/"))

        async def look() -> Any:
            try:
                return await asyncio.wait_for(self._store.list_with_delimiter_async(prefix or None), within)
            except TimeoutError:
                return None
            except Exception as error:
                if type(error).__name__ == "InvalidPathError":
                    return None
                raise

        with ThreadPoolExecutor(1) as thread:  # an event loop may run in this thread
            found = self._attempt(lambda: thread.submit(asyncio.run, look()).result(), "list", f"{root}/{folder}")
        if found is None:
            return None
        start = len(prefix) + 1 if prefix else 0
        files = [File(f"{path[start:]}/", None, None) for path in found["common_prefixes"]]
        files += [File(entry["path"][start:], int(entry["size"]), _version(entry)) for entry in found["objects"]]
        if any(file.path == "/" or _MANGLED in file.path for file in files):
            return None
        files.sort(key=lambda file: file.path)
        return [file for file in files if file.path]  # the folder's own marker has an empty path

    def _entries(self, root: str) -> Iterator[Mapping[str, Any]]:
        """Obstore's entries below ``root``, page by page; after a failure it continues after the last page."""
        if not _can_say(root):
            raise _UnspeakableError
        prefix = self._key(root) or None
        last: str | None = None
        stream = self._store.list(prefix)

        def page() -> list[Mapping[str, Any]] | None:
            nonlocal stream
            try:
                return list(next(stream, ()))
            except Exception as error:
                if type(error).__name__ == "InvalidPathError":
                    return None
                stream = self._store.list(prefix, offset=last)
                raise

        while entries := self._attempt(page, "list", root):
            yield from (entry for entry in entries if entry["path"] != last)
            last = entries[-1]["path"]
        if entries is None:
            raise _UnspeakableError

    def _attempt(self, operation: Callable[[], T], verb: str, path: str) -> T:
        return attempt(lambda: _translated(operation), f"{verb} {self._url}/{self._key(path)}".rstrip("/"))

    def _key(self, path: str) -> str:
        return path.removeprefix(self._bucket).removeprefix("/")

    @cached_property
    def _by_fsspec(self) -> RemoteStore:
        return self._open_by_fsspec()


def _placed(folder: str, files: Iterator[File]) -> Iterator[File]:
    """The files of a folder, with its path before theirs."""
    return (file._replace(path=folder + file.path) for file in files)


class _UnspeakableError(Exception):
    """A name that obstore cannot express."""


def open_objects(url: str, options: Mapping[str, Any] | None) -> tuple[ObjectStore, str] | None:
    """The store of a bucket's URL, and the URL's path in it; None if fsspec must be used.

    fsspec is used for other protocols, if obstore is not installed, for options that it does not know, for credentials
    that it cannot use, and in the child of a process that has used it, because its threads do not survive a fork.

    Raises:
        UsageError: the settings do not fit the store.
    """
    family = family_of(url)
    settings = options_for(url, options)
    known = _SETTINGS.get(family, {})
    if "::" in url or not known or not settings.keys() <= known.keys() or _needs_fsspec(family):
        return None
    if _process.setdefault("id", os.getpid()) != os.getpid():
        return None
    try:
        from obstore import store as stores
        from obstore.exceptions import BaseError
    except ImportError:
        return None
    bucket, _, host = urlsplit(url).netloc.partition("@")
    config = {known[name]: value for name, value in settings.items()}
    if host:  # abfs://container@account.dfs.core.windows.net
        config.setdefault("account_name", host.partition(".")[0])
    try:
        session = _aws_session() if family == "s3" else None
        endpoint = settings.get("endpoint_url") or _ambient_endpoint(family, session)
        _check_endpoint(url, endpoint)
        client = {**_CLIENT, "allow_http": str(endpoint).startswith("http://")}
        if family == "s3":
            config |= {"endpoint": endpoint} if endpoint else {}
            store = _open_s3(stores.S3Store, bucket, config, client, session)
        else:
            cls = stores.GCSStore if family == "gs" else stores.AzureStore
            store = cls(bucket, client_options=client, retry_config={"max_retries": 0}, **config)
    except (BaseError, ValueError, TypeError) as error:
        raise UsageError(f"cannot open {url}: {refusal(error).strerror}") from error
    is_sorted = family != "az" and not endpoint
    return ObjectStore(store, url, bucket, is_sorted, lambda: open_store(url, options)[0]), bucket


def _check_endpoint(url: str, endpoint: str | None) -> None:
    if endpoint and not re.match(r"https?://[^/\s]", endpoint):
        raise UsageError(f"the endpoint of {url} (={endpoint}) must be a URL; write http:// or https:// before it")


def _aws_session() -> Any:
    """A session of botocore, which reads profiles and configuration files; obstore does not. None if not installed.

    Raises:
        UsageError: AWS' configuration is wrong.
    """
    try:
        import botocore.session
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return None
    session = botocore.session.get_session()
    try:
        session.get_scoped_config()
        session.get_config_variable("region")
    except (BotoCoreError, ValueError) as error:
        raise UsageError(aws_trouble(error)) from error
    return session


def _open_s3(cls: Any, bucket: str, config: dict[str, Any], client: dict[str, Any], session: Any) -> Any:
    """Open S3 with region and credentials from botocore's chain, if there is a `session`.

    Else obstore finds its own: environment, container and instance identity.
    """
    provider: Callable[[], Mapping[str, Any]] | None = None
    if session is not None:
        region = os.environ.get("AWS_REGION") or session.get_config_variable("region")
        config = ({"region": region} if region else {}) | config
        if not config.get("skip_signature"):
            provider = _BotocoreCredentials(session)
    return cls(
        bucket,
        client_options=client,
        retry_config={"max_retries": 0},
        credential_provider=provider,
        disable_bulk_delete=True,  # one DELETE for each key: not every store can delete in bulk
        **config,
    )


class _BotocoreCredentials:
    """Gives obstore the credentials of botocore, and nobody else."""

    def __init__(self, session: Any):
        self._session = session

    def __call__(self) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError

        try:
            found = self._session.get_credentials()
            frozen = found and found.get_frozen_credentials()
        except (BotoCoreError, OSError, ValueError) as error:
            raise PermissionError(aws_trouble(error)) from None
        if frozen is None:
            raise PermissionError("no credentials found")
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
        }


def _needs_fsspec(family: str) -> bool:
    """Whether the environment or files hold credentials or settings that obstore cannot use."""
    if family == "az":
        return "AZURE_STORAGE_CONNECTION_STRING" in os.environ
    if family == "gs":
        return "STORAGE_EMULATOR_HOST" in os.environ or _google_federation()
    return False


def _google_federation() -> bool:
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    try:
        with open(path or "", encoding="utf-8") as file:
            return json.load(file).get("type") not in ("service_account", "authorized_user")
    except (OSError, ValueError):
        return False


def _ambient_endpoint(family: str, session: Any) -> str | None:
    """The endpoint from the environment or, for S3, from the profile or its section of services."""
    names = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "gs": ("GOOGLE_BASE_URL",), "az": ("AZURE_ENDPOINT",)}
    if session is None:
        return next((os.environ[name] for name in names[family] if os.environ.get(name)), None)
    if str(session.get_config_variable("ignore_configured_endpoint_urls")).lower() == "true":
        return None
    profile, sections = session.get_scoped_config(), session.full_config.get("services", {})
    own = sections.get(profile.get("services"), {}).get("s3", {})
    given = [*map(os.environ.get, names["s3"]), own.get("endpoint_url"), profile.get("endpoint_url")]
    return next((endpoint for endpoint in given if endpoint), None)


def _can_say(path: str) -> bool:
    """Whether obstore can express the path; it refuses or changes some."""
    if _CONTROL.search(path) or any(part in ("", ".", "..") for part in path.split("/")):
        return False
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _translated(operation: Callable[[], T]) -> T:
    from obstore.exceptions import BaseError

    try:
        return operation()
    except (BaseError, FileNotFoundError) as error:
        raise refusal(error) from None  # its text holds the URL, which may be signed


def _version(entry: Mapping[str, Any]) -> str | None:
    tag = entry.get("e_tag")
    return str(tag).strip('"') if tag else str(entry["last_modified"])
