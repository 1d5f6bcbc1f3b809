"""Evaluator: one network, several methods, several metrics; a batch of images in, all scores of each image out.

Shapes: B images, H rows, W columns, C channels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vbp.evaluation.localisation import localisation
from vbp.evaluation.metrics import METRICS, Family
from vbp.evaluation.perturbation import Classify, Perturbation
from vbp.evaluation.randomisation import randomisation
from vbp.evaluation.scores import Score
from vbp.evaluation.shift import shift
from vbp.evaluation.sparseness import sparseness
from vbp.evaluation.stability import Explain, stability

Maps = Callable[..., NDArray[np.float32]]
"""Name of a method, images (B, C, H, W) as the network takes them, pixels (B, H, W, 3) uint8 and classes (B,) or None
-> maps (B, H, W) float32, >= 0."""
Found = tuple[str, str, float | None, float | None, str]
"""Method, metric, value, chance and settings."""
SECONDS = "seconds"
"""The metric that is always there: seconds an image of making the map."""


class Evaluator:
    """Scores the maps of several methods.

    Args:
        maps: of the network.
        normalise: pixels -> images, on the network's device.
        methods: names of the methods; ``vbp`` stands for the masks that the evaluator is given.
        metrics: names of the metrics.
        random: of copies of the network in which ever more convolutions are random, with the name of the lowest; for
            the metrics of randomisation.
        classify: images -> probabilities (B, classes); None without a classifier.
        seed: of what is random in the metrics.
        batch_size: images that a method gets at a time, always as many: smaller batches are filled with black images,
            so that no last bit of a map depends on the images beside it.
        costly_for: methods that get the metrics which need passes through the network; None: all.
    """

    def __init__(
        self,
        maps: Maps,
        normalise: Callable[[NDArray[np.uint8]], Tensor],
        methods: Sequence[str],
        metrics: Sequence[str],
        *,
        random: Sequence[tuple[str, Maps]] = (),
        classify: Classify | None = None,
        seed: int = 500,
        batch_size: int = 1,
        costly_for: Collection[str] | None = None,
    ) -> None:
        self._maps, self._random, self._normalise, self._batch_size = maps, random, normalise, batch_size
        self._methods, self._classify, self._seed = methods, classify, seed
        self._costly_for = methods if costly_for is None else costly_for
        self._asked: dict[Family, list[str]] = {family: [] for family in get_args(Family)}
        for name in metrics:
            self._asked[METRICS[name].family].append(name)

    def __call__(
        self,
        pixels_BHWC: NDArray[np.uint8],
        masks_BHW: NDArray[np.float32],
        classes_B: NDArray[np.int64] | None,
        regions: Sequence[NDArray[np.bool_] | None],
    ) -> list[list[Found]]:
        """All scores of each image.

        Args:
            pixels_BHWC: what the network saw.
            masks_BHW: the masks of the run.
            classes_B: the classes that class-specific methods explain; None without a classifier.
            regions: where the object is; None where nobody knows.
        """
        found: list[list[Found]] = [[] for _ in pixels_BHWC]
        perturbations = self._perturbations(pixels_BHWC, classes_B)
        for method in self._methods:
            started = time.perf_counter()
            maps_BHW = masks_BHW if method == "vbp" else self._explain(self._maps, method, classes_B)(pixels_BHWC)
            seconds = (time.perf_counter() - started) / len(maps_BHW)
            is_costly = method in self._costly_for
            changed = self._of_changes(method, pixels_BHWC, classes_B) if is_costly else [[]] * len(maps_BHW)
            for i, map_HW in enumerate(maps_BHW):
                own = self._of_one(map_HW, regions[i], perturbations[i] if is_costly else None)
                found[i] += _named(method, [*own, *changed[i]])
                if method != "vbp":
                    found[i].append((method, SECONDS, seconds, None, ""))
        return found

    def _explain(self, maps: Maps, method: str, classes_B: NDArray[np.int64] | None) -> Explain:
        """The method for one network; it works in batches of one size."""

        def explain(pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
            made = []
            for first in range(0, len(pixels_BHWC), self._batch_size):
                own = slice(first, first + self._batch_size)
                pixels, count = _filled(pixels_BHWC[own], self._batch_size), len(pixels_BHWC[own])
                classes = None if classes_B is None else _filled(classes_B[own], self._batch_size)
                made.append(maps(method, self._normalise(pixels), pixels, classes)[:count])
            return np.concatenate(made)

        return explain

    def _of_changes(
        self, method: str, pixels_BHWC: NDArray[np.uint8], classes_B: NDArray[np.int64] | None
    ) -> list[list[Score]]:
        """The scores of each image for which a method explains changed images, or changed networks."""
        scores: list[list[Score]] = [[] for _ in pixels_BHWC]
        explain = self._explain(self._maps, method, classes_B)
        if self._asked["stability"]:
            for own, found in zip(
                scores, stability(pixels_BHWC, explain, self._asked["stability"], seed=self._seed), strict=True
            ):
                own += found
        if self._asked["randomisation"]:
            random = [(layer, self._explain(maps, method, classes_B)) for layer, maps in self._random]
            told = randomisation(pixels_BHWC, explain, random, self._asked["randomisation"], seed=self._seed)
            for own, each in zip(scores, told, strict=True):
                own += each.scores
        return scores

    def _perturbations(
        self, pixels_BHWC: NDArray[np.uint8], classes_B: NDArray[np.int64] | None
    ) -> Sequence[Perturbation | None]:
        """Each image, ready to be changed; None where no metric asks for it."""
        asked = self._asked["perturbation"] or self._asked["shift"]
        if not asked or self._classify is None or classes_B is None:
            return [None] * len(pixels_BHWC)
        images_BCHW = self._normalise(pixels_BHWC)
        return [
            Perturbation(image_CHW, int(number), self._classify, seed=self._seed)
            for image_CHW, number in zip(images_BCHW, classes_B, strict=True)
        ]

    def _of_one(
        self, map_HW: NDArray[np.float32], region_HW: NDArray[np.bool_] | None, perturbation: Perturbation | None
    ) -> list[Score]:
        """The scores of one map; none of a map that is not finite, nor of an object that is unknown or out of sight."""
        if not np.isfinite(map_HW).all():
            return []
        scores = sparseness(map_HW, self._asked["sparseness"])
        if region_HW is not None and region_HW.any():
            scores += localisation(map_HW, region_HW, self._asked["localisation"])
        if perturbation is not None:
            scores += perturbation.scores(map_HW, self._asked["perturbation"])
            about = perturbation.pixels_CHW, perturbation.target, perturbation.classify
            scores += [shift(map_HW, *about, seed=self._seed) for _ in self._asked["shift"]]
        return scores


def _named(method: str, scores: Sequence[Score]) -> list[Found]:
    return [(method, each.metric, _number(each.value), _number(each.chance), each.settings) for each in scores]


def _filled(values: NDArray[Any], size: int) -> NDArray[Any]:
    """The same values with zeros behind them, `size` in all."""
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
