"""Metrics for Prometheus, through Ray, during a run: images, failures by cause, seconds by stage, images left.

The driver records the reports of committed parts.  It is one process, so no series depends on a worker that starts or
ends.  Ray puts ``ray_`` before each name and exports the metrics on the driver's node, every 10 s.  A gauge that is
not set again disappears after 20 s, so a dashboard must query its newest value over some minutes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

CAUSES = 50
"""The most causes of failure with a series of their own; further causes are counted as ``other``."""


class Metrics:
    """The metrics of one run.

    Args:
        left: images that have no row yet.
    """

    def __init__(self, left: int) -> None:
        self._images = Counter("vbp_images_total", "Images that got their row, failed ones included.")
        self._failures = Counter("vbp_failures_total", "Images that failed, by cause.", ("stage", "type"))
        self._seconds = Counter("vbp_stage_seconds_total", "Seconds spent by all workers, by stage.", ("stage",))
        self._left = Gauge("vbp_images_left", "Images of the run that have no row yet.")
        self._images_left = left
        self._causes: set[str] = set()
        self._left.set(left)

    def add(self, report: Mapping[str, Any]) -> None:
        """Count one report of ``Write``."""
        images = int(report["ok"]) + int(report["error"])
        if images:
            self._images.inc(images)
        for cause, count in json.loads(report["reasons"]).items():
            self._failures.inc(count, self._tags(cause))
        for name, seconds in report.items():
            if name.startswith("seconds_") and seconds > 0:
                self._seconds.inc(float(seconds), {"stage": name.removeprefix("seconds_")})
        self._images_left = max(0, self._images_left - images)  # work that Ray repeats is reported twice
        self._left.set(self._images_left)

    def _tags(self, cause: str) -> dict[str, str]:
        if len(self._causes) < CAUSES:
            self._causes.add(cause)
        stage, _, kind = cause.partition(": ")
        return {"stage": stage, "type": kind if cause in self._causes else "other"}
