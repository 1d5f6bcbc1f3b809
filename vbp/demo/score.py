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

_LUMINANCE_RGB = (0.299, 0.587, 0.114)  # ITU-R BT.601
_EDGE_SIGMA = 2.0


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


def centre_mask(height: int, width: int) -> NDArray[np.float32]:
    """A mask with its one peak at the centre pixel."""
    mask_HW = np.zeros((height, width), np.float32)
    mask_HW[height // 2, width // 2] = 1
    return mask_HW


def edge_mask(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The gradient of the luminance, smoothed by a Gaussian of 2 pixels; its peak is the strongest edge.

    Args:
        pixels_HWC: uint8 RGB.
    """
    luminance_HW = pixels_HWC.astype(np.float32) @ np.array(_LUMINANCE_RGB, np.float32)
    slope_y_HW, slope_x_HW = np.gradient(_smooth(luminance_HW))
    steepness_HW: NDArray[np.float32] = np.hypot(slope_y_HW, slope_x_HW)
    return steepness_HW


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
            peak_inside(centre_mask(*trial.object_HW.shape), trial.object_HW),
            peak_inside(edge_mask(trial.pixels_HWC), trial.object_HW),
        )
        for trial in trials
    ]
    trained, random_weights, centre, edge = (sum(column) for column in zip(*hits, strict=True)) if hits else [0] * 4
    return Score(len(hits), trained, random_weights, centre, edge)


def _smooth(values_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """A Gaussian along both axes; the outermost values are repeated beyond the border."""
    reach = int(4 * _EDGE_SIGMA)
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * _EDGE_SIGMA**2))
    kernel /= kernel.sum()
    for _ in range(2):
        padded = np.pad(values_HW, ((reach, reach), (0, 0)), mode="edge")
        values_HW = np.apply_along_axis(np.convolve, 0, padded, kernel, mode="valid").T
    return values_HW.astype(np.float32)
