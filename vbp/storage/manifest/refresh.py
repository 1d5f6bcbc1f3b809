"""``--refresh``: list the same input again, and find images that are new, changed or gone.

Both listings are streams in the same order, so they are compared side by side.  New images become new shards.  The
rows of a changed image are deleted from the ledger *before* a manifest with its new size and version counts.  So
at whatever moment a run dies, the image still counts as changed, or as not done, or is done again.

Images that are gone keep their places, rows and results; the manifest marks them.  They are not tried again, their
error rows do not count, and nobody misses a row of theirs.  An image that comes back as it was gets its row back.

Memory holds one shard of each listing so far, and the changed and gone images of one file of the manifest: about 150
MB if every image has changed.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import pyarrow as pa

from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest.files import name_of, new_files
from vbp.storage.manifest.manifest import Manifest, append
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
    """Images that the listing lacks, also those that an earlier one lacked; without those after its limit, which are
    unknown."""
    beyond: int = 0
    """New images that are not listed because of the limit."""
    back: int = 0
    """Images that were gone and are listed again; if they are other ones now, or may be, they also count as changed."""


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
        forget: called, in threads, for each shard with changed images; None leaves their rows as they are, and marks
            no image as gone.
        before_change: called before the ledger or the manifest changes, maybe more than once; never called if
            nothing is new, changed, gone or back.
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
        gone=comparison.gone if rewriter else None,
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
    """Compares a listing with the manifest: yields new rows, and counts the others.

    Attributes:
        relabelled: new labels of known images.
        gone: number of images that are gone, by shard.
    """

    def __init__(
        self, manifest: Manifest, source: First, rewriter: "_Rewriter | None", left_out: LeftOut | None = None
    ):
        self._manifest, self._source, self._rewriter, self._left_out = manifest, source, rewriter, left_out
        self._counts = Counter[str]()
        self.relabelled: set[str] = set()
        self.gone = Counter[int]()

    def new_rows(self) -> Iterator[ManifestRow]:
        """Rows that the manifest does not have; after the last one all changed rows are in new files."""
        for row, known in _side_by_side(in_order(self._source, self._left_out), _listed(self._manifest)):
            if known is not None:
                self._compare(row, *known)
            elif row is not None:
                kind = "new" if self._has_room() else "beyond"
                self._counts[kind] += 1
                if kind == "new":
                    yield row
        self._source.cut = self._source.cut or self._counts["beyond"] > 0
        if self._rewriter:
            self._rewriter.finish()

    def changes(self) -> Changes:
        return Changes(**{name: self._counts[name] for name in Changes._fields})

    def _has_room(self) -> bool:
        limit = self._source.limit
        return limit is None or self._manifest.images + self._counts["new"] < limit

    def _compare(self, row: ManifestRow | None, known: ManifestRow, place: _Place) -> None:
        """Count a known image, and mark what has become of it; `row` is None if the listing lacks it."""
        if row is None:
            if self._source.cut:  # it may come after the limit
                row = known
            else:
                self._counts["gone"] += 1
                row = known._replace(gone=True)
        elif known.gone:
            self._counts["back"] += 1
        if row.gone:
            self.gone[self._manifest.shard_at(place.listing, place.part, place.group)] += 1
        if self._rewriter is None or row == known:
            return
        is_other = not row.gone and (not _is_surely_the_same(row, known) if known.gone else _differs(row, known))
        self._counts["changed"] += is_other
        if is_other or row.gone != known.gone:
            self._rewriter.add(place, row, is_other=is_other)
        if row.label is not None and row.label != known.label:
            self.relabelled.add(row.label)


class _Rewriter:
    """Collects changed rows, and makes a new file of the manifest when the comparison has passed the old one.

    Attributes:
        files: names of the new files, by the number of the file that they replace.
    """

    def __init__(self, manifest: Manifest, forget: Forget, before_change: Callable[[], None] | None):
        self._manifest, self._forget, self._before_change = manifest, forget, before_change
        self.files: dict[int, str] = {}
        self._waiting: dict[int, _Waiting] = {}

    def add(self, place: _Place, row: ManifestRow, *, is_other: bool) -> None:
        """Record ``row`` as the new row at ``place``; `is_other`: the ledger's rows are of another image."""
        waiting = self._waiting.setdefault(place.listing, _Waiting(place.part))
        if waiting.part != place.part:
            self._apply(place.listing)
            self.add(place, row, is_other=is_other)
            return
        waiting.rows[place.group][place.position] = row
        if is_other:
            waiting.others[place.group][place.position] = row

    def finish(self) -> None:
        """Make the new files that are left."""
        for listing in sorted(self._waiting):
            self._apply(listing)

    def _apply(self, listing: int) -> None:
        waiting = self._waiting.pop(listing)
        if self._before_change:
            self._before_change()
        first = self._manifest.shard_at(listing, waiting.part)
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda group: self._forget(first + group, waiting.others[group]), waiting.others))
        number = self._manifest.first_part(listing) + waiting.part
        self.files[number] = _rewritten(self._manifest, self._manifest.path(listing, waiting.part), first, waiting.rows)


class _Waiting:
    """New rows of one file of the manifest, by row group and position."""

    def __init__(self, part: int):
        self.part = part
        self.rows: defaultdict[int, dict[int, ManifestRow]] = defaultdict(dict)
        self.others: defaultdict[int, dict[int, ManifestRow]] = defaultdict(dict)
        """Those of them whose rows in the ledger are of another image."""


def _rewritten(manifest: Manifest, path: str, first: int, changed: Mapping[int, Mapping[int, ManifestRow]]) -> str:
    """Copy a file of the manifest with changed rows, by row group and position; returns the name of the new one.

    `first`: the shard that is its first row group.
    """
    writer = new_files(manifest.folder)
    with open_parquet(manifest.folder, path) as parquet:
        for group in range(parquet.num_row_groups):
            table = manifest.conformed(first + group, parquet.read_row_group(group))
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


def _is_surely_the_same(row: ManifestRow, known: ManifestRow) -> bool:
    """Whether an image that comes back is the one that was gone; without a version nobody knows."""
    return row.version is not None and row == known._replace(gone=row.gone)


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
