"""What limits a figure: the slowest of the steps that it is made of, measured alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vbp.evidence.gpucheck.codecs import TOGETHER
from vbp.evidence.gpucheck.job import MAIN_JOB
from vbp.evidence.gpucheck.rates import BARE, ON_DEVICE, WHOLE
from vbp.evidence.gpucheck.worker import WORKER
from vbp.evidence.page import number

STEPS: Mapping[str, Sequence[str]] = {WHOLE: (BARE, ON_DEVICE), WORKER: (WHOLE,), MAIN_JOB: (WHOLE, WORKER, TOGETHER)}
"""Beginnings of the names of rates with a target, and of the rates that bound them."""


def told(figures: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The figures as they are; those with a target and known steps say in ``detail`` which of these limits them.

    A share near 1 means that the step itself must become faster; a small one, that time is lost between the steps.
    """
    for figure in figures:
        slowest = min(_steps(figure, figures), key=lambda step: float(step["median"]), default=None)
        if slowest is None or figure["target"] is None:
            yield dict(figure)
            continue
        share = figure["median"] / slowest["median"]
        limit = f"{share:.0%} of {slowest['name']} alone ({number(slowest['median'])} {slowest['unit']})"
        yield {**figure, "detail": "; ".join(filter(None, [figure["detail"], limit]))}


def _steps(figure: Mapping[str, Any], figures: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """For each step of the figure, the best that was measured of it."""
    names = next((steps for name, steps in STEPS.items() if figure["name"].startswith(name)), ())
    for name in names:
        measured = [each for each in figures if each["name"].startswith(name) and each["unit"] == figure["unit"]]
        if measured:
            yield max(measured, key=lambda each: float(each["median"]))
