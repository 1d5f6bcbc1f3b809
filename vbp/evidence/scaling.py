"""The part ``scaling``: more workers, and more images. Each worker gets exactly one core (or GPU).

Memory and resume are measured by `vbp.evidence.scale`, as a part of this one.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch

from vbp.evidence import scale
from vbp.evidence.inputs import write_photos, write_weights
from vbp.evidence.pipeline import Stretch, enough, stretch
from vbp.evidence.timing import Case, Findings, Setup, measure, ratio
from vbp.evidence.watch import watched
from vbp.pipeline import RunConfig

IMAGES = 256
"""For one worker on a CPU; more workers get as many more."""
ON_A_GPU = 100
"""So many times more on GPUs."""
TWO_OVER_ONE = 1.9


def scaling(setup: Setup) -> Findings:
    """Measure workers, memory by both runners, and the resume of a finished run."""
    found = workers(setup)
    with tempfile.TemporaryDirectory(prefix="vbp-bench-") as name:
        folder = Path(name)
        for runner in ("local", "ray"):
            found.figures += scale.memory(folder, scale.FEW, scale.MANY, runner)
        found.figures += scale.resume(folder, scale.RESUMED, None, {})
    return found


def workers(setup: Setup, images: int = IMAGES, weights: Path | None = None, size: int = 224) -> Findings:
    """1, 2 and as many workers as there are cores or GPUs, under Ray.

    Args:
        setup: how.
        images: see `IMAGES`.
        weights: of a VGG16; None: random ones, without classifier.
        size: side of the square input.
    """
    units = torch.cuda.device_count() if setup.device == "cuda" else len(os.sched_getaffinity(0))
    if units < 2:
        return Findings(notes=[f"Scaling is left out: there is but one {'GPU' if setup.device == 'cuda' else 'core'}."])
    counts = sorted({1, 2, units})
    times = ON_A_GPU if setup.device == "cuda" else 1
    with tempfile.TemporaryDirectory(prefix="vbp-bench-") as name:
        folder = Path(name)
        if weights is None:
            write_weights(weights := folder / "features.safetensors")
        write_photos(folder / "photos", enough(images * times * units, units)[0])
        (folder / "out").mkdir()

        def case(count: int) -> Case:
            limit, shard_size = enough(images * times * count, count)
            config = RunConfig(
                input=str(folder / "photos"), output=str(folder / "out"), weights=str(weights), size=size,
                batch_size=setup.recipe.config.batch_size, runner="ray", workers=count, limit=limit,
                shard_size=shard_size,
            )  # fmt: skip

            def once() -> tuple[float, float]:
                confined = watched(_confined, config, setup.device, environment=_only(setup.device, count))
                did: Stretch = confined.value
                return did.images, did.seconds

            return Case("scaling", f"main job, ray, {count} worker{'s' if count > 1 else ''}", once)

        rates = measure([case(count) for count in counts], setup.rounds, setup.report, warm_up=False)
    one, *others = rates.values()
    figures = [
        ratio(f"{count} workers over 1", rate, one, TWO_OVER_ONE if count == 2 else None)
        for count, rate in zip(counts[1:], others, strict=True)
    ]
    return Findings([*rates.values()], figures)


def _only(device: str, count: int) -> dict[str, str]:
    """The variables that let Ray see so many cores or GPUs."""
    if device == "cuda":
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}
    return {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": count})}


def _confined(config: RunConfig, device: str) -> Stretch:
    """The job on as many cores as it has workers, where these compute on cores; Ray and its workers inherit that."""
    if device == "cpu":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: config.workers])
    return stretch(config)
