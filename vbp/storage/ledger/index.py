"""The ledger, which records what is done for each image, and the index, which is made from it.

::

    OUTPUT/_run/parts/<shard>/<name>.parquet   the only record of what is done: rows of one shard
    OUTPUT/index/part-NNNNN.parquet            made from the parts at the end: one row per image

An image may have rows in several parts, because of retries and overlapping attempts: the newest ok row counts, else
the newest error row.  Of an image that is gone from INPUT only an ok row counts.  The name of a part says its attempt,
the positions of its rows in the shard, and the number of ok rows.  So most questions need only a listing.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vbp.columns import INDEX_SCHEMA, PART_SCHEMA
from vbp.errors import StorageError
from vbp.storage.files import File, Folder
from vbp.storage.ledger.parts import (
    PARTS,
    Part,
    conformed,
    current,
    newest,
    parse_parts,
    parts_of,
    read_parts,
    write_part,
)
from vbp.storage.manifest.manifest import Manifest
from vbp.storage.outline import INDEX, INDEX_FILES
from vbp.storage.parquet import RollingParquet, Written
from vbp.storage.results.places import made_absolute, misplaced

__all__ = [
    "all_parts",
    "PendingShard",
    "Totals",
    "compact",
    "counts",
    "forget",
    "newest_rows",
    "parts_by_shard",
    "pending_shards",
    "progress",
    "read_index",
    "rows_left",
    "that_count",
    "write_part",
]

_INDEX_FILE = re.compile(rf"{INDEX}/part-\d{{5,}}\.parquet", re.ASCII)
_THREADS = 16
_ROWS_AT_ONCE = 65_536
INDEX_FILE_BYTES = 128_000_000


class PendingShard(NamedTuple):
    """A shard with images left to do."""

    shard: int
    images: int
    """Number of images that are left."""


@dataclass(frozen=True)
class Totals:
    """Totals of the index."""

    images: int
    """Images that should have a row: those of INPUT, and those that are gone from it and have a result."""
    ok: int
    error: int
    by_reason: dict[str, int]
    """Error rows by ``stage: type``."""
    files: Mapping[str, Written] = field(default_factory=dict, compare=False)
    """Files of the index, by path."""
    damaged: tuple[str, ...] = ()
    """Damaged parts, which were removed; images whose only row was there must be done again."""
    strange: int = 0
    """Rows of other images than the manifest has there (`strangers`); they were deleted, to be done again."""
    gone: int = 0
    """Rows of images that are gone from INPUT."""

    @property
    def missing(self) -> int:
        """Images without a row."""
        return self.images - self.ok - self.error


def pending_shards(
    output: Folder, manifest: Manifest, retry_failed: bool = False, limit: int | None = None
) -> Iterator[PendingShard]:
    """The shards with images left, in order.

    It streams one listing; a part is opened only if its name does not say enough.

    Args:
        output: OUTPUT.
        manifest: the list of images.
        retry_failed: whether images with an error row must be done again.
        limit: only the first ``limit`` images of the manifest count.
    """

    def left(task: tuple[int, list[Part]]) -> PendingShard:
        shard, parts = task
        wanted = _wanted(manifest, shard, limit)
        finished = _finished(output, parts, retry_failed, wanted, manifest.gone_in(shard))
        return PendingShard(shard, wanted - sum(position < wanted for position in finished))

    tasks = (task for task in parts_by_shard(output, manifest) if _wanted(manifest, task[0], limit))
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(tasks, _shards_at_once(manifest))):
            yield from (pending for pending in pool.map(left, batch) if pending.images)


def rows_left(
    output: Folder,
    manifest: Manifest,
    shard: int,
    retry_failed: bool = False,
    limit: int | None = None,
    parts: list[Part] | None = None,
) -> pa.Table:
    """The rows of ``Manifest.read_shard`` whose images are left to do; arguments as for ``pending_shards``.

    `parts`: the shard's parts, if they are listed already.
    """
    wanted = _wanted(manifest, shard, limit)
    found = current(parts_of(output, shard) if parts is None else parts, manifest.generation)
    finished = _finished(output, found, retry_failed, wanted, manifest.gone_in(shard))
    rows = manifest.read_shard(shard).slice(0, wanted)
    return rows.filter(pc.invert(pc.is_in(rows["position"], pa.array(finished, pa.int32()))))


def progress(output: Folder, manifest: Manifest) -> tuple[int, int]:
    """Numbers of ok and of failed images, from the names of the parts alone.

    They are exact for finished shards. In other shards, an image that failed again in a retry counts twice.
    """
    ok = error = 0
    for shard, parts in parts_by_shard(output, manifest):
        shard_ok, shard_error = counts(parts, manifest.shard_images(shard))
        ok += shard_ok
        error += shard_error
    return ok, error


def counts(parts: list[Part], images: int) -> tuple[int, int]:
    """``progress`` of one shard with ``images`` images."""
    # A repeated task may have another result, in a part with another name: the better one counts.
    tasks = {(part.attempt, part.digest): part for part in sorted(parts, key=lambda part: part.ok)}
    ok = min(images, sum(part.ok for part in tasks.values()))
    return ok, min(images - ok, sum(part.error for part in tasks.values()))


def newest_rows(
    output: Folder, manifest: Manifest, columns: list[str], where: Callable[[list[Part]], bool] = bool
) -> Iterator[tuple[int, pa.Table]]:
    """The newest rows, shard by shard in order: one row for every image that has rows.

    Args:
        output: OUTPUT.
        manifest: the list of images.
        columns: columns of ``PART_SCHEMA``, among them those that ``newest`` needs.
        where: says, given a shard's parts, whether to read it; by default every shard with parts is read.
    """
    tasks = (task for task in parts_by_shard(output, manifest) if where(task[1]))
    for batch in _read_newest(output, manifest, columns, tasks):
        yield from batch


def read_index(output: Folder, columns: list[str], damaged: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of the index as tables, in the order of its files.

    Args:
        output: OUTPUT.
        columns: columns of ``INDEX_SCHEMA``.
        damaged: a list that gets the paths of damaged files.

    Raises:
        StorageError: a file is damaged, and ``damaged`` is None.
    """
    for path in output.list(INDEX):
        if not _INDEX_FILE.fullmatch(path):
            continue
        try:
            with output.open(path) as file:
                for batch in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, columns=columns):
                    yield conformed(pa.Table.from_batches([batch]), columns)
        except (pa.ArrowException, OSError, KeyError) as error:
            if isinstance(error, (FileNotFoundError, PermissionError)):
                raise
            if damaged is None:
                remedy = f"run vbp validate {output.url} --repair, then the run's command again"
                why = " ".join(str(error).split())  # Arrow's own messages may have lines
                raise StorageError(f"{output.uri(path)} is damaged ({why}); {remedy}") from error
            damaged.append(path)


