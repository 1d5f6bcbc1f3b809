"""Rates of several pieces of work, measured side by side: warm-up, interleaved rounds, median and spread."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any


@dataclass(frozen=True)
class Case:
    """A piece of work to time."""

    part: str
    name: str
    work: Callable[[], tuple[int, float]]
    """Does it once; returns how many images that were and how many seconds they took (see `clocked`)."""


@dataclass
class Rate:
    """What was measured of a case, in images per second."""

    part: str
    name: str
    rates: list[float] = field(default_factory=list)
    """One a round."""

    @property
    def median(self) -> float:
        """The figure to quote."""
        return statistics.median(self.rates)

    def as_json(self) -> dict[str, Any]:
        """Median, least, greatest, and every round."""
        return {
            "part": self.part,
            "name": self.name,
            "images_per_second": round(self.median, 2),
            "least": round(min(self.rates), 2),
            "greatest": round(max(self.rates), 2),
            "rounds": [round(rate, 2) for rate in self.rates],
        }


@dataclass(frozen=True)
class Ratio:
    """One case over another, round by round, so that a machine that slows down for both changes nothing."""

    name: str
    values: Sequence[float]
    target: float
    """The least that the ratio should be."""

    @property
    def median(self) -> float:
        """The figure to quote."""
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        """Median, spread and target."""
        return {
            "name": self.name,
            "ratio": round(self.median, 3),
            "least": round(min(self.values), 3),
            "greatest": round(max(self.values), 3),
            "target": self.target,
            "reached": self.median >= self.target,
        }


def clocked(work: Callable[[], Any], images: int) -> Callable[[], tuple[int, float]]:
    """`work` under a clock; it must have come to its end when it returns."""

    def once() -> tuple[int, float]:
        started = time.perf_counter()
        work()
        return images, time.perf_counter() - started

    return once


def measure(cases: Sequence[Case], rounds: int, report: Callable[[str], None]) -> dict[str, Rate]:
    """Run every case once to warm up, then all of them in turn, `rounds` times.

    Args:
        cases: distinct by name.
        rounds: how often each is timed.
        report: gets a line after each round.
    """
    rates = {case.name: Rate(case.part, case.name) for case in cases}
    for case in cases:
        case.work()
    for number in range(rounds):
        for case in cases:
            images, seconds = case.work()
            rates[case.name].rates.append(images / seconds)
        report(f"round {number + 1} of {rounds}")
    return rates


def ratio(name: str, above: Rate, below: Rate, target: float) -> Ratio:
    """`above` over `below`, round by round."""
    return Ratio(name, [a / b for a, b in zip(above.rates, below.rates, strict=True)], target)


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    names = {"cpu": _processor()}
    if device != "cpu":
        import torch

        names["gpu"] = torch.cuda.get_device_name()
    versions = {name: version(name) for name in ("vbp", "torch", "torchvision", "pillow", "numpy")}
    return {**names, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), **versions}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
