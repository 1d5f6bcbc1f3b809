"""Compaction: the index is made from the parts of the ledger, range by range.

A range is a run of neighbouring shards, about ``ROWS_A_FILE`` images; the manifest alone decides it.  The rows of the
n-th range are the n-th file of the index, ``index/part-NNNNN.parquet``, counted from 0.  So ranges may be made in any
order, in any process, and again: their bytes are the same.

``make`` only reads.  Everything that is changed is changed by the process that has the lease, when it gets what was
made.  So it does no harm if a worker goes on late.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from vbp.columns import INDEX_SCHEMA, PART_SCHEMA
from vbp.storage.files import Folder
from vbp.storage.ledger.index import forget, index_files, shards_at_once, strangers, that_count, wanted_in
from vbp.storage.ledger.parts import Part, current, newest, parts_of, read_parts
from vbp.storage.manifest.manifest import Manifest
from vbp.storage.outline import INDEX_FILES
from vbp.storage.parquet import Building, Written, numbered, written
from vbp.storage.results.places import made_absolute, misplaced
from vbp.storage.spreading import Spread, here, ignored

ROWS_A_FILE = 262_144
"""Images of a range, unless one shard has more.  Such a file has some 50 MB, and its maker holds it in memory."""
_READERS = 16
_WRITERS = 4
"""Files of the index that are written at the same time."""
_MOST = 32
"""Files of the index that are in the making, or wait to be written."""


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


class Range(NamedTuple):
    """Neighbouring shards; their rows are one file of the index."""

    number: int
    shards: range


class Made(NamedTuple):
    """What was made of a range."""

    path: str
    data: pa.Buffer | None
    """Its file of the index; None if it has no rows and is not the first, since an index has a file."""
    file: Written | None
    images: int
    """As in `Totals`, like the next two."""
    gone: int
    reasons: Counter[str]
    statuses: Counter[str]
    damaged: tuple[Part, ...]
    strange: tuple[tuple[int, list[int]], ...]
    """Numbers of shards, with the positions of their rows that are of other images."""


def ranges(manifest: Manifest) -> list[Range]:
    """All ranges of a manifest, in order; at least one."""
    size, shards = max(1, ROWS_A_FILE // manifest.shard_size), range(manifest.shards)
    parts = [shards[first : first + size] for first in shards[::size]] or [shards]
    return [Range(number, part) for number, part in enumerate(parts)]


def compact(
    output: Folder,
    manifest: Manifest,
    limit: int | None = None,
    *,
    spread: Spread = here,
    tell: Callable[[int], object] = ignored,
) -> Totals:
    """Make the index from the parts, in the order of the manifest.

    A repeated call writes the same files.  It may be killed at any time, since the index counts only while
    ``_SUCCESS`` exists; the caller writes that if ``ok + error == images``.

    Args:
        output: OUTPUT; the caller has its lease.
        manifest: the list of images.
        limit: only the first ``limit`` images of the manifest count.
        spread: makes the ranges.
        tell: called after each range, with the number of images so far.
    """
    done: list[Made] = []
    parts = ranges(manifest)
    spread = spread if len(parts) > 1 else here
    for made in _written(output, spread(partial(make, output, manifest, limit), parts, most=_MOST)):
        done.append(made)
        tell(sum(each.images for each in done))
    files = {made.path: made.file for made in done if made.file is not None}
    for path in index_files(output):
        if path not in files:  # of an earlier index, which was longer or divided in another way
            output.delete(path)
    damaged = sorted(part.path for made in done for part in made.damaged)
    for path in damaged:
        output.delete(path)
    strange = [shard for made in done for shard in made.strange]
    for number, positions in strange:
        forget(output, number, positions)
    statuses = sum((made.statuses for made in done), Counter[str]())
    reasons = sum((made.reasons for made in done), Counter[str]())
    return Totals(
        images=sum(made.images for made in done),
        ok=statuses["ok"],
        error=statuses["error"],
        by_reason=dict(reasons.most_common()),
        files=files,
        damaged=tuple(damaged),
        strange=sum(len(positions) for _, positions in strange),
        gone=sum(made.gone for made in done),
    )


def _written(output: Folder, ranges_made: Iterable[Made]) -> Iterator[Made]:
    """Write the file of each range; yields what was made, in order and without the bytes."""

    def write(made: Made) -> Made:
        if made.data is not None:
            output.write(made.path, made.data.to_pybytes())
        return made._replace(data=None)

    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(_WRITERS) as pool:
        for made in ranges_made:
            waiting.append(pool.submit(write, made))
            if len(waiting) > _WRITERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def make(output: Folder, manifest: Manifest, limit: int | None, part: Range) -> Made:
    """Make a range of the index; nothing is changed.

    Memory holds the file, and the rows of one row group.
    """
    building, done = Building(INDEX_SCHEMA, output.attempt), list[_Shard]()
    statuses, reasons, gone = Counter[str](), Counter[str](), 0
    step = shards_at_once(manifest)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(part.shards), step):
            shards = list(pool.map(partial(_shard, output, manifest, limit), part.shards[start : start + step]))
            rows = pa.concat_tables(shard.rows for shard in shards)
            done += [shard._replace(rows=None) for shard in shards]
            statuses.update(rows["status"].to_pylist())
            reasons += _reasons(rows)
            gone += _count(rows["gone"])
            if rows.num_rows:
                building.add(rows.select(INDEX_SCHEMA.names))
    if not statuses and not part.number:
        building.add(INDEX_SCHEMA.empty_table())
    data = building.finished()
    return Made(
        path=numbered(INDEX_FILES, part.number),
        data=data,
        file=None if data is None else written(data),
        images=sum(shard.images for shard in done),
        gone=gone,
        reasons=reasons,
        statuses=statuses,
        damaged=tuple(each for shard in done for each in shard.damaged),
        strange=tuple((shard.number, shard.strange) for shard in done if shard.strange),
    )


class _Shard(NamedTuple):
    """What was read of a shard."""

    number: int
    rows: pa.Table
    """The rows that belong to the manifest, with absolute places."""
    images: int
    damaged: list[Part]
    strange: list[int]
    """Positions of the other rows, and of those that name an impossible place of a result."""


def _shard(output: Folder, manifest: Manifest, limit: int | None, number: int) -> _Shard:
    damaged: list[Part] = []
    parts = current(parts_of(output, number), manifest.generation)
    rows = that_count(manifest, number, newest(read_parts(output, parts, PART_SCHEMA.names, damaged)))
    others = pc.or_(strangers(manifest, number, rows), misplaced(rows))
    kept = rows.filter(pc.invert(others))
    wanted = wanted_in(manifest, number, limit)
    beyond = pc.or_(pc.greater_equal(kept["position"], wanted), kept["gone"])
    images = wanted - sum(position < wanted for position in manifest.gone_in(number)) + _count(beyond)
    strange = rows.filter(others)["position"].to_pylist()
    return _Shard(number, made_absolute(output, kept), images, damaged, strange)


def _count(mask: pa.ChunkedArray) -> int:
    """Number of true values."""
    return int(pc.sum(mask, min_count=0).as_py())


def _reasons(rows: pa.Table) -> Counter[str]:
    failed = rows.filter(pc.equal(rows["status"], "error"))
    stages, types = (failed[name].to_pylist() for name in ("error_stage", "error_type"))
    return Counter(f"{stage}: {kind}" for stage, kind in zip(stages, types, strict=True))
