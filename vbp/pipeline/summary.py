"""Summary: what a run did, for people, for ``--json`` and for ``run.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vbp.storage.leftout import in_words
from vbp.words import counted


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Totals of a finished run."""

    run_id: str
    output: str
    """Absolute URL or path."""
    images: int
    """Images in the manifest, whichever attempt did them; of those that are gone from INPUT, the ones with a result."""
    ok: int
    error: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Failed images by ``stage: type``."""
    computed: int
    """Images that this attempt worked on; earlier ones did the rest."""
    failures_allowed: int
    seconds: float
    """Wall time of this attempt's work on images, without listing and start-up."""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds spent per stage, summed over all workers."""
    runner: str
    device: str
    precision: str
    batch_size: int
    workers: int
    classes: str | None = None
    """A sentence on how folders were matched with classes, or why not; None without a classifier."""
    classes_match: bool = True
    """Whether they were, so that predictions are called correct or wrong."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Files of INPUT that are no images, by suffix or kind."""
    max_failures: str = ""
    """``--max-failures`` as it was given, from which `failures_allowed` is computed."""
    gone: int = 0
    """Images among them that are gone from INPUT; their results stay."""

    @property
    def complete(self) -> bool:
        """Whether every listed image has a row."""
        return self.ok + self.error == self.images

    @property
    def succeeded(self) -> bool:
        """Whether the run is complete with no more failures than allowed; ``_SUCCESS`` says so."""
        return self.complete and self.error <= self.failures_allowed

    @property
    def left_out_in_words(self) -> str:
        """`left_out` as a phrase for people."""
        return in_words(self.left_out)

    @property
    def failure(self) -> str:
        """A clause that says why the run failed, with its numbers; empty if it did not fail."""
        if not self.complete:
            missing = self.images - self.ok - self.error
            return counted(missing, "image has no row yet", "images have no row yet")
        if self.succeeded:
            return ""
        share = f"{100 * self.error / self.images:.3g} %"
        images = counted(self.images, "image")
        of_all = f" ({self.max_failures} of {images})" if self.max_failures.endswith("%") else ""
        return f"{self.error} of {images} failed, {share}, and --max-failures allows {self.failures_allowed}{of_all}"

    @property
    def images_per_second(self) -> float:
        """Images per second of this attempt's own work; 0 if nothing was left to do."""
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
