"""Examine a range of shards: its part of the check of an output (``vbp.review.validate``).

It reads the manifest, the ledger, the range's file of the index and, if asked to, the masks.  It changes nothing, and
may be done for all ranges in any order, in any process, and again.
"""

from __future__ import annotations

import contextlib
import os
import socket
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from vbp.columns import PART_SCHEMA
from vbp.errors import UsageError
from vbp.review.choice import Choice
from vbp.review.masks import fault_of
from vbp.review.output import Output
from vbp.storage.files import Folder
from vbp.storage.ledger.compaction import Range
from vbp.storage.ledger.index import misfits, tables_in, that_count
from vbp.storage.ledger.parts import Part, current, newest, parts_of, read_parts
from vbp.storage.outline import INDEX_FILES, INDEXED, place_columns
from vbp.storage.parquet import numbered, written
from vbp.storage.record import RUN
from vbp.storage.results.files import files_of
from vbp.storage.results.places import elsewhere
from vbp.storage.sorting import as_table

_EXAMPLES = 5
_THREADS = 16
_SHARDS_AT_ONCE = 64
_POSITION_BITS = 32
INDEX_COLUMNS = ["key", "status", "run_id", "finished_at", "mask_mean"]
INDEX_PLACES = [f"{kind}_uri" for kind in INDEXED]
_MASK_COLUMNS = ["width", "height", "mask_mean", "mask_area", "peak_x", "peak_y", "mask_width", "mask_height"]
_MASK_COLUMNS += ["flat", "mask_uri"]
_LOOKED_AT = ["position", "shard", "key", "status", "mask_mean", *place_columns(*INDEXED)]
"""Columns that are looked at row by row; only the others of rows whose masks are reopened are made Python objects."""
_COLUMNS = [*dict.fromkeys(["position", "shard", *INDEX_COLUMNS, "version", *_MASK_COLUMNS, *place_columns(*INDEXED)])]
IN_INDEX = [*INDEX_COLUMNS, *INDEX_PLACES]
_NO_ROWS = PART_SCHEMA.empty_table().select(INDEX_COLUMNS)
TOLD = ""
"""Content of a row of the ledger whose fault is reported already."""


class Findings:
    """Faults by kind, and the rows to delete because of them."""

    def __init__(self) -> None:
        self.counts, self._examples = Counter[str](), dict[str, list[str]]()
        self._redo = array("q")

    def add(self, kind: str, example: str, shard: int = -1, position: int = -1, count: int = 1) -> None:
        """Add faults of one kind; `shard` and `position` name the row that must be deleted, if one must."""
        self.counts[kind] += count
        self._exemplify(kind, [example])
        if shard >= 0:
            self._redo.append(shard << _POSITION_BITS | position)

    def extend(self, later: Findings) -> None:
        """Add what was found later."""
        self.counts.update(later.counts)
        self._redo.extend(later._redo)
        for kind, examples in later._examples.items():
            self._exemplify(kind, examples)

    def _exemplify(self, kind: str, examples: Sequence[str]) -> None:
        known = self._examples.setdefault(kind, [])
        known += examples[: _EXAMPLES - len(known)]

    def examples(self, kind: str) -> tuple[str, ...]:
        """The first faults of a kind."""
        return tuple(self._examples.get(kind, ()))

    @property
    def redo(self) -> list[tuple[int, int]]:
        """Shards and positions of the rows to delete, sorted, each once."""
        mask = (1 << _POSITION_BITS) - 1
        return [(number >> _POSITION_BITS, number & mask) for number in sorted(set(self._redo))]


class Expected(NamedTuple):
    """A file that must exist, or may exist already."""

    path: bytes
    least: int
    """Least number of its bytes; 0 if it may be missing, because its image is not done yet."""
    key: str
    shard: int
    position: int


class Row(NamedTuple):
    """A row of the ledger or the index."""

    key: str
    content: str
    shard: int
    """Number of the shard; -1 in the index."""
    position: int


