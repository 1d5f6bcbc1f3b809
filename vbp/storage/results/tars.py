"""Tar files of results, one for each commit of a shard: ``OUTPUT/shards/<shard>/<first>-<last>-<digest>.tar``.

A tar is written before the part whose rows point into it. Its name holds the digest of its content, so a tar never
changes under its name: a commit that is repeated with the same result overwrites its own tar, and one that came to
another result, of an attempt that overlapped or on another device, goes to another. What a row says of offsets holds
for ever.

A commit that was cut off between tar and part, or whose rows were taken back, leaves a tar without a row.
"""

import hashlib
import re
from collections.abc import Collection
from typing import NamedTuple

from vbp.storage.files import Folder
from vbp.storage.outline import TARS

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
        return f"{TARS}/{self.shard:06d}/{self.first:06d}-{self.last:06d}-{self.digest}.tar"


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


def parse_tar(path: str) -> Tar | None:
    """What the name of a tar tells, by its path in ``shards/``; None for other files."""
    match = _NAME.fullmatch(path)
    return Tar(int(match[1]), int(match[2]), int(match[3]), match[4]) if match else None


def path_of(uri: str) -> str:
    """The path in OUTPUT of the tar that a row points to; OUTPUT may have been moved since, or have another URL now."""
    return "/".join(uri.split("/")[-3:])


def shard_of(path: str) -> int | None:
    """The shard of a tar, by its path in OUTPUT; None for other files."""
    tar = parse_tar(path.removeprefix(f"{TARS}/"))
    return tar.shard if tar else None
