"""The one value that every metric gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """What one metric says of one map of one image.

    Attributes:
        metric: its name in `vbp.evaluation.metrics.METRICS`.
        value: the number, in the metric's range; NaN where there is nothing to measure.
        chance: what a map that knows nothing of this image scores in the mean; None where the metric has no such level.
        settings: the values on which the number depends, to be printed beside it: ``steps 28, blur 10``; may be empty.
    """

    metric: str
    value: float
    chance: float | None = None
    settings: str = ""
