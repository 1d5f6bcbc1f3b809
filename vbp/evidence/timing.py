"""What all benchmarks share: cases, timed in alternating rounds; their rates; and figures with targets."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vbp.pipeline import RunConfig
from vbp.pipeline.recipe import Recipe

PACKAGES = (
    "vbp", "torch", "torchvision", "ray", "numpy", "pillow", "captum", "grad-cam", "zennit", "simplejpeg",
    "opencv-python-headless", "imagecodecs", "obstore",
)  # fmt: skip
"""What a figure may depend on; those that are installed are recorded."""


NAMED = ("H100", "H200")
"""GPUs for which there are targets in images a second; all others have ratios alone."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How everything is measured."""

    batch_size: int
    """Images in one forward pass."""
    asked: bool = False
    """Whether somebody asked for that size; else the main job may run such passes side by side."""
    rounds: int
    """How often each case is timed."""
    device: str
    """``cpu`` or ``cuda``."""
    precisions: Sequence[str]
    """Of the network: float32 first, what ``auto`` chooses on this device last."""
    place: str | None = None
    """A folder or URL whose storage is measured; None: a temporary folder."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """Non-secret options by URL prefix."""
    report: Callable[[str], None] = lambda line: None
    """Gets lines of progress."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of the main job on this device, with the last of the precisions."""
        return Recipe(
            config=RunConfig(input="photos", output="out", batch_size=self.batch_size if self.asked else None),
            run_id="benchmark",
            device=self.device,
            precision=self.precisions[-1],
            batch_size=self.batch_size,
            weights_sha256="",
        )


@dataclass(frozen=True)
class Case:
    """A piece of work to time."""

    part: str
    name: str
    work: Callable[[], tuple[float, float]]
    """Does it once; returns how many images (or what `unit` counts) that were, and in how many seconds."""
    unit: str = "images/s"


@dataclass
class Rate:
    """What was measured of a case."""

    part: str
    name: str
    unit: str = "images/s"
    rates: list[float] = field(default_factory=list)
    """One a round."""

    @property
    def median(self) -> float:
        """The one to quote."""
        return statistics.median(self.rates)

    def as_json(self) -> dict[str, Any]:
        """Median, least, greatest, and every round."""
        return {
            "part": self.part,
            "name": self.name,
            "unit": self.unit,
            **_spread(self.rates),
            "rounds": [round(rate, 3) for rate in self.rates],
        }


@dataclass(frozen=True)
class Figure:
    """A result with its target."""

    part: str
    name: str
    values: Sequence[float]
    """One for each round. A ratio is taken within a round, so a slower machine slows both sides of it."""
    unit: str = ""
    """None for a ratio."""
    target: float | None = None
    at_most: bool = False
    """Whether the target is the most that the figure may be, or the least."""
    detail: str = ""
    """A remark."""

    @property
    def median(self) -> float:
        """The one to quote."""
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.median <= self.target if self.at_most else self.median >= self.target

    def as_json(self) -> dict[str, Any]:
        """Median, spread, target and verdict."""
        return {
            "part": self.part,
            "name": self.name,
            "unit": self.unit,
            **_spread(self.values),
            "target": None if self.target is None else round(self.target, 3),
            "at_most": self.at_most,
            "reached": self.reached,
            "detail": self.detail,
        }


@dataclass
class Findings:
    """What a part of the benchmark returns."""

    rates: list[Rate] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was not measured, and why."""


def _spread(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "least": round(ordered[0], 3),
        "greatest": round(ordered[-1], 3),
    }


def clocked(work: Callable[[], Any], images: float) -> Callable[[], tuple[float, float]]:
    """Time `work`, which must have finished all it does when it returns."""

    def once() -> tuple[float, float]:
        started = time.perf_counter()
        work()
        return images, time.perf_counter() - started

    return once


def measure(
    cases: Sequence[Case], rounds: int, report: Callable[[str], None], *, warm_up: bool = True
) -> dict[str, Rate]:
    """Run every case once to warm up, then all of them in turn, `rounds` times.

    Args:
        cases: distinct by name.
        rounds: how often each is timed.
        report: gets a line after each round.
        warm_up: whether to; a case that starts a process of its own gains nothing by it.

    Returns:
        The rates by the names of the cases.
    """
    rates = {case.name: Rate(case.part, case.name, case.unit) for case in cases}
    for case in cases if warm_up else ():
        case.work()
    for number in range(rounds):
        for case in cases:
            count, seconds = case.work()
            rates[case.name].rates.append(count / seconds)
        report(f"{cases[0].part}: round {number + 1} of {rounds}")
    return rates


def over(above: Rate, below: Rate) -> list[float]:
    """`above` over `below`, round by round."""
    return [one / other for one, other in zip(above.rates, below.rates, strict=True)]


def ratio(name: str, above: Rate, below: Rate, target: float | None = None) -> Figure:
    """`above` over `below` as a figure of the part that `above` belongs to."""
    return Figure(above.part, name, over(above, below), target=target)


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    names = {"cpu": _processor()}
    if device != "cpu":
        import torch

        names["gpu"] = torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0))
    return {**names, "cores": cores, "python": platform.python_version(), **_versions()}


def named_gpu(device: str) -> str | None:
    """Which of `NAMED` the device is, so that it has targets of its own; None: none of them."""
    if device == "cpu":
        return None
    import torch

    return next((name for name in NAMED if name in torch.cuda.get_device_name()), None)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