EXPECTED_SCHEMA = pa.schema(
    [
        ("path", pa.binary()),
        ("least", pa.int64()),
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("position", pa.int32()),
    ]
)
ROW_SCHEMA = pa.schema(
    [("key", pa.string()), ("content", pa.string()), ("shard", pa.int32()), ("position", pa.int32())]
)


@dataclass(frozen=True)
class Request:
    """What is examined in every range."""

    output: Output
    sample: int
    """Masks of the whole output that will be reopened, chosen by `seed` and key."""
    seed: int
    deep: bool
    """Whether all masks are reopened."""
    promised: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each file of the index, by path, if they are promised."""


@dataclass
class Examined:
    """What was found in a range."""

    findings: Findings = field(default_factory=Findings)
    of_index: Findings | None = None
    """Faults of the range's file of the index, if this has the rows of the ledger, in order; else None."""
    statuses: Counter[str] = field(default_factory=Counter)
    gone: int = 0
    opened: int = 0
    damaged: list[Part] = field(default_factory=list)
    unfinished: set[int] = field(default_factory=set)
    """Shards in which images have no row."""
    is_unlisted: bool = False
    """Whether a part of the manifest cannot be read."""
    strange_keys: set[str] = field(default_factory=set)
    """Keys of rows of other images than are listed."""
    chosen: list[dict[str, Any]] = field(default_factory=list)
    """Rows whose masks may be in the sample."""
    expected: pa.Table | None = None
    """All `Expected`, sorted."""


class _Shard(NamedTuple):
    """The records of one shard."""

    number: int
    rows: pa.Table
    damaged: list[tuple[Part, str]]
    keys: Sequence[str] = ()
    """Keys of its images, by position."""
    gone: frozenset[int] = frozenset()
    """Positions of images that are gone from INPUT."""
    strange: frozenset[int] = frozenset()
    """Positions of rows of other images."""
    outdated: frozenset[int] = frozenset()
    """Positions of rows of images as they were before they changed."""
    unlisted: str | None = None
    """Why its images are unknown; None if they are known."""


class _Seen(NamedTuple):
    """A row of a shard, or an image that lacks one."""

    key: str
    position: int
    number: int = -1
    """Number of the row in the shard's table; -1 if it lacks."""
    is_told: bool = True
    """Whether its fault is reported already."""
    is_good: bool = False
    """Whether it is a row of the image that is listed there."""
    has_mask: bool = False


def examine(request: Request, part: Range) -> Examined:
    """Examine a range; memory holds its expected files.

    Raises:
        UsageError: the output is not seen here; or its layout is unknown.
        StorageError: a store does not answer.
    """
    return _Examiner(request).examined(part)


def check_seen(output: Folder) -> None:
    """Check that this machine sees the output; else all of its rows and files would seem lost.

    Raises:
        UsageError: there is no run.
    """
    if not output.exists(RUN):
        raise UsageError(
            f"OUTPUT (={output.url}) holds no run where it is looked at, on {socket.gethostname()}: copy it to where "
            "all nodes of the cluster see it, or give --runner local."
        )


def recorded(output: Output, part: Range) -> pa.Table:
    """The `Row` of each row of the ledger in a range, and of each image that lacks one, sorted."""
    examiner = _Examiner(Request(output, sample=0, seed=0, deep=False))
    rows: list[Row] = []
    for shard in examiner.shards(part):
        contents = [content_of(values) for values in shard.rows.select(INDEX_COLUMNS).to_pylist()]
        rows += (
            Row(seen.key, TOLD if seen.is_told else contents[seen.number], shard.number, seen.position)
            for seen in examiner.rows(shard)
        )
    return as_table(sorted(rows), ROW_SCHEMA)


