"""The main job on generated scenes: makes them, explains them through Ray, and scores the masks.

::

    OUTPUT/scenes/<label>/<name>.png   the image tree
    OUTPUT/truth/<label>/<name>.png    the true objects, white
    OUTPUT/results/                    what ``vbp explain OUTPUT/scenes OUTPUT/results --weights demo`` writes
    OUTPUT/random/                     masks of the same network with random weights
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pyarrow import dataset

from vbp.demo.scenes import Scene, write_tree
from vbp.demo.score import Score, Trial, score
from vbp.demo.train import compact_vgg16, save
from vbp.images.decode import decode_upright
from vbp.images.encode import decode_mask
from vbp.pipeline import Observer, RunConfig, Summary, run
from vbp.pipeline.on_ray.cluster import connected
from vbp.storage.results.read import read_result

SEED = 20_000
"""Seed of the demo's scenes; training uses seeds from 1, so it has seen none of them."""
RANDOM_SEED = 500
CLEARLY = 0.10
"""Share of the scenes by which the trained network must lead for a clear lead."""


@dataclass(frozen=True)
class Outcome:
    """The results of the demo."""

    summary: Summary
    """Summary of the run with the trained weights."""
    plain: Score
    """Score on scenes without distractors."""
    distracted: Score
    """Score on scenes with distractors."""
    total: Score

    @property
    def leads_clearly(self) -> bool:
        """Whether the trained network beats random weights, image centre and strongest edge by a clear margin."""
        best_rival = max(self.total.random_weights, self.total.image_centre, self.total.strongest_edge)
        return self.total.trained - best_rival >= CLEARLY * self.total.total


def show(output: Path, scenes: int, observer: Observer | None = None) -> Outcome:
    """Run the demo.

    Args:
        output: folder for everything; made where missing.
        scenes: how many to generate.
        observer: receives the progress of the runs.
    """
    drawn = write_tree(output / "scenes", output / "truth", scenes, SEED)
    random_weights = output / "random.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        save(compact_vgg16(), random_weights)
    with connected():
        summary = run(_config(output, "results", "demo", ("mask", "overlay")), observer)
        run(_config(output, "random", str(random_weights), ("mask",)), observer)
    return Outcome(
        summary,
        plain=score(_trials(output, [scene for scene in drawn if not scene.distractors])),
        distracted=score(_trials(output, [scene for scene in drawn if scene.distractors])),
        total=score(_trials(output, drawn)),
    )


def _config(output: Path, results: str, weights: str, outputs: tuple[str, ...]) -> RunConfig:
    return RunConfig(
        input=str(output / "scenes"),
        output=str(output / results),
        weights=weights,
        outputs=outputs,  # type: ignore[arg-type]
        mask_format="png16",
        runner="ray",
    )


def _trials(output: Path, scenes: list[Scene]) -> Iterator[Trial]:
    """Scenes with their masks, read back by the index, so that the score is of the written files."""
    rows = {run: _rows(output / run) for run in ("results", "random")}
    for scene in scenes:
        key = f"{scene.label}/{scene.name}.png"
        with Image.open(output / "truth" / key) as truth:
            object_HW = np.asarray(truth) > 127
        masks = [decode_mask(read_result(rows_of_run[key])) for rows_of_run in rows.values()]
        pixels_HWC = decode_upright((output / "scenes" / key).read_bytes())
        yield Trial(pixels_HWC, object_HW, *masks)


def _rows(results: Path) -> dict[str, dict[str, Any]]:
    """The index by key."""
    return {row["key"]: row for row in dataset.dataset(results / "index").to_table().to_pylist()}
