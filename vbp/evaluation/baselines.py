"""Baselines: saliencies that know nothing of the network. What does not beat them explains nothing.

Shapes: H, W height and width; C the three RGB channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vbp.evaluation.randomness import generator_for

_LUMINANCE_RGB = (0.299, 0.587, 0.114)  # ITU-R BT.601
_EDGE_SIGMA = 2.0
_PURPOSE = 3  # of the noise; the first three are those of removals
SPREAD = 1 / 4
"""The standard deviation of `centre`, as a share of the image's height and width."""


def centre(height: int, width: int) -> NDArray[np.float32]:
    """A Gaussian about the centre pixel, as wide in relation to the image as it is high: the photographer's bias.

    Its one maximum is at (height // 2, width // 2).
    """
    rows_H, columns_W = (
        np.exp(-(((np.arange(length) - length // 2) / (SPREAD * length)) ** 2) / 2) for length in (height, width)
    )
    return np.outer(rows_H, columns_W).astype(np.float32)


def edge(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The gradient of the luminance, smoothed by a Gaussian of 2 pixels; its peak is the strongest edge.

    Args:
        pixels_HWC: uint8 RGB.
    """
    luminance_HW = pixels_HWC.astype(np.float32) @ np.array(_LUMINANCE_RGB, np.float32)
    slope_y_HW, slope_x_HW = np.gradient(_smooth(luminance_HW))
    steepness_HW: NDArray[np.float32] = np.hypot(slope_y_HW, slope_x_HW)
    return steepness_HW


def uniform(pixels_HWC: NDArray[np.uint8], seed: int) -> NDArray[np.float32]:
    """Independent noise in [0, 1) at each pixel, so that every score can be held against its chance level.

    A constant could not serve: it has no peak and no ranks. Each image has noise of its own, so that the mean over
    images is a mean over noise, and it has the same noise in every batch and on every machine.

    Args:
        pixels_HWC: the image. Its bytes choose the noise, and have no other effect.
        seed: together with the image it chooses the noise.
    """
    return generator_for(pixels_HWC, seed, _PURPOSE).random(pixels_HWC.shape[:2], np.float32)


def _smooth(values_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """A Gaussian along both axes; the outermost values are repeated beyond the border."""
    reach = int(4 * _EDGE_SIGMA)
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * _EDGE_SIGMA**2))
    kernel /= kernel.sum()
    for _ in range(2):
        padded = np.pad(values_HW, ((reach, reach), (0, 0)), mode="edge")
        values_HW = np.apply_along_axis(np.convolve, 0, padded, kernel, mode="valid").T
    return values_HW.astype(np.float32)
