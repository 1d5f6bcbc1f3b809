"""The part ``pipeline``: the rate of the main job by both runners, compared with its slowest stage alone.

Starting up does not count here (`vbp.evidence.start` measures it), nor does the end, when some workers have nothing
left to do. So rates are taken between two commits in the middle. CPU, memory and GPU use are measured as well.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from typing_extensions import override

from vbp.evidence.inputs import DIFFERENT, write_photos, write_weights
from vbp.evidence.timing import Case, Figure, Findings, Rate, Setup, clocked, measure, named_gpu, over
from vbp.evidence.watch import Watched, watched
from vbp.explainer import Explainer
from vbp.images.decode import decode
from vbp.images.encode import encode_jpeg, encode_mask
from vbp.images.overlay import overlay
from vbp.pipeline import RunConfig, prepare, run
from vbp.pipeline.observer import Observer

SECONDS = 45.0
"""How long the slowest stage alone would take for the images of one run."""
STEADY = (0.25, 0.875)
"""The shares of the images between which the rate is taken."""
CALLS = 2
"""Times that the engine alone gets as many images as the main job reads and writes together."""
RUNNERS = ("local", "ray")
LEAST = 0.90
IMAGES = 3_500
"""A second, on each of `NAMED` with 16 cores."""


@dataclass(frozen=True)
class Stretch:
    """What the main job did while all its workers were at work."""

    images: int
    start: float
    """By ``time.monotonic``, as `end`."""
    end: float
    stage_milliseconds: Mapping[str, float]
    """An image, of one worker's time; over the whole run."""

    @property
    def seconds(self) -> float:
        """From `start` to `end`."""
        return self.end - self.start


