"""Status: the state of a run from its output alone, whether it runs, was killed, or is done.

Counts come from the names of the parts, so the cost is one listing; only where images are gone from INPUT the parts are
read. The rate comes from an even sample of the newest attempt's parts. That holds for any number of images and workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from vbp.review.output import Output, begun_at
from vbp.storage.files import Folder
from vbp.storage.ledger.index import counts, parts_by_shard, that_count
from vbp.storage.ledger.lease import Holder, holder
from vbp.storage.ledger.pace import EvenSample, pace
from vbp.storage.ledger.parts import Part, newest, read_parts
from vbp.storage.leftout import in_words
from vbp.storage.manifest.manifest import Manifest

State = Literal["listing", "running", "finished", "failed", "interrupted", "dead"]

_SILENT_SECONDS = 60.0
"""After so many seconds without a renewal the next attempt takes the output over."""


@dataclass(frozen=True, kw_only=True)
class AttemptTotals:
    """Totals that one attempt has committed, with rows that a later one has replaced."""

    run_id: str
    begun_at: datetime | None
    ok: int
    error: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of an output."""

    output: str
    state: State
    """``failed``: every image has its row, more of them errors than ``--max-failures``; ``interrupted``: stopped, and
    the lease given back; ``dead``: the lease is still there, its holder gone or silent."""
    images: int
    """Listed images, up to ``--limit``; 0 while listing."""
    ok: int
    error: int
    images_per_second: float | None
    """Rate of the newest attempt's newer half; None if too few images are done."""
    newest_row_at: datetime | None
    holder: Holder | None
    silent_seconds: float | None
    """Seconds since the lease was renewed, by the clocks of its holder and of this machine."""
    attempts: tuple[AttemptTotals, ...]
    """The attempts, the oldest first."""
    left_out: Mapping[str, int]
    """Files of INPUT that are no images, by suffix or kind, of its last listing."""
    gone: int
    """Images among the ok ones that are gone from INPUT."""

    @property
    def left(self) -> int:
        """Images without a row."""
        return max(0, self.images - self.ok - self.error)

    @property
    def seconds_left(self) -> float | None:
        """Seconds at the present rate; None if that is unknown or no attempt works."""
        if self.state != "running" or not self.images_per_second:
            return None
        return self.left / self.images_per_second

    @property
    def left_out_in_words(self) -> str:
        """`left_out` as a phrase for people."""
        return in_words(self.left_out)

    @property
    def is_live(self) -> bool:
        """Whether an attempt works on the output."""
        return self.state in ("listing", "running")

    def as_json(self) -> dict[str, Any]:
        """JSON values, derived ones included."""
        fields = {**dataclasses.asdict(self), "left": self.left, "seconds_left": self.seconds_left}
        return {name: _json(value) for name, value in fields.items()}


def status(url: str, options: Mapping[str, Any] | None = None) -> Status:
    """Read the status of the output at `url`.

    Raises:
        UsageError: there is no run, or the output cannot be read.
    """
    output = Output.open(url, options)
    current = holder(output.folder)
    silent = _seconds_since(current.renewed_at) if current else None
    at_work = current is not None and is_at_work(current)
    ok = error = gone = 0
    attempts: dict[str, list[int]] = {name: [0, 0] for name in _begun(output, current)}
    sample = EvenSample()
    if output.manifest is not None:
        for shard, parts in parts_by_shard(output.folder, output.manifest):
            shard_ok, shard_error, shard_gone = _counts(output.folder, output.manifest, shard, parts)
            ok, error, gone = ok + shard_ok, error + shard_error, gone + shard_gone
            for part in parts:
                done = attempts.setdefault(part.attempt, [0, 0])
                done[0] += part.ok
                done[1] += part.error
                if part.attempt == output.record.get("run_id"):
                    sample.add(part)
    images = output.images(ok + error, gone)
    rate, newest = pace(output.folder, sample)
    return Status(
        output=output.folder.url,
        state=_state(output, current, at_work, images - ok - error),
        images=images,
        ok=ok,
        error=error,
        images_per_second=rate,
        newest_row_at=newest,
        holder=current,
        silent_seconds=silent,
        attempts=tuple(
            AttemptTotals(run_id=name, begun_at=begun_at(name), ok=done[0], error=done[1])
            for name, done in sorted(attempts.items())
        ),
        left_out=dict(output.manifest.left_out) if output.manifest else {},
        gone=gone,
    )


def _counts(output: Folder, manifest: Manifest, shard: int, parts: list[Part]) -> tuple[int, int, int]:
    """Numbers of ok images, of failed images, and of ok images that are gone from INPUT, in one shard."""
    if shard not in manifest.gone:
        return *counts(parts, manifest.shard_images(shard)), 0
    rows = that_count(manifest, shard, newest(read_parts(output, parts)))
    ok = rows.filter(pc.equal(rows["status"], "ok"))["position"]
    gone = pc.is_in(ok, pa.array(manifest.gone_in(shard), pa.int32()))
    return len(ok), rows.num_rows - len(ok), len(ok.filter(gone))


def _begun(output: Output, current: Holder | None) -> Iterator[str]:
    """The attempts that have begun, as far as known, though they may have committed nothing."""
    names = {output.record.get("run_id"), current.attempt if current else None}
    return (name for name in names if name and begun_at(name))  # a repair is none


def is_at_work(holder: Holder) -> bool:
    """Whether the holder of a lease lives, as far as this machine and its clock can tell."""
    silent = _seconds_since(holder.renewed_at)
    return not holder.is_dead and silent is not None and silent <= _SILENT_SECONDS


def _state(output: Output, current: Holder | None, at_work: bool, left: int) -> State:
    if current is not None:
        if not at_work:
            return "dead"
        return "listing" if output.manifest is None else "running"
    if output.manifest is None:  # nobody knows what is missing; the same command lists INPUT again
        return "interrupted"
    if output.is_complete:
        return "finished"
    has_failed = (output.record.get("summary") or {}).get("succeeded") is False
    return "failed" if left <= 0 and has_failed else "interrupted"


def _seconds_since(time: str) -> float | None:
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
    except (ValueError, TypeError):
        return None


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, dict):
        return {name: _json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value
