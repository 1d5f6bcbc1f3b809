"""The part ``pipeline``: the main job on files, by both runners, against its slowest stage alone, and what it uses.

Starting up does not count here (`vbp.evidence.start` measures it): of two runs, the second of more images, the
difference is taken.
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

from vbp.evidence.inputs import DIFFERENT, write_photos, write_weights
from vbp.evidence.timing import Case, Figure, Findings, Rate, Setup, clocked, measure, over
from vbp.evidence.watch import Watched, watched
from vbp.images.decode import decode
from vbp.images.encode import encode_jpeg, encode_mask
from vbp.images.overlay import overlay
from vbp.pipeline import RunConfig, Summary, prepare, run
from vbp.pipeline.cluster import connected
from vbp.saliency.engine import Explainer

SECONDS = 15.0
"""How long the slowest stage alone would take for the images that are measured."""
BATCHES = 8
"""Of the engine alone, one after another."""
RUNNERS = ("local", "ray")
LEAST = 0.90
H100_IMAGES = 3_500


@dataclass(frozen=True)
class Stretch:
    """What the main job did between two numbers of images."""

    images: int
    seconds: float
    stage_seconds: Mapping[str, float]
    """Of all workers together."""
    end: float
    """When the longer run was over, by ``time.monotonic``."""


def stretch(config: RunConfig, few: int, many: int) -> Stretch:
    """Run the job on `few` and on `many` of its images, each into an output of its own; the difference of the two."""
    with tempfile.TemporaryDirectory(prefix="vbp-bench-", dir=config.output) as folder:

        def summary(images: int) -> Summary:
            return run(replace(config, output=f"{folder}/{images}", limit=images))

        if config.runner == "ray":
            with connected():
                less, more = summary(few), summary(many)
        else:
            less, more = summary(few), summary(many)
        end = time.monotonic()
    stages = {name: spent - less.stage_seconds.get(name, 0) for name, spent in more.stage_seconds.items()}
    return Stretch(many - few, more.seconds - less.seconds, stages, end)


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
        few, shard_size = _shorter(seconds / slower, prepare.workers_here(setup.device))
        many = 4 * few
        write_photos(folder / "photos", many)
        (folder / "out").mkdir()
        config = RunConfig(
            input=str(folder / "photos"), output=str(folder / "out"), weights=str(weights), size=size,
            batch_size=setup.batch_size, shard_size=shard_size,
        )  # fmt: skip
        jobs = {runner: replace(config, runner=runner) for runner in RUNNERS}  # type: ignore[arg-type]
        cases = [
            Case("pipeline", "engine alone", engine),
            Case("pipeline", "codecs alone, all cores", codecs),
            *(Case("pipeline", f"main job, {runner}", _job(job, few, many)) for runner, job in jobs.items()),
        ]
        rates = measure(cases, setup.rounds, setup.report)
        used = {runner: watched(stretch, job, few, many) for runner, job in jobs.items()}
    figures = [*_ratios(setup, rates), *(each for runner in RUNNERS for each in _use(runner, used[runner]))]
    return Findings([*rates.values()], figures)


def _shorter(images: float, workers: int) -> tuple[int, int]:
    """Images of the shorter of two runs that differ by about `images`, four times as long the one as the other.

    And the size of its shards: all workers must have some, also in the shorter run, for the difference to tell how
    fast they all are.
    """
    unit = 2 * workers * prepare.SMALL_SHARD_SIZE
    few = unit * max(1, math.ceil(images / 3 / unit))
    return few, min(prepare.SHARD_SIZE, few // (2 * workers))


def _engine(setup: Setup, weights: Path, size: int) -> Callable[[], tuple[float, float]]:
    images = BATCHES * setup.batch_size
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    explainer = Explainer(
        "vgg16", str(weights), device=setup.device, precision=setup.precisions[-1], batch_size=setup.batch_size
    )
    explainer(pixels_BHWC)  # so that whoever asks next learns the true time
    return clocked(partial(explainer, pixels_BHWC), images)


def _codecs(photos: Path, size: int) -> Callable[[], tuple[float, float]]:
    """All that the job does with pixels besides explaining them, on as many threads as there are cores."""
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


def _job(config: RunConfig, few: int, many: int) -> Callable[[], tuple[float, float]]:
    def once() -> tuple[float, float]:
        found = stretch(config, few, many)
        return found.images, found.seconds

    return once


def _ratios(setup: Setup, rates: Mapping[str, Rate]) -> Iterator[Figure]:
    alone = ("engine alone", "codecs alone, all cores")
    slowest = min(alone, key=lambda name: rates[name].median)
    for runner in RUNNERS:
        job = rates[f"main job, {runner}"]
        yield Figure("pipeline", f"main job over {slowest}, {runner} runner", over(job, rates[slowest]), target=LEAST)
        if setup.device == "cuda" and "H100" in torch.cuda.get_device_name():
            name = f"main job on an H100 and {len(os.sched_getaffinity(0))} cores, {runner} runner"
            yield Figure("pipeline", name, job.rates, "images/s", H100_IMAGES)


def _use(runner: str, found: Watched) -> Iterator[Figure]:
    """What the job uses, seen from outside."""

    def figure(name: str, value: float, unit: str) -> Figure:
        return Figure("pipeline", f"{name}, {runner} runner", [value], unit)

    did: Stretch = found.value
    for stage, spent in did.stage_seconds.items():
        yield figure(f"{stage}, worker's time", 1e3 * spent / did.images, "ms/image")
    yield figure("wall time", 1e3 * did.seconds / did.images, "ms/image")
    span = (did.end - did.seconds, did.end)
    yield figure(f"busy of {len(os.sched_getaffinity(0))} cores", found.cores(*span), "cores")
    gpu = found.gpu(*span)
    if gpu is not None:
        yield figure("GPU busy", gpu, "%")
    yield figure("peak memory of the driver", found.own, "MB")
    if found.workers:
        yield figure("peak memory of the largest process beside it", found.workers, "MB")
