"""Output: reads the record, the manifest and the rows of an output."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vbp.errors import StorageError, UsageError, why_unread
from vbp.storage.addresses import check_place
from vbp.storage.files import Folder
from vbp.storage.ledger.compaction import ranges
from vbp.storage.ledger.index import newest_rows, read_index
from vbp.storage.manifest.manifest import Manifest
from vbp.storage.outline import RUNS
from vbp.storage.record import RUN, SWEEP, is_complete, load_record, load_run
from vbp.words import counted

_NEWEST_NEEDS = ["position", "status", "finished_at", "run_id"]


@dataclass(frozen=True)
class Output:
    """The output of one run or of several."""

    folder: Folder
    record: Mapping[str, Any]
    """The content of ``_run/run.json``."""
    manifest: Manifest | None
    """The manifest; None while INPUT is listed for the first time."""
    is_complete: bool
    """Whether a valid ``_SUCCESS`` exists, so that all is done and the index counts."""

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any] | None = None) -> Output:
        """The output at a path or URL; errors as for `at`."""
        check_place("OUTPUT", url)
        return cls.at(Folder(url, options))

    @classmethod
    def at(cls, folder: Folder) -> Output:
        """Read an output; nothing is written.

        Raises:
            UsageError: there is no run, the output cannot be read, or its record is damaged.
        """
        try:
            record = load_run(folder)
            if record is None:
                runs = list((load_record(folder, SWEEP) or {}).get("runs", ()))
                index = "complete" if runs and is_complete(folder, SWEEP) else "not complete: run vbp sweep again"
                why = (
                    f"it is a sweep's, of {counted(len(runs), 'run')}, its index {index}"
                    if runs
                    else f"there is no {RUN}"
                )
                which = folder.uri(f"{RUNS}/{runs[0]}") if runs else "the output of a run"
                raise UsageError(f"OUTPUT (={folder.url}) holds no run: {why}; give {which}.")
            return cls(folder, record, Manifest.load(folder), is_complete(folder))
        except (StorageError, OSError) as error:
            raise UsageError(f"OUTPUT (={folder.url}) cannot be read: {why_unread(error)}.") from error

    @property
    def config(self) -> Mapping[str, Any]:
        """The newest run's configuration; empty before its first image."""
        return self.record.get("config") or {}

    @property
    def limit(self) -> int | None:
        """``--limit`` of the newest attempt; None: all images."""
        return self.config.get("limit")

    @property
    def is_large(self) -> bool:
        """Whether its images make several ranges, which can be worked on apart."""
        return self.manifest is not None and len(ranges(self.manifest)) > 1

    def images(self, rows: int, gone: int) -> int:
        """Number of images that should have a row; rows after the limit are kept.

        Args:
            rows: images that have one.
            gone: images among them that are gone from INPUT.
        """
        return max(rows, self.manifest.images_within(self.limit) + gone) if self.manifest else rows

    def rows(self, columns: list[str]) -> Iterator[pa.Table]:
        """One row for every image that has rows, as tables: from the index if ``_SUCCESS`` counts, else from the parts.

        Args:
            columns: columns of the index.
        """
        if self.is_complete:
            yield from read_index(self.folder, columns)
        elif self.manifest is not None:
            for _, rows in newest_rows(self.folder, self.manifest, _with_needs(columns)):
                yield rows.select(columns)

    def errors(self, columns: list[str]) -> Iterator[pa.Table]:
        """Only the error rows; shards without a failure are not read.

        Args:
            columns: columns of the index, with ``status``.
        """
        if self.is_complete:
            tables = read_index(self.folder, columns)
        elif self.manifest is None:
            return
        else:
            shards = newest_rows(
                self.folder,
                self.manifest,
                _with_needs(columns),
                where=lambda parts: any(part.error for part in parts),
            )
            tables = (rows.select(columns) for _, rows in shards)
        for table in tables:
            failed = table.filter(pc.equal(table["status"], "error"))
            if failed.num_rows:
                yield failed


def begun_at(run_id: str | None) -> datetime | None:
    """When an attempt began, from its id; None if the id does not say it."""
    match = re.match(r"\d{8}T\d{6}Z", run_id or "")
    return datetime.strptime(match[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) if match else None


def _with_needs(columns: list[str]) -> list[str]:
    return list(dict.fromkeys([*columns, *_NEWEST_NEEDS]))
