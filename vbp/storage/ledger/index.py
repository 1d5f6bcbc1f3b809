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
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vbp.columns import PART_SCHEMA
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
from vbp.storage.outline import INDEX

__all__ = [
    "all_parts",
    "PendingShard",
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
ROWS_AT_ONCE = 65_536
INDEX_FILE_BYTES = 128_000_000


class PendingShard(NamedTuple):
    """A shard with images left to do."""

    shard: int
    images: int
    """Number of images that are left."""


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
        wanted = wanted_in(manifest, shard, limit)
        finished = _finished(output, parts, retry_failed, wanted, manifest.gone_in(shard))
        return PendingShard(shard, wanted - sum(position < wanted for position in finished))

    tasks = (task for task in parts_by_shard(output, manifest) if wanted_in(manifest, task[0], limit))
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(tasks, shards_at_once(manifest))):
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
    wanted = wanted_in(manifest, shard, limit)
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

    def read(task: tuple[int, list[Part]]) -> tuple[int, pa.Table]:
        shard, parts = task
        return shard, that_count(manifest, shard, newest(read_parts(output, parts, columns)))

    tasks = (task for task in parts_by_shard(output, manifest) if where(task[1]))
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(tasks, shards_at_once(manifest))):
            yield from pool.map(read, batch)


def read_index(output: Folder, columns: list[str], damaged: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of the index as tables, in the order of its files.

    Args:
        output: OUTPUT.
        columns: columns of ``INDEX_SCHEMA``.
        damaged: a list that gets the paths of damaged files.

    Raises:
        StorageError: a file is damaged, and ``damaged`` is None.
    """
    for path in index_files(output):
        try:
            with output.open(path) as file:
                yield from tables_in(file, columns)
        except (pa.ArrowException, OSError, KeyError) as error:
            if isinstance(error, (FileNotFoundError, PermissionError)):
                raise
            if damaged is None:
                remedy = f"run vbp validate {output.url} --repair, then the run's command again"
                why = " ".join(str(error).split())  # Arrow's own messages may have lines
                raise StorageError(f"{output.uri(path)} is damaged ({why}); {remedy}") from error
            damaged.append(path)


def tables_in(file: BinaryIO | pa.NativeFile, columns: list[str]) -> Iterator[pa.Table]:
    """The rows of a file of the index as tables.

    Raises:
        ArrowException, OSError, KeyError: the file is damaged.
    """
    for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE, columns=columns):
        yield conformed(pa.Table.from_batches([batch]), columns)


def index_files(output: Folder) -> list[str]:
    """The files of the index, in order."""
    return [path for path in output.list(INDEX) if _INDEX_FILE.fullmatch(path)]


def others_in_index(output: Folder) -> list[str]:
    """Files in the folder of the index that no run has written; other programs may read them as rows."""
    return [path for path in output.list(INDEX) if not _INDEX_FILE.fullmatch(path)]


def that_count(manifest: Manifest, shard: int, rows: pa.Table) -> pa.Table:
    """`rows` without error rows of images that are gone; fills the column ``gone`` if `rows` have it.

    `rows`: the newest rows of a shard, with ``position`` and ``status``.
    """
    is_gone = pc.is_in(rows["position"], pa.array(manifest.gone_in(shard), pa.int32()))
    if "gone" in rows.column_names:
        rows = rows.set_column(rows.column_names.index("gone"), "gone", is_gone)
    return rows.filter(pc.invert(pc.and_(is_gone, pc.equal(rows["status"], "error"))))


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


def wanted_in(manifest: Manifest, shard: int, limit: int | None) -> int:
    """Number of the shard's first images that are within the limit."""
    images = manifest.shard_images(shard)
    return images if limit is None else max(0, min(images, limit - manifest.shard_start(shard)))


def shards_at_once(manifest: Manifest) -> int:
    """How many shards are read at once, so that memory holds a bounded number of rows."""
    return max(1, ROWS_AT_ONCE // manifest.shard_size)
