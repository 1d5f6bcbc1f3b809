"""How often a mask's peak lies inside the true object, compared with three naive guesses.

This is the pointing game of Zhang et al. (Top-down Neural Attention by Excitation Backprop, ECCV 2016), without its
tolerance of 15 pixels. The guesses are masks too, so that one function scores all of them.

Shapes: H, W the mask's height and width; C the three RGB channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbp.evaluation.baselines import centre, edge


def peak_inside(mask_HW: NDArray[np.floating], object_HW: NDArray[np.bool_]) -> bool:
    """Whether the mask's first maximum, row by row, is a pixel of the object; a flat mask has no peak.

    Args:
        mask_HW: any finite values.
        object_HW: the true object, of the mask's shape.

    Raises:
        ValueError: the shapes differ.
    """
    if mask_HW.shape != object_HW.shape:
        raise ValueError(f"mask_HW {mask_HW.shape} and object_HW {object_HW.shape} must have one shape.")
    if mask_HW.max() == mask_HW.min():
        return False
    return bool(object_HW.flat[int(mask_HW.argmax())])


@dataclass(frozen=True)
class Score:
    """Peaks inside the object, out of ``total`` scenes, of the masks and of each naive rival."""

    total: int
    trained: int
    random_weights: int
    image_centre: int
    strongest_edge: int

    def __str__(self) -> str:
        """The last line of the demo."""
        return (
            f"peaks inside: {self.trained} of {self.total} ({self._percent(self.trained)}); "
            f"random weights: {self._percent(self.random_weights)}; "
            f"image centre: {self._percent(self.image_centre)}; "
            f"strongest edge: {self._percent(self.strongest_edge)}"
        )

    def _percent(self, hits: int) -> str:
        return f"{100 * hits / self.total:.0f} %" if self.total else "- %"


@dataclass(frozen=True)
class Trial:
    """One scene and the two masks to judge on it."""

    pixels_HWC: NDArray[np.uint8]
    object_HW: NDArray[np.bool_]
    mask_HW: NDArray[np.floating]
    """Mask of the trained network."""
    random_mask_HW: NDArray[np.floating]
    """Mask of the same network with random weights."""


def score(trials: Iterable[Trial]) -> Score:
    """Count the peaks inside the object; holds one trial at a time."""
    hits = [
        (
            peak_inside(trial.mask_HW, trial.object_HW),
            peak_inside(trial.random_mask_HW, trial.object_HW),
            peak_inside(centre(*trial.object_HW.shape), trial.object_HW),
            peak_inside(edge(trial.pixels_HWC), trial.object_HW),
        )
        for trial in trials
    ]
    trained, random_weights, centred, edged = (sum(column) for column in zip(*hits, strict=True)) if hits else [0] * 4
    return Score(len(hits), trained, random_weights, centred, edged)
