"""Validate an output: compare manifest, ledger, index and files with each other, and reopen masks.

Everything is a stream, or a merge of two sorted streams, so memory does not grow with the collection; items to sort
wait in a temporary folder, about 100 bytes for each image and file. A repair deletes wrong rows, so that the next run
does these images again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import os
import shlex
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby, islice
from typing import Any, NamedTuple

import pyarrow as pa

from vbp.columns import PART_SCHEMA
from vbp.errors import UsageError
from vbp.review.choice import Choice
from vbp.review.masks import fault_of
from vbp.review.output import Output
from vbp.review.status import is_at_work
from vbp.storage.files import Folder
from vbp.storage.ledger import lease
from vbp.storage.ledger.compaction import compact
from vbp.storage.ledger.held import HeldFolder
from vbp.storage.ledger.index import (
    all_parts,
    forget,
    misfits,
    others_in_index,
    parts_by_shard,
    read_index,
    that_count,
)
from vbp.storage.ledger.parts import Part, newest, read_parts
from vbp.storage.manifest.manifest import MANIFEST
from vbp.storage.outline import INDEXED, place_columns
from vbp.storage.record import broken_promise, changed_files, mark_complete, mark_incomplete, save_record, withdraw
from vbp.storage.results.files import files_of
from vbp.storage.results.places import elsewhere
from vbp.storage.sorting import Sorter
from vbp.words import counted

SAMPLE, SEED = 200, 500

FAULTS = {
    "row lost": "listed images without a row, although _SUCCESS says that all have one",
    "row of no image": "rows that belong to no listed image",
    "row outdated": "rows of a listed image as it was before it changed",
    "manifest damaged": "shards of the list of images that cannot be read, so that nobody knows what is in them",
    "part damaged": "parts of the ledger that cannot be read, hold other rows than their names say, or are of no shard",
    "row misplaced": "rows whose results lie where no run can have put them",
    "promise broken": "a _SUCCESS that does not fit the record and the index, as of another run that came in between",
    "index file differs": "files of the index that are not, byte for byte, those that _SUCCESS promises",
    "index damaged": "files of the index that cannot be read",
    "index row lost": "rows that the index lacks",
    "index row doubled": "images with more than one row in the index",
    "index row differs": "rows of the index that the ledger does not have so",
    "index stranger": "files in index/ that are not of it, which readers take for rows",
    "output moved": "rows of the index that point to where the output was before",
    "file lost": "result files that a row names and that are not there",
    "file short": "result files that are empty, or shorter than their row says",
    "mask differs": "masks that cannot be decoded, or are not what their row says",
    "file of no row": "files among the results that no ok row names, of images that are listed",
    "file of others": "files among the results that no record explains, or behind links; they are left alone",
    "temporary file": "temporary files of writes that were cut off",
}
"""Kind of fault -> its description."""

_EXAMPLES = 5
_THREADS = 16
_SHARDS_AT_ONCE = 64
_POSITION_BITS = 32
_INDEX_COLUMNS = ["key", "status", "run_id", "finished_at", "mask_mean"]
_INDEX_PLACES = [f"{kind}_uri" for kind in INDEXED]
_MASK_COLUMNS = ["width", "height", "mask_mean", "mask_area", "peak_x", "peak_y", "mask_width", "mask_height"]
_MASK_COLUMNS += ["flat", "mask_uri"]
_COLUMNS = [*dict.fromkeys(["position", "shard", *_INDEX_COLUMNS, "version", *_MASK_COLUMNS, *place_columns(*INDEXED)])]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Faults of one kind."""

    kind: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The checks that were made, and the faults that were found."""

    output: str
    images: int
    """Images that should have a row, up to ``--limit``."""
    ok: int
    error: int
    files: int
    masks_opened: int
    findings: tuple[Finding, ...]
    redo: int
    """Rows to delete, so that their images are done again; deleted if `repaired`."""
    orphans: int
    """Files without a row and temporary files; removed if `orphans_removed`."""
    repaired: bool
    orphans_removed: bool
    rebased: bool
    """Whether the index was made again for the output's present place."""
    is_complete: bool
    """Whether a valid ``_SUCCESS`` exists now."""
    is_listed: bool
    """Whether there is a list of images; without one nobody knows what is missing."""
    gone: int
    """Images with an ok row that are gone from INPUT."""

    @property
    def left(self) -> int:
        """Images that have no row yet; in an unfinished output this is no fault."""
        return max(0, self.images - self.ok - self.error)

    @property
    def is_sound(self) -> bool:
        """Whether no fault is left; files of others are no fault."""
        return not self._wrong

    @property
    def _wrong(self) -> set[str]:
        """The kinds of faults that are left."""
        mended = {*_HARMLESS, *_ORPHANS * self.orphans_removed, *_MOVED * self.rebased}
        return {finding.kind for finding in self.findings} - mended

    @property
    def next_step(self) -> str:
        """A sentence on what to run next."""
        if not self._wrong:
            if not self.is_listed:
                return "Sound so far; there is no list of images: give the run's command again."
            if self.left and not self.is_complete:
                left = counted(self.left, "image is left", "images are left")
                return f"Sound so far; {left}: give the run's command again."
            return "Sound."
        to_move = " Move the files out of index/ that are not of it." if "index stranger" in self._wrong else ""
        if self.repaired:
            taken = f"{counted(self.redo, 'row was', 'rows were')} taken back" if self.redo else "Repaired"
            return f"{taken}: give the run's command again.{to_move}"
        to_repair = self._wrong - {*_ORPHANS, *_MOVED, *_BY_HAND}
        flags = ["--repair"] * bool(to_repair) + ["--remove-orphans"] * bool(self._wrong & {*_ORPHANS})
        flags += ["--rebase"] * (bool(self._wrong & {*_MOVED}) and not to_repair)
        command = f"Run vbp validate {shlex.quote(self.output)} {' '.join(flags)}"
        then = ", then the run's command again" if to_repair else ""
        return f"{command}{then}.{to_move}" if flags else to_move.strip()

    def as_json(self) -> dict[str, Any]:
        """JSON values, derived ones included."""
        derived = {"left": self.left, "is_sound": self.is_sound, "next_step": self.next_step}
        return dataclasses.asdict(self) | derived