class _Examiner:
    """Examines shards, and adds what it finds to `found`."""

    def __init__(self, request: Request) -> None:
        self._request, self._output = request, request.output
        check_seen(self._output.folder)
        self._files = files_of(self._output.folder, self._output.config)
        self._expected: list[Expected] = []
        self.found = Examined()

    def examined(self, part: Range) -> Examined:
        """Examine all shards of a range."""
        found, chosen = self.found, Choice(0 if self._request.deep else self._request.sample, self._request.seed)
        tables, is_told = [_NO_ROWS], False
        for shard in self.shards(part):
            seen = list(self.rows(shard))
            good = [row for row in seen if row.is_good]
            masked = [row for row in good if row.has_mask and self._output.config]
            is_told |= any(row.is_told for row in seen)
            statuses = shard.rows["status"].to_pylist()
            found.statuses.update(statuses[row.number] for row in good)
            found.gone += sum(row.position in shard.gone for row in good)
            tables.append(shard.rows.select(INDEX_COLUMNS))
            if self._request.deep:
                rows = shard.rows.take(pa.array([row.number for row in masked], pa.int64()))
                found.opened += reopen(self._output, rows.to_pylist(), found.findings)
            else:
                chosen.offer({"key": row.key, "at": (shard.rows, row.number)} for row in masked)
        if self._output.is_complete and not is_told:
            found.of_index = self._of_index(numbered(INDEX_FILES, part.number), pa.concat_tables(tables))
        found.chosen = [table.slice(number, 1).to_pylist()[0] for table, number in (row["at"] for row in chosen.rows)]
        found.expected = as_table(sorted(self._expected), EXPECTED_SCHEMA)
        return found

    def _of_index(self, path: str, recorded: pa.Table) -> Findings | None:
        """Faults of a file of the index that has exactly the recorded rows; None if it has not."""
        promised = self._request.promised.get(path)
        try:
            data = self._output.folder.read(path)
        except FileNotFoundError:
            return None if recorded.num_rows or promised else Findings()
        try:
            tables = list(tables_in(pa.BufferReader(data), IN_INDEX))
        except (pa.ArrowException, OSError, KeyError):  # it is damaged
            return None
        if not pa.concat_tables([_NO_ROWS, *(table.select(INDEX_COLUMNS) for table in tables)]).equals(recorded):
            return None
        found = Findings()
        if promised not in (None, written(data).sha256):
            found.add("index file differs", path)
        for table in tables:
            count_moved(self._output.folder, table, found)
        return found

    def shards(self, part: Range) -> Iterator[_Shard]:
        """The shards of a range, in order."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(part.shards), _SHARDS_AT_ONCE):
                yield from pool.map(self._shard, part.shards[start : start + _SHARDS_AT_ONCE])

    def _shard(self, number: int) -> _Shard:
        folder, manifest = self._output.folder, self._output.manifest
        assert manifest is not None
        tables, damaged = [PART_SCHEMA.empty_table().select(_COLUMNS)], []
        for part in current(parts_of(folder, number), manifest.generation):
            unreadable: list[Part] = []
            with contextlib.suppress(FileNotFoundError):  # a run has just replaced the part
                rows = read_parts(folder, [part], _COLUMNS, unreadable)
                reason = "it cannot be read" if unreadable else _untold(rows, part)
                if reason is None:
                    tables.append(rows)
                else:
                    damaged.append((part, reason))
        rows = newest(pa.concat_tables(tables))
        try:
            listed, gone = manifest.read_shard(number, ["key", "version"]), manifest.gone_in(number)
            rows = that_count(manifest, number, rows)
        except (UsageError, FileNotFoundError) as error:
            return _Shard(number, rows, damaged, unlisted=str(error))
        strange, outdated = (frozenset(rows.filter(mask)["position"].to_pylist()) for mask in misfits(listed, rows))
        return _Shard(number, rows, damaged, listed["key"].to_pylist(), frozenset(gone), strange, outdated)

    def rows(self, shard: _Shard) -> Iterator[_Seen]:
        """The rows of the shard, in order, and the images that have lost theirs."""
        found = self.found
        if shard.unlisted is not None:  # its rows are taken as they are: one fault is one finding
            found.findings.add("manifest damaged", shard.unlisted)
            found.is_unlisted = True
        for part, reason in shard.damaged:
            found.findings.add("part damaged", f"{part.path}: {reason}")
            found.damaged.append(part)
        missing = set(range(len(shard.keys)))
        for number, values in enumerate(shard.rows.select(_LOOKED_AT).to_pylist()):
            if values["position"] not in shard.strange:
                missing.discard(values["position"])
            yield self._row(shard, number, values)
        if missing - shard.gone:
            found.unfinished.add(shard.number)
        for position in sorted(missing):
            yield from self._missing(shard, position)

    def _row(self, shard: _Shard, number: int, values: dict[str, Any]) -> _Seen:
        key, position, findings = values["key"], values["position"], self.found.findings
        seen = _Seen(key, position, number)
        if position in shard.strange:
            findings.add("row of no image", key, shard.number, position)
            self.found.strange_keys.add(key)
            return seen
        if position in shard.outdated:
            findings.add("row outdated", key, shard.number, position)
        if (place := self._files.misplaced(values)) is not None:
            findings.add("row misplaced", f"{key}: {place}", shard.number, position)
            return seen
        is_ok = values["status"] == "ok"
        if is_ok and values["mask_mean"] is not None:
            for path, least in self._files.expected(values):
                self._expected.append(Expected(os.fsencode(path), least, key, shard.number, position))
        has_mask = is_ok and values["mask_uri"] is not None
        return _Seen(key, position, number, position in shard.outdated, True, has_mask)

    def _missing(self, shard: _Shard, position: int) -> Iterator[_Seen]:
        """An image without a row, if that is lost; expects the files that it may have already."""
        assert self._output.manifest is not None
        key, limit = shard.keys[position], self._output.limit
        for path, _ in self._files.expected({"key": key}):
            self._expected.append(Expected(os.fsencode(path), 0, key, shard.number, position))
        number = self._output.manifest.shard_start(shard.number) + position
        if self._output.is_complete and position not in shard.gone and (limit is None or number < limit):
            self.found.findings.add("row lost", key)
            yield _Seen(key, position)


def reopen(output: Output, rows: Sequence[dict[str, Any]], findings: Findings) -> int:
    """Decode the masks of these rows and compare; the listing reports missing and empty files."""
    files = files_of(output.folder, output.config)

    def look(row: dict[str, Any]) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            if data := files.read(row, "mask"):
                return fault_of(data, row, output.config)
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        for row, fault in zip(rows, pool.map(look, rows), strict=True):
            if fault is not None:
                findings.add("mask differs", f"{row['key']}: {fault}", row["shard"], row["position"])
    return len(rows)


def count_moved(folder: Folder, rows: pa.Table, findings: Findings) -> None:
    """Count rows of the index that name places elsewhere."""
    if count := elsewhere(folder, rows):
        first = next(uri for name in INDEX_PLACES for uri in rows[name].to_pylist() if uri)
        findings.add("output moved", first, count=count)


def content_of(row: Mapping[str, Any]) -> str:
    """The values that a row of the index must share with its row in the ledger."""
    return " ".join(str(row[name]) for name in INDEX_COLUMNS[1:])


def _untold(rows: pa.Table, part: Part) -> str | None:
    """A clause on the content of a part that differs from its name; None if it fits."""
    statuses, positions = Counter(rows["status"].to_pylist()), rows["position"].to_pylist()
    held = (statuses["ok"], statuses["error"], min(positions, default=-1), max(positions, default=-1))
    if held == (part.ok, part.error, part.first, part.last):
        return None
    return f"it holds {held[0]} ok and {held[1]} error rows from {held[2]} to {held[3]}"
