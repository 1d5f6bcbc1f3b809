"""Validate an output: compare manifest, ledger, index and files with each other, and reopen masks.

Everything is a stream, or a merge of two sorted streams, so memory does not grow with the collection; items to sort
wait in a temporary folder, about 100 bytes for each image and file. A repair deletes wrong rows, so that the next run
does these images again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import shlex
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from typing import Any

from vbp.errors import UsageError
from vbp.review.choice import Choice
from vbp.review.examine import (
    EXPECTED_SCHEMA,
    IN_INDEX,
    ROW_SCHEMA,
    TOLD,
    Examined,
    Expected,
    Findings,
    Request,
    Row,
    content_of,
    count_moved,
    examine,
    recorded,
    reopen,
)
from vbp.review.existing import Compared, compare, compare_stretch, existing, stretches
from vbp.review.output import Output
from vbp.review.status import is_at_work
from vbp.storage.files import Folder
from vbp.storage.ledger import lease
from vbp.storage.ledger.compaction import compact, ranges
from vbp.storage.ledger.held import HeldFolder
from vbp.storage.ledger.index import all_parts, forget, index_files, others_in_index, read_index
from vbp.storage.ledger.parts import Part
from vbp.storage.manifest.manifest import MANIFEST
from vbp.storage.outline import INDEX_FILES
from vbp.storage.parquet import numbered
from vbp.storage.record import (
    broken_promise,
    changed_files,
    load_promise,
    mark_complete,
    mark_incomplete,
    save_record,
    withdraw,
)
from vbp.storage.results.files import files_of
from vbp.storage.sorting import Sorter
from vbp.storage.spreading import Spread, here, ignored
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

_THREADS = 16
_MOST = 32
"""Ranges that are examined, or whose findings wait."""


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
            if self.is_listed and self.is_complete:
                return "Sound."
            lacking = "there is no _SUCCESS" if self.is_listed else "there is no list of images"
            left = counted(self.left, "image is left", "images are left") if self.left else lacking
            return f"Sound so far; {left}: give the run's command again."
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
    spread: Spread = here,
    on_progress: Callable[[str], object] = ignored,
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
        spread: examines the ranges of the output.
        on_progress: called often, with what has been done.
        on_wait: called with a sentence that says for whom a repair waits.
        on_orphans: called with the paths of the files before any is deleted; returns whether to delete them.

    Raises:
        UsageError: a repair is requested while a run is at work; or the layout is unknown.
        StorageError: a store does not answer.
        LeaseLostError: another attempt has taken the output over meanwhile.
    """
    if not (repair or remove_orphans or rebase):
        current = lease.holder(output.folder)
        return _Check(output, current is not None and is_at_work(current), spread, on_progress).run(sample, seed, deep)
    with _leased(output.folder, on_wait) as held:
        check = _Check(Output.at(held), False, spread, on_progress)
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


