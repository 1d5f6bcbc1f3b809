"""The pace of a run in images per second, from an even sample of its parts, so that its cost has a bound."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pyarrow.compute as pc

from vbp.storage.files import Folder
from vbp.storage.ledger.index import parts_by_shard
from vbp.storage.ledger.parts import Part, read_parts
from vbp.storage.manifest.manifest import Manifest

SAMPLE = 64
"""The most parts that are read."""
_THREADS = 16


def pace_of(output: Folder, manifest: Manifest, run_id: str | None) -> float | None:
    """Images per second of one attempt; None if too few are done."""
    sample = EvenSample()
    for _, parts in parts_by_shard(output, manifest):
        for part in parts:
            if part.attempt == run_id:
                sample.add(part)
    return pace(output, sample)[0]


class EvenSample:
    """An even sample of a stream of parts; each has the number of rows that it represents."""

    def __init__(self) -> None:
        self._step, self._seen = 1, 0
        self.parts: list[tuple[Part, int]] = []
        self.last: Part | None = None

    def add(self, part: Part) -> None:
        """Add a part of the stream."""
        rows = part.ok + part.error
        if self._seen % self._step:
            kept, before = self.parts[-1]
            self.parts[-1] = kept, before + rows
        else:
            self.parts.append((part, rows))
        self._seen += 1
        self.last = part
        if len(self.parts) > SAMPLE:
            pairs = zip(self.parts[::2], [*self.parts[1::2], (part, 0)], strict=False)
            self.parts = [(one, rows + others) for (one, rows), (_, others) in pairs]
            self._step *= 2


def pace(output: Folder, sample: EvenSample) -> tuple[float | None, datetime | None]:
    """Images per second, from the times at which rows were finished.

    Args:
        output: OUTPUT.
        sample: a sample of the run's parts.

    Returns:
        Images per second over the newer half of the sample, and when its newest row was finished; None if too few
        images are done.
    """
    if sample.last is None:
        return None, None
    with ThreadPoolExecutor(_THREADS) as pool:
        times = list(pool.map(lambda part: _finished_at(output, part), [part for part, _ in sample.parts]))
        newest = _finished_at(output, sample.last)
    events = sorted((time, rows) for time, (_, rows) in zip(times, sample.parts, strict=True) if time is not None)
    newest = max(filter(None, [newest, *(time for time, _ in events)]), default=None)
    newer = events[len(events) // 2 :] if len(events) >= 8 else events
    if len(newer) < 2:
        return None, newest
    seconds = (newer[-1][0] - newer[0][0]).total_seconds()
    return (sum(rows for _, rows in newer[1:]) / seconds if seconds > 0 else None), newest


def _finished_at(output: Folder, part: Part) -> datetime | None:
    """When the part's last row was finished; None if the part has just been replaced."""
    try:
        newest = pc.max(read_parts(output, [part], ["finished_at"])["finished_at"]).as_py()
    except FileNotFoundError:
        return None
    return newest if newest is None else newest.astimezone(UTC)