_TOLD = ""
"""Content of a row of the ledger whose fault is reported already."""
_ORPHANS = ("file of no row", "temporary file")
_HARMLESS = ("file of others",)
_MOVED = ("output moved",)
_BY_HAND = ("index stranger",)
"""Faults that only the user can mend: files of others are not removed here."""
TEMPORARY_SECONDS = 3600.0
"""Age in seconds from which a temporary file belongs to no running write."""


def validate(
    output: Output,
    *,
    sample: int = SAMPLE,
    seed: int = SEED,
    deep: bool = False,
    repair: bool = False,
    remove_orphans: bool = False,
    rebase: bool = False,
    on_wait: Callable[[str], None] = lambda sentence: None,
    on_orphans: Callable[[Sequence[str]], bool] = lambda paths: True,
) -> Validation:
    """Compare all parts of an output with each other.

    Args:
        output: the output to check.
        sample: masks to reopen, chosen by `seed` and key.
        seed: another seed chooses other masks.
        deep: reopen all masks.
        repair: delete wrong rows and ``_SUCCESS``, so that the next run does their images again.
        remove_orphans: delete files without a row and temporary files.
        rebase: make the index again if it names the output's place before it was moved.
        on_wait: called with a sentence that says for whom a repair waits.
        on_orphans: called with the paths of the files before any is deleted; returns whether to delete them.

    Raises:
        UsageError: a repair is requested while a run is at work; or the layout is unknown.
        StorageError: a store does not answer.
        LeaseLostError: another attempt has taken the output over meanwhile.
    """
    if not (repair or remove_orphans or rebase):
        current = lease.holder(output.folder)
        return _Check(output, is_live=current is not None and is_at_work(current)).run(sample, seed, deep)
    with _leased(output.folder, on_wait) as held:
        check = _Check(Output.at(held), is_live=False)
        found = check.run(sample, seed, deep)
        held.look()
        wrong = {finding.kind for finding in found.findings} - {*_ORPHANS, *_HARMLESS, *_MOVED, *_BY_HAND}
        if repair and wrong:
            check.repair(held)
            found = dataclasses.replace(found, repaired=True, is_complete=False)
        if remove_orphans and check.orphans and on_orphans(check.orphans):
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(held.delete, check.orphans))
            found = dataclasses.replace(found, orphans_removed=True)
        if rebase and not wrong and check.is_moved:
            check.rebase(held)
            found = dataclasses.replace(found, rebased=True)
        held.look()  # otherwise the result may no longer be true
    return found


