"""Summary: what a run did, for people, for ``--json`` and for ``run.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vbp.storage.leftout import in_words


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Totals of a finished run."""

    run_id: str
    output: str
    """Absolute URL or path."""
    images: int
    """Listed, from this run or an earlier one."""
    ok: int
    error: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Failed images by ``stage: type``."""
    computed: int
    """Images that this run worked on; the rest was done before."""
    failures_allowed: int
    seconds: float
    """Wall time of this run's work on images; listing and start-up aside."""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds spent per stage, summed over all workers."""
    runner: str
    device: str
    precision: str
    batch_size: int
    workers: int
    classes: str | None = None
    """How folders were matched with classes, or why not; None without a classifier."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Files of INPUT that are no images, by suffix or kind."""
    max_failures: str = ""
    """As it was asked for: what `failures_allowed` comes from."""

    @property
    def complete(self) -> bool:
        """Every listed image has its row."""
        return self.ok + self.error == self.images

    @property
    def succeeded(self) -> bool:
        """Complete, and no more failures than allowed: what ``_SUCCESS`` says."""
        return self.complete and self.error <= self.failures_allowed

    @property
    def left_out_in_words(self) -> str:
        """The same for people."""
        return in_words(self.left_out)

    @property
    def failure(self) -> str:
        """A clause that says why the run failed, with its arithmetic; empty where it did not."""
        if not self.complete:
            missing = self.images - self.ok - self.error
            return f"{missing} images have no row yet"
        if self.succeeded:
            return ""
        share = f"{100 * self.error / self.images:.3g} %"
        allowed = f"{self.max_failures} of {self.images} images: {self.failures_allowed}"
        return (
            f"{self.error} of {self.images} images failed, {share}, and --max-failures allows "
            f"{allowed if self.max_failures.endswith('%') else self.failures_allowed}"
        )

    @property
    def images_per_second(self) -> float:
        """Of this run's own work; 0 when nothing was left to do."""
        return self.computed / self.seconds if self.computed and self.seconds > 0 else 0.0

    @property
    def exit_code(self) -> int:
        """0, or 3 when more images failed than allowed."""
        return 0 if self.succeeded else 3

    def as_json(self) -> dict[str, Any]:
        """JSON values, derived ones included."""
        return {
            **dataclasses.asdict(self),
            "succeeded": self.succeeded,
            "images_per_second": round(self.images_per_second, 3),
        }