class _Check:
    """One check of an output; keeps what a repair needs."""

    def __init__(self, output: Output, is_live: bool, spread: Spread, tell: Callable[[str], object]) -> None:
        self._output, self._is_live = output, is_live
        self._spread, self._tell = spread, tell
        self._files = files_of(output.folder, output.config)
        self._ranges = ranges(output.manifest) if output.manifest else []
        self._findings = Findings()
        self._damaged: list[Part] = []
        self._unfinished = set[int]()
        self._unlisted = False
        self._strays: list[str] = []
        self._strange_keys = set[str]()
        self.orphans: list[str] = []

    def run(self, sample: int, seed: int, deep: bool) -> Validation:
        """Make all checks once."""
        promise = (load_promise(self._output.folder) or {}).get("index", {})
        promised = {path: file["sha256"] for path, file in promise.items()}
        request = Request(self._output, sample, seed, deep, promised)
        chosen = Choice(sample, seed)
        statuses, gone, opened = Counter[str](), 0, 0
        of_index: list[Findings | None] = []
        with Sorter(Expected, EXPECTED_SCHEMA) as expected:
            for found in self._spread(partial(examine, request), self._ranges, most=_MOST):
                self._take(found)
                statuses.update(found.statuses)
                self._tell(f"{statuses.total()} rows examined")
                gone, opened = gone + found.gone, opened + found.opened
                chosen.offer(found.chosen)
                expected.add_sorted(found.expected)
                of_index.append(found.of_index)
            if self._output.is_complete:
                self._check_index(of_index)
            elif not self._is_live and (why := broken_promise(self._output.folder)) is not None:
                self._findings.add("promise broken", why)
            files = self._compare_files(expected)
        self._sort_strays()
        self._find_parts_of_no_shard()
        opened += reopen(self._output, chosen.rows, self._findings)
        if not self._is_live:  # otherwise they may be running writes
            for path in self._output.folder.temporaries(TEMPORARY_SECONDS):
                self._orphan("temporary file", path)
        counts = self._findings.counts
        return Validation(
            output=self._output.folder.url,
            images=statuses.total() if self._unlisted else self._output.images(statuses.total(), gone),
            ok=statuses["ok"],
            error=statuses["error"],
            files=files,
            masks_opened=opened,
            findings=tuple(
                Finding(kind=kind, count=counts[kind], examples=self._findings.examples(kind))
                for kind in FAULTS
                if counts[kind]
            ),
            redo=len(self._findings.redo),
            orphans=len(self.orphans),
            repaired=False,
            orphans_removed=False,
            rebased=False,
            is_complete=self._output.is_complete,
            is_listed=self._output.manifest is not None,
            gone=gone,
        )

    def _take(self, found: Examined) -> None:
        self._findings.extend(found.findings)
        self._damaged += found.damaged
        self._unfinished |= found.unfinished
        self._unlisted |= found.is_unlisted
        self._strange_keys |= found.strange_keys

    def repair(self, held: HeldFolder) -> None:
        """Delete ``_SUCCESS`` and every wrong row."""
        mark_incomplete(held)
        # a _SUCCESS that another attempt writes late is then not ours
        save_record(held, {**self._output.record, "attempt": held.attempt})
        for part in self._damaged:
            held.delete(part.path)
        if self._unlisted:
            withdraw(held, MANIFEST)  # INPUT is listed again, and rows are compared with that
        for shard, rows in groupby(self._findings.redo, key=itemgetter(0)):
            forget(held, shard, [position for _, position in rows])

    @property
    def is_moved(self) -> bool:
        """Whether the index names the output's former place."""
        return self._findings.counts["output moved"] > 0

    def rebase(self, held: HeldFolder) -> None:
        """Make the index and ``_SUCCESS`` again, for the output's present place."""
        manifest, summary = self._output.manifest, self._output.record.get("summary")
        assert manifest is not None
        mark_incomplete(held)
        totals = compact(held, manifest, self._output.limit, spread=self._spread)
        changes = {"attempt": held.attempt, "summary": {**(summary or {}), "output": held.url}}
        save_record(held, {**self._output.record, **changes})
        counts = {"images": totals.images, "ok": totals.ok, "error": totals.error}
        mark_complete(held, held.attempt, totals.files, counts)

    def _orphan(self, kind: str, path: str) -> None:
        self._findings.add(kind, path)
        self.orphans.append(path)

    def _check_index(self, of_ranges: Sequence[Findings | None]) -> None:
        """Hold the index against the ledger: file by file, if each has the rows of its range; else row by row."""
        folder = self._output.folder
        for path in others_in_index(folder):
            self._findings.add("index stranger", path)
        of_index = [found for found in of_ranges if found is not None]
        usual = {numbered(INDEX_FILES, part.number) for part in self._ranges}
        if len(of_index) == len(of_ranges) and usual.issuperset(index_files(folder)):
            for found in of_index:
                self._findings.extend(found)
        else:
            self._compare_index()

    def _compare_index(self) -> None:
        """Merge the rows of the ledger with those of the index, by key."""
        folder, findings, damaged = self._output.folder, self._findings, list[str]()
        with Sorter(Row, ROW_SCHEMA) as rows, Sorter(Row, ROW_SCHEMA) as index:
            for table in self._spread(partial(recorded, self._output), self._ranges, most=_MOST):
                rows.add_sorted(table)
            for table in read_index(folder, IN_INDEX, damaged):
                count_moved(folder, table, findings)
                for row in table.to_pylist():
                    index.add(Row(row["key"], content_of(row), -1, -1))
            for path in damaged:
                findings.add("index damaged", path)
            for path in changed_files(folder):
                if path not in damaged:
                    findings.add("index file differs", path)
            for key, group in groupby(heapq.merge(rows, index), key=lambda row: row.key):
                found = list(group)
                of_ledger, of_index = ([r for r in found if (r.shard < 0) is in_index] for in_index in (False, True))
                if len(of_index) > 1:
                    findings.add("index row doubled", key)
                elif any(row.content == TOLD for row in of_ledger):
                    continue
                elif not of_index:
                    if not damaged:  # else it is one of that file's
                        findings.add("index row lost", key)
                elif [row.content for row in of_ledger] != [of_index[0].content]:
                    findings.add("index row differs", key)

    def _compare_files(self, expected: Sorter[Expected]) -> int:
        """Compare the expected files with the existing ones, in stretches by workers; returns the number of files."""
        folder, folders, files = self._output.folder, self._files.folders, 0
        cut = None if self._spread is here else stretches(folder, folders, expected)
        if cut is None:
            results: Iterable[Compared] = [compare(expected, existing(folder, folders), self._tell)]
        else:
            results = self._spread(partial(compare_stretch, folder), cut, most=_MOST)
        for found in results:
            files += found.files
            self._tell(f"{files} files compared")
            self._findings.extend(found.findings)
            self._strays += (path for path in found.strays if not self._files.may_be_under_way(path, self._unfinished))
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
                self._findings.add("file of others", path)

    def _find_parts_of_no_shard(self) -> None:
        shards = self._output.manifest.shards if self._output.manifest else None
        for shard, parts in all_parts(self._output.folder):
            if shards is not None and shard >= shards:
                for part in parts:
                    self._findings.add("part damaged", f"{part.path}: the manifest has no shard {shard}")
                    self._damaged.append(part)


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