class _Expected(NamedTuple):
    """A file that must exist, or may exist already."""

    path: bytes
    least: int
    """Least number of its bytes; 0 if it may be missing, because its image is not done yet."""
    key: str
    shard: int
    position: int


class _Row(NamedTuple):
    """A row of the ledger or the index."""

    key: str
    content: str
    shard: int
    """Number of the shard; -1 in the index."""
    position: int


_EXPECTED_SCHEMA = pa.schema(
    [
        ("path", pa.binary()),
        ("least", pa.int64()),
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("position", pa.int32()),
    ]
)
_ROW_SCHEMA = pa.schema(
    [("key", pa.string()), ("content", pa.string()), ("shard", pa.int32()), ("position", pa.int32())]
)


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


class _Check:
    """One check of an output; keeps what a repair needs."""

    def __init__(self, output: Output, is_live: bool) -> None:
        self._output, self._is_live = output, is_live
        self._files = files_of(output.folder, output.config)
        self._counts, self._examples = Counter[str](), dict[str, list[str]]()
        self._redo = array("q")
        self._damaged: list[Part] = []
        self._unfinished = set[int]()
        self._unlisted = False
        self._strays: list[str] = []
        self._strange_keys = set[str]()
        self.orphans: list[str] = []

    def run(self, sample: int, seed: int, deep: bool) -> Validation:
        """Make all checks once."""
        chosen = Choice(0 if deep else sample, seed)
        statuses, gone, opened, files = Counter[str](), 0, 0, 0
        with Sorter(_Expected, _EXPECTED_SCHEMA) as expected, Sorter(_Row, _ROW_SCHEMA) as rows:
            for shard in self._shards():
                masked = []
                for row in self._rows_of(shard, expected, rows):
                    statuses[row["status"]] += 1
                    gone += row["position"] in shard.gone
                    if row["status"] == "ok" and row["mask_uri"] is not None and self._output.config:
                        masked.append(row)
                if deep:
                    opened += self._reopen(masked)
                else:
                    chosen.offer(masked)
            if self._output.is_complete:
                self._compare_index(rows)
            elif not self._is_live and (why := broken_promise(self._output.folder)) is not None:
                self._found("promise broken", why)
            files = self._compare_files(expected)
        self._sort_strays()
        self._find_parts_of_no_shard()
        opened += self._reopen(chosen.rows)
        if not self._is_live:  # otherwise they may be running writes
            for path in self._output.folder.temporaries(TEMPORARY_SECONDS):
                self._orphan("temporary file", path)
        return Validation(
            output=self._output.folder.url,
            images=statuses.total() if self._unlisted else self._output.images(statuses.total(), gone),
            ok=statuses["ok"],
            error=statuses["error"],
            files=files,
            masks_opened=opened,
            findings=tuple(
                Finding(kind=kind, count=self._counts[kind], examples=tuple(self._examples[kind]))
                for kind in FAULTS
                if self._counts[kind]
            ),
            redo=len(set(self._redo)),
            orphans=len(self.orphans),
            repaired=False,
            orphans_removed=False,
            rebased=False,
            is_complete=self._output.is_complete,
            is_listed=self._output.manifest is not None,
            gone=gone,
        )

    def repair(self, held: HeldFolder) -> None:
        """Delete ``_SUCCESS`` and every wrong row."""
        mark_incomplete(held)
        # a _SUCCESS that another attempt writes late is then not ours
        save_record(held, {**self._output.record, "attempt": held.attempt})
        for part in self._damaged:
            held.delete(part.path)
        if self._unlisted:
            withdraw(held, MANIFEST)  # INPUT is listed again, and rows are compared with that
        for shard, numbers in groupby(sorted(set(self._redo)), key=lambda number: number >> _POSITION_BITS):
            forget(held, shard, [number & ((1 << _POSITION_BITS) - 1) for number in numbers])

    @property
    def is_moved(self) -> bool:
        """Whether the index names the output's former place."""
        return self._counts["output moved"] > 0

    def rebase(self, held: HeldFolder) -> None:
        """Make the index and ``_SUCCESS`` again, for the output's present place."""
        manifest, summary = self._output.manifest, self._output.record.get("summary")
        assert manifest is not None
        mark_incomplete(held)
        totals = compact(held, manifest, self._output.limit)
        changes = {"attempt": held.attempt, "summary": {**(summary or {}), "output": held.url}}
        save_record(held, {**self._output.record, **changes})
        counts = {"images": totals.images, "ok": totals.ok, "error": totals.error}
        mark_complete(held, held.attempt, totals.files, counts)

    def _found(self, kind: str, example: str, shard: int = -1, position: int = -1) -> None:
        self._counts[kind] += 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(example)
        if shard >= 0:
            self._redo.append(shard << _POSITION_BITS | position)

    def _orphan(self, kind: str, path: str) -> None:
        self._found(kind, path)
        self.orphans.append(path)

    def _shards(self) -> Iterator[_Shard]:
        """Every shard of the manifest, in order."""
        if self._output.manifest is None:
            return
        tasks = parts_by_shard(self._output.folder, self._output.manifest)
        with ThreadPoolExecutor(_THREADS) as pool:
            while batch := list(islice(tasks, _SHARDS_AT_ONCE)):
                yield from pool.map(lambda task: self._read_shard(*task), batch)

    def _read_shard(self, shard: int, parts: list[Part]) -> _Shard:
        tables, damaged = [PART_SCHEMA.empty_table().select(_COLUMNS)], []
        for part in parts:
            unreadable: list[Part] = []
            with contextlib.suppress(FileNotFoundError):  # a run has just replaced the part
                rows = read_parts(self._output.folder, [part], _COLUMNS, unreadable)
                reason = "it cannot be read" if unreadable else _untold(rows, part)
                if reason is None:
                    tables.append(rows)
                else:
                    damaged.append((part, reason))
        rows, manifest = newest(pa.concat_tables(tables)), self._output.manifest
        assert manifest is not None
        try:
            listed, gone = manifest.read_shard(shard, ["key", "version"]), manifest.gone_in(shard)
            rows = that_count(manifest, shard, rows)
        except (UsageError, FileNotFoundError) as error:
            return _Shard(shard, rows, damaged, unlisted=str(error))
        strange, outdated = (frozenset(rows.filter(mask)["position"].to_pylist()) for mask in misfits(listed, rows))
        return _Shard(shard, rows, damaged, listed["key"].to_pylist(), frozenset(gone), strange, outdated)

    def _rows_of(self, shard: _Shard, expected: Sorter[_Expected], rows: Sorter[_Row]) -> Iterator[dict[str, Any]]:
        """The shard's good rows; adds their files to `expected`, and themselves to `rows`."""
        if shard.unlisted is not None:  # its rows are taken as they are: one fault is one finding
            self._found("manifest damaged", shard.unlisted)
            self._unlisted = True
        for part, reason in shard.damaged:
            self._found("part damaged", f"{part.path}: {reason}")
            self._damaged.append(part)
        missing = set(range(len(shard.keys)))
        for row in shard.rows.to_pylist():
            position = row["position"]
            if position in shard.strange:
                self._found("row of no image", row["key"], shard.number, position)
                self._strange_keys.add(row["key"])
                rows.add(_Row(row["key"], _TOLD, shard.number, position))
                continue
            missing.discard(position)
            if position in shard.outdated:
                self._found("row outdated", row["key"], shard.number, position)
            if (place := self._files.misplaced(row)) is not None:
                self._found("row misplaced", f"{row['key']}: {place}", shard.number, position)
                rows.add(_Row(row["key"], _TOLD, shard.number, position))
                continue
            content = _TOLD if position in shard.outdated else _content(row)
            rows.add(_Row(row["key"], content, shard.number, position))
            if row["status"] == "ok" and row["mask_mean"] is not None:
                for path, least in self._files.expected(row):
                    expected.add(_Expected(os.fsencode(path), least, row["key"], shard.number, position))
            yield row
        assert self._output.manifest is not None
        start, limit = self._output.manifest.shard_start(shard.number), self._output.limit
        if missing - shard.gone:
            self._unfinished.add(shard.number)
        for position in sorted(missing):
            key = shard.keys[position]
            is_due = position not in shard.gone and (limit is None or start + position < limit)
            if self._output.is_complete and is_due:
                self._found("row lost", key)
                rows.add(_Row(key, _TOLD, shard.number, position))
            for path, _ in self._files.expected({"key": key}):
                expected.add(_Expected(os.fsencode(path), 0, key, shard.number, position))

    def _compare_index(self, rows: Sorter[_Row]) -> None:
        with Sorter(_Row, _ROW_SCHEMA) as index:
            damaged: list[str] = []
            for path in others_in_index(self._output.folder):
                self._found("index stranger", path)
            for table in read_index(self._output.folder, [*_INDEX_COLUMNS, *_INDEX_PLACES], damaged):
                self._count_moved(table)
                for row in table.to_pylist():
                    index.add(_Row(row["key"], _content(row), -1, -1))
            for path in damaged:
                self._found("index damaged", path)
            for path in set(changed_files(self._output.folder)) - set(damaged):
                self._found("index file differs", path)
            for key, group in groupby(heapq.merge(rows, index), key=lambda row: row.key):
                found = list(group)
                recorded, indexed = ([r for r in found if (r.shard < 0) is in_index] for in_index in (False, True))
                if len(indexed) > 1:
                    self._found("index row doubled", key)
                elif any(row.content == _TOLD for row in recorded):
                    continue
                elif not indexed:
                    if not damaged:  # else it is one of that file's
                        self._found("index row lost", key)
                elif [row.content for row in recorded] != [indexed[0].content]:
                    self._found("index row differs", key)

    def _count_moved(self, rows: pa.Table) -> None:
        if count := elsewhere(self._output.folder, rows):
            first = next(uri for uri in rows["mask_uri"].to_pylist() + rows["overlay_uri"].to_pylist() if uri)
            self._found("output moved", first)
            self._counts["output moved"] += count - 1

    def _compare_files(self, expected: Iterable[_Expected]) -> int:
        """Merge the expected files with the existing ones; returns the number of files."""
        files = 0
        wanted = groupby(expected, key=lambda each: each.path)
        path, users = next(wanted, (None, iter(())))
        for file, size in self._listed():
            files += 1
            while path is not None and path < file:
                self._lost(users)
                path, users = next(wanted, (None, iter(())))
            if path != file:
                if not self._files.may_be_under_way(os.fsdecode(file), self._unfinished):
                    self._strays.append(os.fsdecode(file))
                continue
            for each in users:
                if size is not None and size < each.least:
                    self._found("file short", f"{os.fsdecode(file)}: {size} bytes", each.shard, each.position)
            path, users = next(wanted, (None, iter(())))
        while path is not None:
            self._lost(users)
            path, users = next(wanted, (None, iter(())))
        return files

    def _sort_strays(self) -> None:
        """Separate files of listed images, which may be removed, from files that no record names."""
        if not self._strays:
            return
        wanted = {key for path in self._strays if (key := self._files.key_of(path)) is not None}
        known = wanted & self._strange_keys
        manifest = self._output.manifest
        for shard in range(manifest.shards if manifest and wanted - known else 0):
            with contextlib.suppress(UsageError, FileNotFoundError):
                assert manifest is not None
                known |= wanted.intersection(manifest.read_shard(shard, ["key"])["key"].to_pylist())
        is_behind_link = lru_cache(maxsize=10_000)(self._output.folder.is_behind_link)
        for path in self._strays:
            shards = manifest.shards if manifest else 0
            explained = self._files.key_of(path) in known or self._files.is_tar_of(path, shards)
            if explained and not is_behind_link(path.rpartition("/")[0]):
                self._orphan("file of no row", path)
            else:
                self._found("file of others", path)

    def _find_parts_of_no_shard(self) -> None:
        shards = self._output.manifest.shards if self._output.manifest else None
        for shard, parts in all_parts(self._output.folder):
            if shards is not None and shard >= shards:
                for part in parts:
                    self._found("part damaged", f"{part.path}: the manifest has no shard {shard}")
                    self._damaged.append(part)

    def _listed(self) -> Iterator[tuple[bytes, int | None]]:
        """Path and size of every result file, in byte order of the path."""
        for folder in sorted(self._files.folders):
            with contextlib.suppress(FileNotFoundError):
                for file in self._output.folder.child(folder).walk():
                    yield os.fsencode(f"{folder}/{file.path}"), file.size

    def _lost(self, users: Iterable[_Expected]) -> None:
        for each in users:
            if each.least:
                self._found("file lost", os.fsdecode(each.path), each.shard, each.position)

    def _reopen(self, rows: list[dict[str, Any]]) -> int:
        """Decode the masks of these rows and compare; the listing reports missing and empty files."""

        def look(row: dict[str, Any]) -> str | None:
            with contextlib.suppress(FileNotFoundError):
                if data := self._files.read(row, "mask"):
                    return fault_of(data, row, self._output.config)
            return None

        with ThreadPoolExecutor(_THREADS) as pool:
            for row, fault in zip(rows, pool.map(look, rows), strict=True):
                if fault is not None:
                    self._found("mask differs", f"{row['key']}: {fault}", row["shard"], row["position"])
        return len(rows)


def _content(row: Mapping[str, Any]) -> str:
    """The values that a row of the index must share with its row in the ledger."""
    return " ".join(str(row[name]) for name in _INDEX_COLUMNS[1:])


def _untold(rows: pa.Table, part: Part) -> str | None:
    """A clause on the content of a part that differs from its name; None if it fits."""
    statuses, positions = Counter(rows["status"].to_pylist()), rows["position"].to_pylist()
    held = (statuses["ok"], statuses["error"], min(positions, default=-1), max(positions, default=-1))
    if held == (part.ok, part.error, part.first, part.last):
        return None
    return f"it holds {held[0]} ok and {held[1]} error rows from {held[2]} to {held[3]}"


@contextlib.contextmanager
def _leased(output: Folder, on_wait: Callable[[str], None]) -> Iterator[HeldFolder]:
    """Hold the lease of an output while it is changed; yields the held folder.

    Raises:
        UsageError: a run is at work, or the output cannot be written.
    """
    current = lease.holder(output)
    if current is not None and is_at_work(current):
        raise UsageError(f"{output.url} is being written ({current}); repair it when that has ended.")
    attempt = f"repair-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    with lease.leased(output, attempt, on_wait):
        yield HeldFolder.of(output, attempt)