def others_in_index(output: Folder) -> list[str]:
    """Files in the folder of the index that no run has written; other programs may read them as rows."""
    return [path for path in output.list(INDEX) if not _INDEX_FILE.fullmatch(path)]


def compact(output: Folder, manifest: Manifest, limit: int | None = None) -> Totals:
    """Make the index from the parts, in files of about 128 MB, in the order of the manifest.

    A repeated call writes the same files.  It may be killed at any time, since the index counts only while
    ``_SUCCESS`` exists; the caller writes that if ``ok + error == images``.
    """
    writer = RollingParquet(output, INDEX_FILES, INDEX_SCHEMA)
    images, gone, statuses, reasons = 0, 0, Counter[str](), Counter[str]()
    damaged: list[Part] = []
    strange: list[tuple[int, list[int]]] = []
    for read in _read_newest(output, manifest, PART_SCHEMA.names, parts_by_shard(output, manifest), damaged):
        batch, strangers = _separated(manifest, read)
        strange += strangers
        for shard, table in batch:
            wanted = _wanted(manifest, shard, limit)
            beyond = pc.or_(pc.greater_equal(table["position"], wanted), table["gone"])
            images += wanted - sum(position < wanted for position in manifest.gone_in(shard)) + _count(beyond)
            gone += _count(table["gone"])
        rows = pa.concat_tables(table for _, table in batch)
        statuses.update(rows["status"].to_pylist())
        reasons.update(_reasons(rows))
        if rows.num_rows:
            writer.add(made_absolute(output, rows).select(INDEX_SCHEMA.names))
        if writer.bytes >= INDEX_FILE_BYTES:
            writer.roll()
    if not statuses:
        writer.add(INDEX_SCHEMA.empty_table())
    writer.roll()
    writer.remove_later_files()
    for part in damaged:
        output.delete(part.path)
    for shard, positions in strange:
        forget(output, shard, positions)
    paths = tuple(sorted(part.path for part in damaged))
    count = sum(len(positions) for _, positions in strange)
    reasons_told = dict(reasons.most_common())
    return Totals(images, statuses["ok"], statuses["error"], reasons_told, writer.files, paths, count, gone)


