"""Another listing of the same input: what is new, what was replaced, and what is gone.

Both listings are streams in one order, so they are compared side by side. New images become new shards. A changed one
is forgotten by the ledger *before* its row of the manifest tells the new size and version: whenever a run dies, an
image is either known to have changed, or pending, or done anew. What is gone keeps its row, and its results.

Memory: one shard of each listing so far, and of the changed images those of one file of the manifest, about 150 MB
where every image has changed.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import pyarrow as pa

from vbp.columns import MANIFEST_SCHEMA
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest.manifest import MANIFEST_PARTS, Manifest, append
from vbp.storage.manifest.rows import First, in_order, order_of, rows_of, table_of
from vbp.storage.parquet import RollingParquet, numbered, open_parquet

_THREADS = 16

Forget = Callable[[int, Mapping[int, ManifestRow]], None]
"""Takes back what is on record of images of a shard, by position."""


class Changes(NamedTuple):
    """How a listing differs from what was listed before, in images."""

    new: int
    changed: int
    gone: int
    """0 where the listing was cut at its limit: nobody knows what came after."""
    beyond: int = 0
    """New, but not listed: with them more would be listed than the limit allows."""


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
    """Append the images of ``source`` that are not listed yet, and forget those that have changed.

    An image has changed when its size or version (where both listings know it), its URI or its label differ. Killed
    at any time and repeated, it comes to the same end.

    Args:
        output: OUTPUT.
        manifest: what is listed so far; shards and positions of its images stay.
        source: rows of ``list_tree`` or of ``read_manifest_input``.
        limit: look at the first so many images only, and list no more than so many in all: the limit counts in the
            order of the manifest, and what is listed behind it would never be done.
        forget: called, in threads, for each shard with changed images; None leaves these as they are.
        before_change: called before the ledger or the list of images changes, maybe more than once; never where
            nothing is new or changed.
        accept: called with the manifest that new images make, before it counts; refuses it by a UsageError.
        left_out: what ``source`` passes over, counted as it goes; for the record.
        suffixes: of images, where they are others than usual; for the record.

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
        left_out=left_out,
        suffixes=suffixes,
    )
    return extended, comparison.changes()


class _Place(NamedTuple):
    """Where the manifest holds a row."""

    listing: int
    part: int
    group: int
    """Of the part's row groups, each of which is a shard."""
    position: int


class _Comparison:
    """A listing beside the one before: yields what is new, counts the rest."""

    def __init__(
        self, manifest: Manifest, source: First, rewriter: "_Rewriter | None", left_out: LeftOut | None = None
    ):
        self._manifest, self._source, self._rewriter, self._left_out = manifest, source, rewriter, left_out
        self._new = self._changed = self._gone = self._beyond = 0
        self.relabelled: set[str] = set()

    def new_rows(self) -> Iterator[ManifestRow]:
        """Rows that no listing has; when they end, everything that changed has been dealt with."""
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
    """Changed rows wait here until the comparison has left the file of the manifest that holds them."""

    def __init__(self, manifest: Manifest, forget: Forget, before_change: Callable[[], None] | None):
        self._manifest, self._forget, self._before_change = manifest, forget, before_change
        self._waiting: dict[int, tuple[int, defaultdict[int, dict[int, ManifestRow]]]] = {}

    def add(self, place: _Place, row: ManifestRow) -> None:
        """Note that the row at ``place`` is now ``row``."""
        part, rows = self._waiting.setdefault(place.listing, (place.part, defaultdict(dict)))
        if part != place.part:
            self._apply(place.listing)
            self.add(place, row)
        else:
            rows[place.group][place.position] = row

    def finish(self) -> None:
        """Apply what is left."""
        for listing in sorted(self._waiting):
            self._apply(listing)

    def _apply(self, listing: int) -> None:
        part, rows = self._waiting.pop(listing)
        if self._before_change:
            self._before_change()
        shard = self._manifest.first_shard(listing) + part * self._manifest.shards_per_part
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda group: self._forget(shard + group, rows[group]), rows))
        _rewrite(self._manifest.folder, self._manifest.first_part(listing) + part, rows)


def _rewrite(output: Folder, part: int, changed: Mapping[int, Mapping[int, ManifestRow]]) -> None:
    """Put changed rows into a file of the manifest, by row group and position; the file is replaced as a whole."""
    writer = RollingParquet(output, MANIFEST_PARTS, MANIFEST_SCHEMA, part)
    with open_parquet(output, numbered(MANIFEST_PARTS, part)) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)
            writer.add(_with(table, changed[group]) if group in changed else table)
    writer.roll()


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
    """Both streams, rows of one image together, None beside what only one of them has."""
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
    """What all listings so far hold, in order."""
    listings = range(len(manifest.listings))
    return heapq.merge(*(_listed_in(manifest, listing) for listing in listings), key=lambda known: order_of(known[0]))


def _listed_in(manifest: Manifest, listing: int) -> Iterator[tuple[ManifestRow, _Place]]:
    first, shards = manifest.first_part(listing), range(*map(manifest.first_shard, (listing, listing + 1)))
    for part, own in groupby(shards, lambda shard: (shard - shards.start) // manifest.shards_per_part):
        with open_parquet(manifest.folder, numbered(MANIFEST_PARTS, first + part)) as parquet:
            for group, shard in enumerate(own):
                rows = rows_of(manifest.conformed(shard, parquet.read_row_group(group)))
                for position, row in enumerate(rows):
                    yield row, _Place(listing, part, group, position)
