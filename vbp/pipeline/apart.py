"""INPUT and OUTPUT must be separate: a run may neither explain its own results nor write among the photos."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from vbp.errors import UsageError
from vbp.storage.outline import INDEX, OWN, RESULT_FOLDERS, SCORES

if TYPE_CHECKING:
    from vbp.storage.collections.tree import ManifestRow

OWN_FOLDERS = (*RESULT_FOLDERS, INDEX, SCORES, OWN)
"""Folders that a run writes below OUTPUT."""
_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "az", "abfs": "az"}


def check_places(source: str, output: str) -> None:
    """Refuse an INPUT in OUTPUT or the reverse: a listing would find masks, or starting over would delete photos.

    Raises:
        UsageError: one place lies in the other.
    """
    if is_within(output, source):
        raise UsageError(
            f"OUTPUT (={output}) lies inside INPUT (={source}): the next run would explain its own masks; "
            "choose an output beside the input."
        )
    folder = OwnFolders(output).holding(source)
    if folder is not None:
        raise UsageError(
            f"INPUT (={source}) lies in the folder {folder} of OUTPUT (={output}), where results are written; "
            "choose another output."
        )


def rows_apart(rows: Iterator[ManifestRow], source: str, output: str) -> Generator[ManifestRow]:
    """Yield the rows unchanged, but refuse an image that lies among the results, also through links or other names.

    Raises:
        UsageError: an image lies among the results.
    """
    own, root = OwnFolders(output), source.rstrip("/")
    look = lru_cache(maxsize=10_000)(own.holding)
    for row in rows:
        place = row.uri if row.path is None else f"{root}/{os.fsdecode(row.path)}"
        folder = look(place.rpartition("/")[0] or "/")
        if folder is not None:
            raise UsageError(
                f"the image {row.uri} lies in the folder {folder} of OUTPUT (={output}), where results are written; "
                "choose another output, or take it out of INPUT."
            )
        yield row


class OwnFolders:
    """The folders of OUTPUT with results, recognised under every name that leads to them."""

    def __init__(self, output: str) -> None:
        places = {_plain(f"{output.rstrip('/')}/{name}"): name for name in OWN_FOLDERS}
        self._places = {f"{place}/": name for place, name in places.items()}
        self._identities = {i: name for place, name in places.items() if (i := _identity(place)) is not None}
        self._by_identity = lru_cache(maxsize=10_000)(self._identified)

    def holding(self, place: str) -> str | None:
        """The folder of results that `place` is or lies in; None if there is none."""
        plain = _plain(place)
        for folder, name in self._places.items():
            if f"{plain}/".startswith(folder):
                return name
        return None if not self._identities or _is_remote(plain) else self._by_identity(plain)

    def _identified(self, path: str) -> str | None:
        """As `holding`, by the folder's identity: mounts and disks that ignore case give a folder several names."""
        identity = _identity(path)
        name = None if identity is None else self._identities.get(identity)
        parent = os.path.dirname(path)
        return name if name is not None or parent == path else self._by_identity(parent)


def is_within(place: str, folder: str) -> bool:
    """Whether `place` is `folder` or lies in it; on a disk also through links, ``..`` and other spellings."""
    inner, outer = _plain(place), _plain(folder)
    if _is_remote(inner) or _is_remote(outer):
        return f"{inner}/".startswith(f"{outer}/")
    if f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/"):
        return True
    identity = _identity(outer)
    return identity is not None and any(_identity(parent) == identity for parent in _with_parents(inner))


def _with_parents(path: str) -> Iterator[str]:
    yield path
    while (parent := os.path.dirname(path)) != path:
        path = parent
        yield path


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode number of a local folder; None if it does not exist."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _is_remote(place: str) -> bool:
    return "://" in place


def _plain(place: str) -> str:
    """A URL, or the real path of a local one, comparable by prefix."""
    local = re.match(r"(?:file|local):(?://(?:localhost(?=/))?)?", place)
    if local or "://" not in place:
        return os.path.realpath(os.path.expanduser(place[local.end() :] if local else place))
    scheme, _, rest = place.partition("://")
    parts: list[str] = []
    for part in rest.split("/"):
        if part == ".." and len(parts) > 1:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return f"{_SCHEMES.get(scheme.lower(), scheme.lower())}://{'/'.join(parts)}"