def that_count(manifest: Manifest, shard: int, rows: pa.Table) -> pa.Table:
    """`rows` without error rows of images that are gone; fills the column ``gone`` if `rows` have it.

    `rows`: the newest rows of a shard, with ``position`` and ``status``.
    """
    is_gone = pc.is_in(rows["position"], pa.array(manifest.gone_in(shard), pa.int32()))
    if "gone" in rows.column_names:
        rows = rows.set_column(rows.column_names.index("gone"), "gone", is_gone)
    return rows.filter(pc.invert(pc.and_(is_gone, pc.equal(rows["status"], "error"))))


def _count(mask: pa.ChunkedArray) -> int:
    """Number of true values."""
    return int(pc.sum(mask, min_count=0).as_py())


def strangers(manifest: Manifest, shard: int, rows: pa.Table) -> pa.ChunkedArray:
    """Boolean mask of rows (`key`, `version`, `position`) that are not of the image which the manifest has there."""
    return pc.or_(*misfits(manifest.read_shard(shard, ["key", "version"]), rows))


def misfits(listed: pa.Table, rows: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Boolean masks of rows of another image than is listed there, and of rows of that image before it changed.

    The latter are by an attempt that came late, after a refresh.  A version that either does not have says nothing.

    Args:
        listed: `key` and `version` of a shard of the manifest.
        rows: `key`, `version` and `position` of the ledger's rows of this shard.
    """
    known = pc.less(rows["position"], listed.num_rows)
    theirs = listed.take(pc.if_else(known, rows["position"], 0))
    is_same = pc.and_(known, pc.equal(rows["key"], theirs["key"]))
    is_older = pc.fill_null(pc.not_equal(rows["version"], theirs["version"]), False)
    return pc.invert(is_same), pc.and_(is_same, is_older)


def _separated(
    manifest: Manifest, batch: list[tuple[int, pa.Table]]
) -> tuple[list[tuple[int, pa.Table]], list[tuple[int, list[int]]]]:
    """The rows that belong to the manifest, and the positions of all other rows, both by shard.

    Rows that name an impossible place of a result do not belong to it either.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        masks = list(pool.map(lambda task: pc.or_(strangers(manifest, *task), misplaced(task[1])), batch))
    kept = [(shard, rows.filter(pc.invert(mask))) for (shard, rows), mask in zip(batch, masks, strict=True)]
    others = [
        (shard, found)
        for (shard, rows), mask in zip(batch, masks, strict=True)
        if (found := rows.filter(mask)["position"].to_pylist())
    ]
    return kept, others


def forget(output: Folder, shard: int, positions: Collection[int]) -> int:
    """Delete the rows of some images of a shard from all its parts, so that they are done again.

    The caller holds the lease and has deleted ``_SUCCESS``.  If a part has other rows too, a new part with these is
    written before the old one is deleted.  So a kill in between loses nothing, and the next call completes the work.

    Returns:
        Number of the images that had a row.
    """
    wanted = pa.array(sorted(set(positions)), pa.int32())
    forgotten: set[int] = set()
    for part in parts_of(output, shard):
        if not any(part.first <= position <= part.last for position in positions):
            continue
        rows = read_parts(output, [part], PART_SCHEMA.names)
        theirs = pc.is_in(rows["position"], wanted)
        found = rows.filter(theirs)["position"].to_pylist()
        if not found:
            continue
        kept = rows.filter(pc.invert(theirs))
        if kept.num_rows:
            write_part(output, kept.drop_columns("shard"), shard, part.attempt, part.generation)
        output.delete(part.path)
        forgotten.update(found)
    return len(forgotten)


def _read_newest(
    output: Folder,
    manifest: Manifest,
    columns: list[str],
    tasks: Iterator[tuple[int, list[Part]]],
    damaged: list[Part] | None = None,
) -> Iterator[list[tuple[int, pa.Table]]]:
    """The newest rows of shards, in lists of as many shards as memory allows; `damaged` as for ``read_parts``."""

    def read(task: tuple[int, list[Part]]) -> tuple[int, pa.Table]:
        shard, parts = task
        return shard, that_count(manifest, shard, newest(read_parts(output, parts, columns, damaged)))

    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(tasks, _shards_at_once(manifest))):
            yield list(pool.map(read, batch))


