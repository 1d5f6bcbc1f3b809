"""Tar files of results, one for each commit of a shard: ``OUTPUT/shards/<shard>/<first>-<last>-<digest>.tar``.

A tar is written before the part whose rows point into it.  Its name has a digest of its content, so the content under
a name never changes, and the offsets in rows stay valid.  A commit that is repeated with the same result overwrites
its own tar.  A commit with another result (of an overlapping attempt, or on another device) writes another tar.

If a commit is killed between tar and part, or its rows are deleted, the tar is an orphan.
"""

import hashlib
import re
from collections.abc import Collection
from typing import NamedTuple

from vbp.storage.files import Folder
from vbp.storage.outline import TARS

_NAME = re.compile(r"(\d{6})/(\d{6,})-(\d{6,})-([0-9a-f]{16})\.tar")


class Tar(NamedTuple):
    """The facts in the name of a tar."""

    shard: int
    first: int
    last: int
    """The smallest and the largest position of its commit."""
    digest: str
    """Digest of the tar's bytes."""

    @property
    def path(self) -> str:
        """The tar's path in OUTPUT."""
        return f"{TARS}/{self.shard:06d}/{self.first:06d}-{self.last:06d}-{self.digest}.tar"


def write_tar(output: Folder, data: bytes, shard: int, positions: Collection[int]) -> str:
    """Write a tar of results.

    Args:
        output: OUTPUT.
        data: bytes of the archive.
        shard: number of the shard whose images it holds.
        positions: all positions of the commit, also of images without results.

    Returns:
        The tar's path.

    Raises:
        StorageError: the store refuses the file.
    """
    digest = hashlib.sha256(data).hexdigest()[:16]
    tar = Tar(shard, min(positions), max(positions), digest)
    output.write(tar.path, data)
    return tar.path


def parse_tar(path: str) -> Tar | None:
    """Parse the path of a tar in ``shards/``; None for other files."""
    match = _NAME.fullmatch(path)
    return Tar(int(match[1]), int(match[2]), int(match[3]), match[4]) if match else None


def path_of(uri: str) -> str:
    """The path in OUTPUT of the tar at `uri`, also if OUTPUT had another URL when the row was written."""
    return "/".join(uri.split("/")[-3:])


def shard_of(path: str) -> int | None:
    """The shard number in a tar's path in OUTPUT; None for other files."""
    tar = parse_tar(path.removeprefix(f"{TARS}/"))
    return tar.shard if tar else None
