"""Whether a map lies on the object: four metrics, each with its chance level.

Chance is what the values of the same map score in the mean over all ways to shuffle them over the image.  For all four
metrics this is the object's share of the image, whatever the values are: so one number stands beside them, and a map is
only as good as it exceeds it.

Pixels with equal values have no order.  Each metric gives the mean over all orders in which they could come.  So a flat
map scores its chance, and turning the image round changes nothing.

Shapes: H, W the height and width of map and region.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vbp.evaluation.scores import Score

Map = NDArray[np.floating]
Region = NDArray[np.bool_]


def pointing_game(saliency_HW: Map, region_HW: Region) -> float:
    """Whether the peak is inside: 1 or 0; the share of the peaks that are, where several pixels have the maximum.

    Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016. Their code also counts peaks up to 15
    pixels outside; here there is no such tolerance, because chance would then depend on the object's outline.
    """
    return float(region_HW[saliency_HW == saliency_HW.max()].mean())


def energy_inside(saliency_HW: Map, region_HW: Region) -> float:
    """The share of the sum that is inside, after stretching the map to [0, 1].

    Wang et al., Score-CAM, CVPR workshops 2020, the energy-based pointing game. They sum over the object's box; so it
    is here if the region is a box.
    """
    return mass_accuracy(saliency_HW - saliency_HW.min(), region_HW)


def rank_accuracy(saliency_HW: Map, region_HW: Region) -> float:
    """The share of the K brightest pixels that are inside, where K is the number of pixels inside.

    Arras et al., CLEVR-XAI, Information Fusion 2022, relevance rank accuracy.
    """
    wanted = int(region_HW.sum())
    threshold = np.partition(saliency_HW, -wanted, axis=None)[-wanted]
    brighter_HW, equal_HW = saliency_HW > threshold, saliency_HW == threshold
    left = wanted - brighter_HW.sum()
    return float((region_HW[brighter_HW].sum() + left * region_HW[equal_HW].mean()) / wanted)


def mass_accuracy(saliency_HW: Map, region_HW: Region) -> float:
    """The share of the map's sum that is inside.

    Arras et al., CLEVR-XAI, Information Fusion 2022, relevance mass accuracy. Unlike `energy_inside` it counts the
    map's least value too, so a map with a high floor comes close to chance.
    """
    total = saliency_HW.sum()
    return float(saliency_HW[region_HW].sum() / total) if total else share(region_HW)


def share(region_HW: Region) -> float:
    """The region's share of the image."""
    return float(region_HW.mean())


LOCALISATION: Mapping[str, Callable[[Map, Region], float]] = MappingProxyType(
    {
        "pointing-game": pointing_game,
        "energy-inside": energy_inside,
        "rank-accuracy": rank_accuracy,
        "mass-accuracy": mass_accuracy,
    }
)


def localisation(saliency_HW: Map, region_HW: Region, metrics: Collection[str] = tuple(LOCALISATION)) -> list[Score]:
    """The scores of one map, in the order of `metrics`.

    Args:
        saliency_HW: finite values of at least 0, as the method gives them, before any stretching.
        region_HW: the object's pixels, at least one, in the frame of the map.
        metrics: names in `LOCALISATION`.

    Raises:
        ValueError: the map is not as above, or the region is empty or of another shape.
    """
    values_HW = np.asarray(saliency_HW, np.float64)
    if not (np.isfinite(values_HW).all() and (values_HW >= 0).all()):
        raise ValueError("saliency_HW has values that are negative or not finite.")
    if values_HW.shape != region_HW.shape:
        raise ValueError(f"saliency_HW {values_HW.shape} and region_HW {region_HW.shape} must have one shape.")
    if not region_HW.any():
        raise ValueError("region_HW is empty: there is no object to find.")
    chance = share(region_HW)
    return [Score(name, LOCALISATION[name](values_HW, region_HW), chance) for name in metrics]