def parts_by_shard(output: Folder, manifest: Manifest) -> Iterator[tuple[int, list[Part]]]:
    """Every shard of the manifest with its parts, in order; streams one listing."""
    files = output.child(PARTS).walk()
    groups = groupby(_paths(files), key=lambda path: path.partition("/")[0])
    found = next(groups, None)
    for shard in range(manifest.shards):
        folder = f"{shard:06d}"
        while found is not None and found[0] < folder:
            found = next(groups, None)
        if found is not None and found[0] == folder:
            yield shard, current(parse_parts(found[1]), manifest.generation)
        else:
            yield shard, []


def all_parts(output: Folder) -> Iterator[tuple[int, list[Part]]]:
    """Every shard that has parts, even if it is in no manifest; streams one listing."""
    for _, paths in groupby(_paths(output.child(PARTS).walk()), key=lambda path: path.partition("/")[0]):
        if parts := parse_parts(paths):
            yield parts[0].shard, parts


def _paths(files: Iterable[File]) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):  # nothing is committed yet
        for file in files:
            yield file.path


def _finished(output: Folder, parts: list[Part], retry_failed: bool, wanted: int, gone: list[int]) -> list[int]:
    """Positions that need no more work; a part is opened only if its name does not say enough.

    Images that are `gone` need none.  An image that could not be fetched is never finished, because the store failed,
    and may work again.
    """
    told = [part for part in parts if part.holds_all_between and not part.error]
    finished = {*gone, *(position for part in told for position in range(part.first, part.last + 1))}
    if not finished.issuperset(range(wanted)):
        rows = read_parts(output, [part for part in parts if part not in told], ["position", "status", "error_stage"])
        is_ok = pc.equal(rows["status"], "ok")
        is_its_own_failure = pc.fill_null(pc.not_equal(rows["error_stage"], "fetch"), False)
        finished.update(
            rows.filter(is_ok if retry_failed else pc.or_(is_ok, is_its_own_failure))["position"].to_pylist()
        )
    return sorted(finished)


def _reasons(rows: pa.Table) -> Counter[str]:
    failed = rows.filter(pc.equal(rows["status"], "error"))
    stages, types = (failed[name].to_pylist() for name in ("error_stage", "error_type"))
    return Counter(f"{stage}: {kind}" for stage, kind in zip(stages, types, strict=True))


def _wanted(manifest: Manifest, shard: int, limit: int | None) -> int:
    """Number of the shard's first images that are within the limit."""
    images = manifest.shard_images(shard)
    return images if limit is None else max(0, min(images, limit - manifest.shard_start(shard)))


def _shards_at_once(manifest: Manifest) -> int:
    return max(1, _ROWS_AT_ONCE // manifest.shard_size)
