"""Stretches: a large tree is listed by several workers, each of which writes the rows of some branches.

A first process lists the tree until it has found ``ALONE`` images, so that small trees cost nothing more.  From there
on the tree is cut into branches, and each worker takes some that follow each other.  Their rows are a *stretch*, which
it writes into files of the manifest that no ``manifest.json`` names, so they count for nothing.  When all stretches
are there, their numbers of rows say which rows belong to which file of the manifest, and workers make these files.

Whatever is left by a worker or by a listing that was killed is removed by the next one, as are all files that no
manifest names.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile, islice
from typing import NamedTuple

import pyarrow as pa

from vbp.storage.collections.tree import ManifestRow, list_tree
from vbp.storage.files import Branch, Folder
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest.files import name_of, new_files
from vbp.storage.manifest.rows import Labels, rows_of, table_of
from vbp.storage.parquet import open_parquet
from vbp.storage.spreading import Spread

ALONE = 200_000
"""Images that one process lists before others help: about 10 s in a bucket, 3 s on a disk.  These are more than anybody
reads ahead of the rows that are written, so no file is counted twice as left out."""
TASKS = 512
"""The most stretches of a listing."""
KINDS = 10_000
"""The most kinds of files that are left out and counted one by one in a stretch."""
_ROWS_AT_ONCE, _GROUPS_IN_FILE = 16_384, 16

Check = Callable[[Iterator[ManifestRow]], Iterator[ManifestRow]]
"""Passes rows on, and refuses some by a UsageError."""


class Piece(NamedTuple):
    """Rows of a file that follow each other."""

    path: str
    """Path in OUTPUT."""
    start: int
    """Number of the first row."""
    end: int


class Stretch(NamedTuple):
    """Rows of a listing that follow each other, in files."""

    images: int
    labels: Sequence[str]
    """The different labels, in the order in which they were found."""
    left_out: Mapping[str, int]
    pieces: Sequence[Piece]
    """All rows of the files; none if the rows were only looked at."""


@dataclass(frozen=True)
class ToList:
    """What one worker lists."""

    source: Folder
    """INPUT."""
    branches: Sequence[Branch]
    after: bytes
    """The path up to which all is listed already."""
    suffixes: Sequence[str]
    check: Check
    output: Folder | None
    """OUTPUT; None: look only, and write nothing."""


@dataclass(frozen=True)
class ToMake:
    """A file of the manifest that one worker makes."""

    output: Folder
    pieces: Sequence[Piece]
    """Its rows."""
    shard_size: int


def list_stretch(task: ToList) -> Stretch:
    """List some branches; a repeated call writes other files.

    Raises:
        StorageError: a folder cannot be listed; names it.
        UsageError: an image is refused.
    """
    left_out, labels, images = LeftOut(KINDS), Labels(), 0
    files = dropwhile(lambda file: os.fsencode(file.path) <= task.after, task.source.walk_branches(task.branches))
    rows = task.check(list_tree(task.source, suffixes=task.suffixes, left_out=left_out, files=files))
    writer = None if task.output is None else new_files(task.output)
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        images += len(some)
        labels.add(row.label for row in some)
        if writer is not None:
            writer.add(table_of(some))
            if writer.groups == _GROUPS_IN_FILE:
                writer.roll()
    if writer is not None:
        writer.roll()
    full = _ROWS_AT_ONCE * _GROUPS_IN_FILE
    pieces = [Piece(path, 0, min(full, images - n * full)) for n, path in enumerate(writer.files if writer else ())]
    return Stretch(images, labels.found, left_out.counts, pieces)


def make_file(task: ToMake) -> str:
    """Make a file of the manifest, with a row group for each shard; returns its name.  A repeated call makes another.

    Raises:
        UsageError: a file of a stretch is damaged.
    """
    writer = new_files(task.output)
    for shard in _in_shards(_read(task.output, task.pieces), task.shard_size):
        writer.add(shard)
    writer.roll()
    return name_of(next(iter(writer.files)))


@dataclass(frozen=True)
class Rest:
    """What is left of a tree when one process has listed for a while: workers list it."""

    spread: Spread
    """Gives the work to the workers."""
    source: Folder
    """INPUT."""
    output: Folder
    """OUTPUT."""
    suffixes: Sequence[str]
    check: Check
    left_out: LeftOut
    """Counts the files that are no images, as the listing goes."""
    told: Callable[[int], None]
    """Is called with the number of images so far."""
    stop: Callable[[], None]
    """Is called before the workers begin: ends the listing of this process."""

    def stretches(self, last: ManifestRow, images: int, *, look: bool = False) -> Iterator[Stretch] | None:
        """The stretches of all rows behind a row, in order; None if the tree cannot be cut, and this process goes on.

        Args:
            last: the last row that was listed here.
            images: number of rows that were listed here.
            look: whether nothing is written.

        Raises:
            StorageError, UsageError: as for `list_stretch`.
        """
        after = last.path
        branches = None if after is None else self.source.cut_up(after)
        if after is None or branches is None:
            return None
        self.stop()
        output, size = None if look else self.output, math.ceil(len(branches) / TASKS)
        some = (branches[start : start + size] for start in range(0, len(branches), size))
        return self._listed(
            (ToList(self.source, each, after, self.suffixes, self.check, output) for each in some), images
        )

    def _listed(self, tasks: Iterable[ToList], images: int) -> Iterator[Stretch]:
        def tell(stretch: Stretch) -> None:
            nonlocal images
            images += stretch.images
            self.told(images)

        for stretch in self.spread(list_stretch, tasks, tell):
            for kind, files in stretch.left_out.items():
                self.left_out.count(kind, files)
            yield stretch

    def rows(self, listed: Iterable[ManifestRow]) -> Iterator[ManifestRow]:
        """The rows of `listed`, a listing of this process; after some time, workers list, and their rows are read."""
        for number, row in enumerate(listed, start=1):
            yield row
            stretches = self.stretches(row, number) if number == ALONE else None
            if stretches is not None:
                for stretch in stretches:
                    for table in _read(self.output, stretch.pieces):
                        yield from rows_of(table)
                return

    def labels(self, listed: Iterable[ManifestRow]) -> set[str]:
        """The labels of all rows, as of `rows`; nothing is written."""
        labels = set[str]()
        for number, row in enumerate(listed, start=1):
            labels |= set() if row.label is None else {row.label}
            stretches = self.stretches(row, number, look=True) if number == ALONE else None
            if stretches is not None:
                return labels.union(*(stretch.labels for stretch in stretches))
        return labels

    def files(self, pieces: Iterable[Piece], rows: int, shard_size: int) -> Iterator[str]:
        """Names of the files of the manifest that are made of these pieces, with so many `rows` each."""
        tasks = (ToMake(self.output, each, shard_size) for each in _in_files(pieces, rows))
        return self.spread(make_file, tasks)


def _in_files(pieces: Iterable[Piece], rows: int) -> Iterator[list[Piece]]:
    """The pieces cut into lists with so many rows each; the last list may have fewer."""
    waiting, room = list[Piece](), rows
    for piece in pieces:
        start = piece.start
        while start < piece.end:
            end = min(piece.end, start + room)
            waiting.append(Piece(piece.path, start, end))
            room -= end - start
            start = end
            if not room:
                yield waiting
                waiting, room = [], rows
    if waiting:
        yield waiting


def _read(output: Folder, pieces: Iterable[Piece]) -> Iterator[pa.Table]:
    """The rows of the pieces, in order, a row group at a time."""
    for path, start, end in pieces:
        with open_parquet(output, path) as file:
            first = 0
            for group in range(file.num_row_groups):
                after = first + file.metadata.row_group(group).num_rows
                if start < after and first < end:
                    table = file.read_row_group(group)
                    yield table.slice(max(0, start - first), min(end, after) - max(start, first))
                first = after
            if first < end:
                raise pa.ArrowInvalid(f"it has {first} rows, not {end}")


def _in_shards(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The rows of the tables in tables of so many rows; the last one may have fewer."""
    waiting, room = list[pa.Table](), size
    for table in tables:
        start = 0
        while start < table.num_rows:
            waiting.append(table.slice(start, room))
            start += waiting[-1].num_rows
            room -= waiting[-1].num_rows
            if not room:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, room = [], size
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
