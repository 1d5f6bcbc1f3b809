"""What a classifier still sees once the bright, or the dark, pixels of a map are removed.

Every metric here removes units (pixels, squares, regions) in some order, takes the classifier's probability of one
class on the way, and averages it. Insertion does so too: read from its end, it removes the darkest pixels first.

**Steps.** The probability changes most where the brightest units come or go. So their number is not stepped evenly, but
by squares: 1/N², 4/N², 9/N² of all units, and so on. The area under the curve is taken with these distances. ROAD is
the mean over fixed shares, as in its paper.

**Chance.** Beside each value stands that of a map that knows nothing of the image: smooth noise, the mean over its two
orders. It is smooth because maps are. Scattered pixels do other damage than pixels that lie together: they make edges
everywhere, and can be filled in again. So scattered noise would flatter or hurt maps for their smoothness alone. The
noise depends on the seed and on the image, and is the same for all maps of an image.

**Ties.** Units with equal values are removed in the order of the same noise. So a flat map scores like chance.

**Deviations.** ROAD's authors count right predictions over a data set; here the probability of one class is averaged.
Pixel flipping and IROF go through the whole image, with fewer steps than units. Lengths of other papers' 224 pixels
grow with the image.

Shapes: C, H, W channels, height and width; S steps; U units.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbp.evaluation.removal import Losses, Removal, ranks
from vbp.evaluation.scores import Score

Classify = Callable[[Tensor], Tensor]
"""Normalised pixels (B, C, H, W) -> probabilities (B, classes)."""
Order = Literal["most", "least"]
"""Which units are removed first: those where the map is brightest, or darkest."""
Reading = Literal["mean", "drop", "over", "gap"]
"""What is made of the mean probability m on the way, given the whole image's probability p: m; p - m; 1 - m / p; the
difference between both orders, least first minus most first."""
STEPS = 16
REMOVED = (0.1, 0.3, 0.5, 0.7, 0.9)


class Way(NamedTuple):
    """How a metric is measured."""

    removal: Removal
    order: Order
    reading: Reading


PERTURBATION: Mapping[str, Way] = MappingProxyType(
    {
        "insertion": Way("blurred", "least", "mean"),
        "deletion": Way("zeroed", "most", "mean"),
        "road": Way("imputed", "most", "gap"),
        "road-most": Way("imputed", "most", "mean"),
        "road-least": Way("imputed", "least", "mean"),
        "pixel-flipping": Way("coloured", "most", "drop"),
        "pixel-flipping-least": Way("coloured", "least", "drop"),
        "irof": Way("averaged", "most", "over"),
        "irof-least": Way("averaged", "least", "over"),
    }
)


class Perturbation:
    """One image, ready to lose its units in the order of any map.

    Args:
        pixels_CHW: the image as the classifier takes it, normalised so that 0 is the mean colour of its training data.
        target: the class whose probability is watched.
        classify: gives probabilities.
        steps: points of a curve after its start; not for ROAD.
        removed: the shares of pixels that ROAD removes, each between 0 and 1.
        seed: for all random choices, together with the image.
        batch: most images for one call of `classify`.
    """

    def __init__(
        self,
        pixels_CHW: Tensor,
        target: int,
        classify: Classify,
        *,
        steps: int = STEPS,
        removed: Sequence[float] = REMOVED,
        seed: int = 500,
        batch: int = 32,
    ) -> None:
        self.pixels_CHW, self.target, self.classify = pixels_CHW, target, classify
        self._steps, self._removed, self._seed, self._batch = steps, tuple(removed), seed, batch
        self._losses = Losses(pixels_CHW.detach().cpu().numpy().astype(np.float32), seed)
        self._known: dict[tuple[Removal, str], float] = {}

    def scores(self, saliency_HW: NDArray[np.floating], metrics: Collection[str] = tuple(PERTURBATION)) -> list[Score]:
        """The scores of one map, in the order of `metrics`.

        Args:
            saliency_HW: finite values, in the frame of the image.
            metrics: names in `PERTURBATION`.

        Raises:
            ValueError: the map has another shape, or values that are not finite.
        """
        if saliency_HW.shape != self._losses.image_CHW.shape[1:]:
            raise ValueError(
                f"saliency_HW {saliency_HW.shape} and pixels_CHW {self._losses.image_CHW.shape} must have one height "
                "and width."
            )
        if not np.isfinite(saliency_HW).all():
            raise ValueError("saliency_HW has values that are not finite.")
        means = self._means(saliency_HW, {run for name in metrics for run in _runs(PERTURBATION[name])})
        return [self._score(name, PERTURBATION[name], means) for name in metrics]

    def _score(self, name: str, way: Way, means: Mapping[tuple[Removal, Order], float]) -> Score:
        found, *other = (means[run] for run in _runs(way))
        value = other[0] - found if other else self._read(way.reading, found)
        chance = 0.0 if other else self._read(way.reading, self._chance(way.removal))
        return Score(name, value, chance, self._settings(way.removal))

    def _read(self, reading: Reading, mean: float) -> float:
        if reading == "mean":
            return mean
        if reading == "drop":
            return self._whole - mean
        return 1 - mean / self._whole if self._whole else float("nan")

    def _settings(self, removal: Removal) -> str:
        steps = f"removed {' '.join(map(str, self._removed))}" if removal == "imputed" else f"steps {self._steps}"
        return f"{self._losses.settings(removal)}, {steps}, seed {self._seed}"

    @cached_property
    def _whole(self) -> float:
        """Probability of the untouched image."""
        return float(self._probabilities(self._losses.image_CHW[None])[0])

    def _empty(self, removal: Removal) -> float:
        """Probability of the image without any of its units."""
        if (removal, "empty") not in self._known:
            self._known[removal, "empty"] = float(self._probabilities(self._losses.emptied(removal)[None])[0])
        return self._known[removal, "empty"]

    def _chance(self, removal: Removal) -> float:
        """Mean probability on the way of smooth noise, over both orders."""
        if (removal, "chance") not in self._known:
            means = self._means(self._losses.noise_HW, {(removal, "most"), (removal, "least")})
            self._known[removal, "chance"] = float(np.mean(list(means.values())))
        return self._known[removal, "chance"]

    def _means(
        self, saliency_HW: NDArray[np.floating], runs: Collection[tuple[Removal, Order]]
    ) -> dict[tuple[Removal, Order], float]:
        """The mean probability on each way; their images go through the classifier together."""
        if not runs:
            return {}
        stacks = {run: self._stack(saliency_HW, *run) for run in sorted(runs)}
        found = iter(self._probabilities(np.concatenate(list(stacks.values()))))
        return {run: self._mean(*run, [next(found) for _ in images_SCHW]) for run, images_SCHW in stacks.items()}

    def _stack(self, saliency_HW: NDArray[np.floating], removal: Removal, order: Order) -> NDArray[np.float32]:
        """The images of all steps between untouched and empty, (S, C, H, W)."""
        rank_HW = ranks(saliency_HW, self._losses.units(removal), self._losses.noise_HW)
        bright_SHW = rank_HW < np.array(self._brightest(removal, order))[:, None, None]
        return self._losses.without(bright_SHW if order == "most" else ~bright_SHW, removal)

    def _mean(self, removal: Removal, order: Order, inner_S: Sequence[float]) -> float:
        if removal == "imputed":
            return float(np.mean(inner_S))
        none, all_ = (self._whole, self._empty(removal)) if order == "most" else (self._empty(removal), self._whole)
        units = self._number(removal)
        shares_S = np.array([0, *self._brightest(removal, order), units]) / units
        return float(np.trapezoid([none, *inner_S, all_], shares_S))

    def _brightest(self, removal: Removal, order: Order) -> list[int]:
        """How many of the brightest units are gone (most first), or are left (least first), at each step."""
        units = self._number(removal)
        if removal == "imputed":
            gone = [round(share * units) for share in self._removed]
            return gone if order == "most" else [units - number for number in gone]
        return sorted({round(units * (step / self._steps) ** 2) for step in range(1, self._steps)} - {0, units})

    def _number(self, removal: Removal) -> int:
        return int(self._losses.units(removal).max()) + 1

    def _probabilities(self, images_SCHW: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of the target, for each image."""
        starts = range(0, len(images_SCHW), self._batch)
        batches = (torch.from_numpy(images_SCHW[start : start + self._batch]) for start in starts)
        found = [self.classify(batch_BCHW.to(self.pixels_CHW))[:, self.target] for batch_BCHW in batches]
        return np.concatenate([np.zeros(0), *(found_B.double().cpu().numpy() for found_B in found)])


def _runs(way: Way) -> Iterable[tuple[Removal, Order]]:
    """The order in which units go; for a gap then the other as well."""
    return [(way.removal, way.order)] if way.reading != "gap" else [(way.removal, "most"), (way.removal, "least")]
