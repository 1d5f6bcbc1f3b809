"""Whether a map stays the same when the image gets a little noise.

Stability is no merit alone: a map that shows nothing is perfectly stable. It is read beside localisation and
perturbation. The level of chance is the map against itself, turned (`vbp.evaluation.similarity.turned`).

Maps are compared after they are stretched to [0, 1], as they are shown. A raw map's scale may change by orders of
magnitude, above all if it is a product of many layers.

Shapes: B images, H, W height and width, C channels; N noisy copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vbp.evaluation.randomness import noisy
from vbp.evaluation.scores import Score
from vbp.evaluation.similarity import ssim, stretched, turned

Explain = Callable[[NDArray[np.uint8]], NDArray[np.floating]]
"""A method for one network: pixels (B, H, W, C) -> maps (B, H, W)."""
COPIES, NOISE = 8, 0.05


def change(before_HW: NDArray[np.floating], after_HW: NDArray[np.floating]) -> float:
    """Euclidean distance of the maps, relative to the first one's length; NaN if that is flat, or one is not finite."""
    first_HW, second_HW = stretched(before_HW), stretched(after_HW)
    length = float(np.linalg.norm(first_HW))
    return float(np.linalg.norm(second_HW - first_HW)) / length if length else float("nan")


class Way(NamedTuple):
    """How a metric is measured."""

    compare: Callable[[NDArray[np.floating], NDArray[np.floating]], float]
    over_copies: Callable[[Sequence[float]], np.floating]


STABILITY: Mapping[str, Way] = MappingProxyType(
    {
        "noise-ssim": Way(ssim, np.mean),
        "avg-sensitivity": Way(change, np.mean),
        "max-sensitivity": Way(change, np.max),
    }
)
"""Sensitivities: Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019 (arXiv 1901.09392), with
Gaussian noise in place of their ball, and relative to the map's length, as captum has it. The similarity under noise is
the habit of the driving field."""


def stability(
    pixels_BHWC: NDArray[np.uint8],
    explain: Explain,
    metrics: Collection[str] = tuple(STABILITY),
    *,
    copies: int = COPIES,
    noise: float = NOISE,
    seed: int = 500,
) -> list[list[Score]]:
    """The scores of one method, for each image in the order of `metrics`.

    Args:
        pixels_BHWC: uint8.
        explain: the method.
        metrics: names in `STABILITY`.
        copies: noisy copies of each image.
        noise: standard deviation of the noise, as a share of 255.
        seed: of the noise, together with the image.
    """
    before_BHW = explain(pixels_BHWC)
    after_NBHW = [explain(copy_BCHW) for copy_BCHW in noisy(pixels_BHWC, copies, noise, seed)]
    settings = f"{copies} copies with noise {noise}, seed {seed}"

    def score(name: str, image: int) -> Score:
        compare, over_copies = STABILITY[name]
        before_HW = before_BHW[image]
        values = [compare(before_HW, after_BHW[image]) for after_BHW in after_NBHW]
        return Score(name, float(over_copies(values)), compare(before_HW, turned(before_HW)), settings)

    return [[score(name, image) for name in metrics] for image in range(len(pixels_BHWC))]
