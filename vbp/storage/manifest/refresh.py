"""``--refresh``: list the same input again, and find images that are new, changed or gone.

Both listings are streams in the same order, so they are compared side by side.  New images become new shards.  The
rows of a changed image are deleted from the ledger *before* a manifest with its new size and version counts.  So
at whatever moment a run dies, the image still counts as changed, or as not done, or is done again.  Images that are
gone keep their rows and results.

Memory holds one shard of each listing so far, and the changed images of one file of the manifest: about 150 MB if
every image has changed.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import pyarrow as pa

from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest.manifest import Manifest, append, name_of, new_files
from vbp.storage.manifest.rows import First, in_order, order_of, rows_of, table_of
from vbp.storage.parquet import open_parquet

_THREADS = 16

Forget = Callable[[int, Mapping[int, ManifestRow]], None]
"""Deletes the rows of some images from the ledger, by shard and positions."""


class Changes(NamedTuple):
    """How a listing differs from the manifest, in numbers of images."""

    new: int
    changed: int
    gone: int
    """0 if the listing was cut at its limit, since the images after it are unknown."""
    beyond: int = 0
    """New images that are not listed because of the limit."""


def refresh_manifest(
    output: Folder,
    manifest: Manifest,
    source: Iterable[ManifestRow],
    limit: int | None = None,
    *,
    forget: Forget | None = None,
    before_change: Callable[[], None] | None = None,
    accept: Callable[[Manifest], object] = lambda longer: None,
    left_out: LeftOut | None = None,
    suffixes: tuple[str, ...] | None = None,
) -> tuple[Manifest, Changes]:
    """Append the new images of ``source`` to the manifest, and delete the rows of changed images from the ledger.

    An image has changed if its size or version (if both listings have it), its URI or its label differs.  The call
    may be killed at any time; a repeated call completes it.

    Args:
        output: OUTPUT.
        manifest: the manifest so far; its images keep their shards and positions.
        source: rows from ``list_tree`` or ``read_manifest_input``.
        limit: the most images of ``source`` that are read, and the most that the manifest may hold.  A run does the
            first ``limit`` images of the manifest, so an image listed after them would never be done.
        forget: called, in threads, for each shard with changed images; None leaves their rows as they are.
        before_change: called before the ledger or the manifest changes, maybe more than once; never called if
            nothing is new or changed.
        accept: called with the manifest with the new images, before it counts; may refuse it by a UsageError.
        left_out: files that ``source`` leaves out, counted while it runs; for the record.
        suffixes: ``--suffixes``, if given; for the record.

    Raises:
        UsageError: two images of a manifest file have one key, or there are too many shards.
    """
    manifest = replace(manifest, folder=output)
    first = First(source, limit)
    rewriter = _Rewriter(manifest, forget, before_change) if forget else None
    comparison = _Comparison(manifest, first, rewriter, left_out)
    extended = append(
        manifest,
        comparison.new_rows(),
        first,
        before_change,
        accept,
        relabelled=comparison.relabelled,
        rewritten=rewriter.files if rewriter else {},
        left_out=left_out,
        suffixes=suffixes,
    )
    return extended, comparison.changes()


class _Place(NamedTuple):
    """Where the manifest holds a row."""

    listing: int
    part: int
    group: int
    """Number of the row group in the file; a row group is a shard."""
    position: int


class _Comparison:
    """Compares a listing with the manifest: yields new rows, and counts the others."""

    def __init__(
        self, manifest: Manifest, source: First, rewriter: "_Rewriter | None", left_out: LeftOut | None = None
    ):
        self._manifest, self._source, self._rewriter, self._left_out = manifest, source, rewriter, left_out
        self._new = self._changed = self._gone = self._beyond = 0
        self.relabelled: set[str] = set()

    def new_rows(self) -> Iterator[ManifestRow]:
        """Rows that the manifest does not have; after the last one all changed rows are in new files."""
        for row, known in _side_by_side(in_order(self._source, self._left_out), _listed(self._manifest)):
            if known is None and row is not None:
                if self._has_room():
                    self._new += 1
                    yield row
                else:
                    self._beyond += 1
                    self._source.cut = True
            elif row is None:
                self._gone += 1
            elif known is not None and self._rewriter and _differs(row, known[0]):
                self._changed += 1
                if row.label is not None:
                    self.relabelled.add(row.label)
                self._rewriter.add(known[1], row)
        if self._rewriter:
            self._rewriter.finish()

    def changes(self) -> Changes:
        return Changes(self._new, self._changed, 0 if self._source.cut else self._gone, self._beyond)

    def _has_room(self) -> bool:
        limit = self._source.limit
        return limit is None or self._manifest.images + self._new < limit


class _Rewriter:
    """Collects changed rows, and makes a new file of the manifest when the comparison has passed the old one.

    Attributes:
        files: names of the new files, by the number of the file that they replace.
    """

    def __init__(self, manifest: Manifest, forget: Forget, before_change: Callable[[], None] | None):
        self._manifest, self._forget, self._before_change = manifest, forget, before_change
        self.files: dict[int, str] = {}
        self._waiting: dict[int, tuple[int, defaultdict[int, dict[int, ManifestRow]]]] = {}

    def add(self, place: _Place, row: ManifestRow) -> None:
        """Record ``row`` as the new row at ``place``."""
        part, rows = self._waiting.setdefault(place.listing, (place.part, defaultdict(dict)))
        if part != place.part:
            self._apply(place.listing)
            self.add(place, row)
        else:
            rows[place.group][place.position] = row

    def finish(self) -> None:
        """Make the new files that are left."""
        for listing in sorted(self._waiting):
            self._apply(listing)

    def _apply(self, listing: int) -> None:
        part, rows = self._waiting.pop(listing)
        if self._before_change:
            self._before_change()
        shard = self._manifest.first_shard(listing) + part * self._manifest.shards_per_part
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda group: self._forget(shard + group, rows[group]), rows))
        number = self._manifest.first_part(listing) + part
        self.files[number] = _rewritten(self._manifest.folder, self._manifest.path(listing, part), rows)


def _rewritten(output: Folder, path: str, changed: Mapping[int, Mapping[int, ManifestRow]]) -> str:
    """Copy a file of the manifest with changed rows, by row group and position; returns the name of the new one."""
    writer = new_files(output)
    with open_parquet(output, path) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)
            writer.add(_with(table, changed[group]) if group in changed else table)
    writer.roll()
    return name_of(next(iter(writer.files)))


def _with(table: pa.Table, rows: Mapping[int, ManifestRow]) -> pa.Table:
    """The table with some of its rows replaced."""
    take = list(range(table.num_rows))
    for number, position in enumerate(rows):
        take[position] = table.num_rows + number
    return pa.concat_tables([table, table_of(list(rows.values()))]).take(pa.array(take)).combine_chunks()


def _differs(row: ManifestRow, known: ManifestRow) -> bool:
    told = ((row.size, known.size), (row.version, known.version))
    moved = (row.uri, row.label) != (known.uri, known.label)
    return moved or any(now != before for now, before in told if None not in (now, before))


def _side_by_side(
    rows: Iterator[ManifestRow], listed: Iterator[tuple[ManifestRow, _Place]]
) -> Iterator[tuple[ManifestRow | None, tuple[ManifestRow, _Place] | None]]:
    """Pairs of rows of the same image from both streams; None in place of a missing row."""
    known = next(listed, None)
    for row in rows:
        order = order_of(row)
        while known is not None and order_of(known[0]) < order:
            yield None, known
            known = next(listed, None)
        if known is not None and order_of(known[0]) == order:
            yield row, known
            known = next(listed, None)
        else:
            yield row, None
    while known is not None:
        yield None, known
        known = next(listed, None)


def _listed(manifest: Manifest) -> Iterator[tuple[ManifestRow, _Place]]:
    """The rows of the manifest and their places, in order."""
    listings = range(len(manifest.listings))
    return heapq.merge(*(_listed_in(manifest, listing) for listing in listings), key=lambda known: order_of(known[0]))


def _listed_in(manifest: Manifest, listing: int) -> Iterator[tuple[ManifestRow, _Place]]:
    shards = range(*map(manifest.first_shard, (listing, listing + 1)))
    for part, own in groupby(shards, lambda shard: (shard - shards.start) // manifest.shards_per_part):
        with open_parquet(manifest.folder, manifest.path(listing, part)) as parquet:
            for group, shard in enumerate(own):
                rows = rows_of(manifest.conformed(shard, parquet.read_row_group(group)))
                for position, row in enumerate(rows):
                    yield row, _Place(listing, part, group, position)
