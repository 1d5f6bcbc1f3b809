"""Figures to read beside one's own: those of the published evaluation, written into the package by ``make evidence``.

They are of the masks, their random twin and their own chance level, as in ``docs/evaluation.md``, which has the mean
chance level of all methods.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vbp.review.evaluation import OWN, Evaluated, Line

FILE = "reference.json"
TWIN = "random-twin"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One metric of one evaluation."""

    metric: str
    mean: float
    low: float
    high: float
    """Ends of the interval of the mean."""
    twin: float | None
    """Mean of the random twin."""
    chance: float | None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One published evaluation."""

    title: str
    images: int
    figures: tuple[Figure, ...]
    seconds: float | None
    """Of a mask, on the machine of the page; of the twin's, which are the same work, where only they were timed."""

    def figure(self, metric: str) -> Figure | None:
        """The figure of a metric; None where it was not measured."""
        return next((each for each in self.figures if each.metric == metric), None)


def reference(title: str, found: Evaluated) -> Reference:
    """What of an evaluation is kept; numbers with four decimals."""
    figures = []
    for table in found.tables:
        lines = {line.method: line for line in table.lines}
        if OWN in lines:
            figures.append(_figure(table.metric, lines[OWN], lines.get(TWIN)))
    seconds = _short(found.seconds.get(OWN, found.seconds.get(TWIN)))
    return Reference(title=title, images=found.images, figures=tuple(figures), seconds=seconds)


def _figure(metric: str, own: Line, twin: Line | None) -> Figure:
    numbers = {"mean": own.mean, "low": own.low, "high": own.high}
    kept = {name: round(value, 4) for name, value in numbers.items()}
    return Figure(metric=metric, twin=None if twin is None else _short(twin.mean), chance=_short(own.chance), **kept)


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def write(references: Sequence[Reference], file: Path) -> None:
    """Write the file of the package."""
    file.write_text(json.dumps([dataclasses.asdict(each) for each in references], indent=1) + "\n")


def read() -> tuple[Reference, ...]:
    """The references of the package."""
    found = json.loads((resources.files("vbp.review") / FILE).read_text("utf-8"))
    return tuple(
        Reference(**each | {"figures": tuple(Figure(**figure) for figure in each["figures"])}) for each in found
    )