class Moments(Observer):
    """The times of the commits, and how many images had been committed by then."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    @override
    def wrote(self, ok: int, error: int) -> None:
        self._seen.append((time.monotonic(), self.images + ok + error))

    @property
    def images(self) -> int:
        """Committed so far."""
        return self._seen[-1][1] if self._seen else 0

    def steady(self) -> tuple[tuple[float, int], tuple[float, int]]:
        """Time and images at the first commits that reach the shares of `STEADY`.

        Both are commits, so what other workers have computed but not committed yet is on average the same at both.
        """
        first, last = (next(at for at in self._seen if at[1] >= share * self.images) for share in STEADY)
        return first, last


def stretch(config: RunConfig) -> Stretch:
    """Run the job into an output of its own within its ``output``, which is removed."""
    with tempfile.TemporaryDirectory(prefix="vbp-bench-", dir=config.output) as folder:
        moments = Moments()
        summary = run(replace(config, output=f"{folder}/out"), moments)
    (start, before), (end, after) = moments.steady()
    stages = {name: 1e3 * spent / summary.computed for name, spent in summary.stage_seconds.items()}
    return Stretch(after - before, start, end, stages)


def pipeline(setup: Setup, seconds: float = SECONDS, weights: Path | None = None, size: int = 224) -> Findings:
    """Measure it at the precision that ``auto`` chooses.

    Args:
        setup: how.
        seconds: see `SECONDS`.
        weights: of a VGG16; None: random ones, without classifier.
        size: side of the square input.
    """
    with tempfile.TemporaryDirectory(prefix="vbp-bench-") as name:
        folder = Path(name)
        if weights is None:
            write_weights(weights := folder / "features.safetensors")
        write_photos(folder / "some", DIFFERENT)
        engine, codecs = _engine(setup, weights, size), _codecs(folder / "some", size)
        slower = max(spent / images for images, spent in (engine(), codecs()))
        images, shard_size = enough(seconds / slower, prepare.workers_here(setup.device))
        write_photos(folder / "photos", images)
        (folder / "out").mkdir()
        config = RunConfig(
            input=str(folder / "photos"), output=str(folder / "out"), weights=str(weights), size=size,
            batch_size=setup.recipe.config.batch_size, shard_size=shard_size,
        )  # fmt: skip
        jobs = {runner: replace(config, runner=runner) for runner in RUNNERS}  # type: ignore[arg-type]
        cases = [
            Case("pipeline", "engine alone", engine),
            Case("pipeline", "codecs alone, all cores", codecs),
            *(Case("pipeline", f"main job, {runner}", _job(job)) for runner, job in jobs.items()),
        ]
        rates = measure(cases, setup.rounds, setup.report)
        used = {runner: watched(stretch, job) for runner, job in jobs.items()}
    figures = [*_ratios(setup, rates), *(each for runner in RUNNERS for each in _use(runner, used[runner]))]
    return Findings([*rates.values()], figures)


def enough(images: float, workers: int) -> tuple[int, int]:
    """At least so many images, and the size of shards of which every worker gets four."""
    shards = 4 * workers
    shard_size = max(prepare.SMALL_SHARD_SIZE, math.ceil(images / shards))
    return shards * shard_size, min(prepare.SHARD_SIZE, shard_size)


def _engine(setup: Setup, weights: Path, size: int) -> Callable[[], tuple[float, float]]:
    job = setup.recipe
    images = CALLS * job.rows
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    explainer = Explainer(
        "vgg16", str(weights), device=setup.device, precision=job.precision, batch_size=setup.batch_size,
        side_by_side=job.side_by_side,
    )  # fmt: skip
    explainer(pixels_BHWC)  # so that whoever asks next learns the true time
    return clocked(partial(explainer, pixels_BHWC), images)


def _codecs(photos: Path, size: int) -> Callable[[], tuple[float, float]]:
    """Everything that the job does with pixels except explaining them, on one thread for each core."""
    data = [path.read_bytes() for path in sorted(photos.rglob("*.jpg"))]
    mask_HW = np.zeros((size, size), np.float32)
    mask_HW[size // 4 : size // 2] = np.linspace(0, 1, size, dtype=np.float32)

    def whole(file: bytes) -> None:
        pixels_HWC = decode(file, size=size).pixels_HWC
        encode_mask(mask_HW, "png8")
        encode_jpeg(overlay("heat", pixels_HWC, mask_HW))

    def all_of_them() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(whole, data))
        torch.set_num_threads(threads)

    return clocked(all_of_them, len(data))


def _job(config: RunConfig) -> Callable[[], tuple[float, float]]:
    def once() -> tuple[float, float]:
        found = stretch(config)
        return found.images, found.seconds

    return once


def _ratios(setup: Setup, rates: Mapping[str, Rate]) -> Iterator[Figure]:
    alone = ("engine alone", "codecs alone, all cores")
    slowest = min(alone, key=lambda name: rates[name].median)
    for runner in RUNNERS:
        job = rates[f"main job, {runner}"]
        yield Figure("pipeline", f"main job over {slowest}, {runner} runner", over(job, rates[slowest]), target=LEAST)
        gpu = named_gpu(setup.device)
        if gpu is not None:
            name = f"main job on one {gpu} and {len(os.sched_getaffinity(0))} cores, {runner} runner"
            yield Figure("pipeline", name, job.rates, "images/s", IMAGES)


def _use(runner: str, found: Watched) -> Iterator[Figure]:
    """CPU, memory and GPU that the job uses."""

    def figure(name: str, value: float, unit: str) -> Figure:
        return Figure("pipeline", f"{name}, {runner} runner", [value], unit)

    did: Stretch = found.value
    for stage, spent in did.stage_milliseconds.items():
        yield figure(f"{stage}, worker's time", spent, "ms/image")
    yield figure("wall time", 1e3 * did.seconds / did.images, "ms/image")
    yield figure(f"busy of {len(os.sched_getaffinity(0))} cores", found.cores(did.start, did.end), "cores")
    gpu = found.gpu(did.start, did.end)
    if gpu is not None:
        yield figure("GPU busy", gpu, "%")
    yield figure("peak memory of the driver", found.own, "MB")
    if found.workers:
        yield figure("peak memory of the largest process beside it", found.workers, "MB")
