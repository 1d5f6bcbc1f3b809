"""Tar files of results, one for each commit of a shard: ``OUTPUT/shards/<shard>/<first>-<last>-<digest>.tar``.

A tar is written before the part whose rows point into it. Its name holds the digest of its content, so a tar never
changes under its name: a commit that is repeated with the same result overwrites its own tar, and one that came to
another result, of an attempt that overlapped or on another device, goes to another. What a row says of offsets holds
for ever.

A commit that was cut off between tar and part, or whose rows were taken back, leaves a tar without a row.
"""

import contextlib
import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import NamedTuple

from vbp.storage.files import Folder
from vbp.storage.parts import PARTS, Part, parse_parts, read_parts

SHARDS = "shards"

_NAME = re.compile(r"(\d{6})/(\d{6,})-(\d{6,})-([0-9a-f]{16})\.tar")


class Tar(NamedTuple):
    """What the name of a tar tells."""

    shard: int
    first: int
    last: int
    """The smallest and the largest position of its commit."""
    digest: str
    """Of its bytes."""

    @property
    def path(self) -> str:
        """In OUTPUT."""
        return f"{SHARDS}/{self.shard:06d}/{self.first:06d}-{self.last:06d}-{self.digest}.tar"


def write_tar(output: Folder, data: bytes, shard: int, positions: Collection[int]) -> str:
    """Write a tar of results.

    Args:
        output: OUTPUT.
        data: the whole archive.
        shard: the shard whose images it holds.
        positions: all positions of the commit, those without results too.

    Returns:
        The tar's path.

    Raises:
        StorageError: the store does not take it.
    """
    digest = hashlib.sha256(data).hexdigest()[:16]
    tar = Tar(shard, min(positions), max(positions), digest)
    output.write(tar.path, data)
    return tar.path


def path_of(uri: str) -> str:
    """The path in OUTPUT of the tar that a row points to; OUTPUT may have been moved since, or have another URL now."""
    return "/".join(uri.split("/")[-3:])


def shard_of(path: str) -> int | None:
    """The shard of a tar, by its path in OUTPUT; None for other files."""
    match = _NAME.fullmatch(path.removeprefix(f"{SHARDS}/"))
    return int(match[1]) if match else None


def remove_orphans(output: Folder) -> int:
    """Delete the tars that no row of any part points to; returns how many there were.

    Only the holder of the lease may do so, and only while none of its workers is about to commit. Two sorted
    listings are merged as they stream; parts are read only where a tar's commit cannot be told by its name.
    """
    removed = 0
    for tars, parts in _shards(output):
        for tar in _orphans(output, tars, parts):
            output.delete(tar.path)
            removed += 1
    return removed


def _orphans(output: Folder, tars: list[Tar], parts: list[Part]) -> list[Tar]:
    alike = Counter((tar.first, tar.last) for tar in tars)
    committed = {(part.first, part.last) for part in parts if part.ok}
    doubtful = [tar for tar in tars if (tar.first, tar.last) not in committed or alike[tar.first, tar.last] > 1]
    if not doubtful:
        return []
    rows = read_parts(output, parts, ["mask_uri", "overlay_uri"])
    uris = {uri for column in rows.columns for uri in column.unique().to_pylist() if uri is not None}
    used = {path_of(uri) for uri in uris}
    return [tar for tar in doubtful if tar.path not in used]


def _shards(output: Folder) -> Iterator[tuple[list[Tar], list[Part]]]:
    """The tars and the parts of every shard that has any, in order."""
    tars = ((path, True) for path in _paths(output.child(SHARDS)))
    parts = ((path, False) for path in _paths(output.child(PARTS)))
    for _, group in groupby(heapq.merge(tars, parts), key=lambda item: item[0].partition("/")[0]):
        found = list(group)
        matches = map(_NAME.fullmatch, (path for path, is_tar in found if is_tar))
        yield (
            [Tar(int(m[1]), int(m[2]), int(m[3]), m[4]) for m in matches if m is not None],  # others are none of ours
            parse_parts(path for path, is_tar in found if not is_tar),
        )


def _paths(folder: Folder) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        for file in folder.walk():
            yield file.path
