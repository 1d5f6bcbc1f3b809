"""Five ways to take an image apart: which units it loses, and what takes their place.

Shapes: C, H, W channels, height and width; S images; U units.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vbp.evaluation.imputation import impute
from vbp.evaluation.randomness import generator_for
from vbp.evaluation.segments import segments, squares

Removal = Literal["zeroed", "blurred", "coloured", "averaged", "imputed"]
"""Pixels become 0 (RISE's deletion), or those of a blurred image (RISE's insertion), or what their neighbours suggest
(ROAD); squares get random colours (Samek et al.); regions of similar colour get the image's mean (IROF)."""

_BLUR, _SQUARE = 5 / 224, 9 / 227
"""RISE's blur, and the squares of Samek et al., as shares of the image's shorter side."""
_REGIONS = 200
_ROAD_NOISE = 0.01
_SMOOTH = 1 / 14
"""Standard deviation of the Gaussian that smooths `Losses.noise_HW`, as a share of the shorter side."""


class Losses:
    """One image without some of its units.

    Args:
        image_CHW: normalised pixels, so that 0 is a colour without meaning.
        seed: for all random choices, together with the image.
    """

    def __init__(self, image_CHW: NDArray[np.float32], seed: int) -> None:
        self.image_CHW = image_CHW
        self._seed = seed
        self._side = min(image_CHW.shape[1:])
        self._filled: dict[Removal, NDArray[np.float32]] = {}

    def units(self, removal: Removal) -> NDArray[np.intp]:
        """The unit of each pixel, (H, W), numbered from 0."""
        if removal == "coloured":
            return self._squares_HW
        return self._regions_HW if removal == "averaged" else self._pixels_HW

    def without(self, gone_SHW: NDArray[np.bool_], removal: Removal) -> NDArray[np.float32]:
        """The image without some of its pixels, (S, C, H, W)."""
        if removal == "imputed":
            return np.stack([self._imputed(gone_HW) for gone_HW in gone_SHW])
        return np.where(gone_SHW[:, None], self.emptied(removal), self.image_CHW)

    def emptied(self, removal: Removal) -> NDArray[np.float32]:
        """The image without any of its units.

        Raises:
            KeyError: `removal` is ``imputed``, which needs pixels to start from.
        """
        if removal not in self._filled:
            make = {"zeroed": self._zeros, "blurred": self._blurred, "coloured": self._coloured, "averaged": self._mean}
            self._filled[removal] = make[removal]()
        return self._filled[removal]

    @cached_property
    def noise_HW(self) -> NDArray[np.float64]:
        """Smooth noise: a map that knows nothing of the image. Its negative is as likely as itself."""
        noise_HW = generator_for(self.image_CHW, self._seed, 0).standard_normal(self.image_CHW.shape[1:])
        return np.asarray(ndimage.gaussian_filter(noise_HW, self._side * _SMOOTH))

    def settings(self, removal: Removal) -> str:
        """The values on which a removal depends, in words."""
        return {
            "zeroed": "pixels by 0",
            "blurred": f"pixels by blur {self._side * _BLUR:.1f}",
            "coloured": f"squares of {self._side * _SQUARE:.1f} by random colours",
            "averaged": f"{_REGIONS} regions by mean colour",
            "imputed": f"pixels by neighbours, noise {_ROAD_NOISE}",
        }[removal]

    @cached_property
    def _pixels_HW(self) -> NDArray[np.intp]:
        height, width = self.image_CHW.shape[1:]
        return np.arange(height * width).reshape(height, width)

    @cached_property
    def _squares_HW(self) -> NDArray[np.intp]:
        height, width = self._pixels_HW.shape
        return squares(height, width, self._side * _SQUARE)

    @cached_property
    def _regions_HW(self) -> NDArray[np.intp]:
        return segments(self.image_CHW, _REGIONS)

    def _zeros(self) -> NDArray[np.float32]:
        return np.zeros_like(self.image_CHW)

    def _blurred(self) -> NDArray[np.float32]:
        """By a Gaussian that is cut off after its standard deviation, as in RISE's code."""
        sigma = self._side * _BLUR
        reach = max(round(sigma), 1)
        return np.asarray(ndimage.gaussian_filter(self.image_CHW, (0, sigma, sigma), radius=(0, reach, reach)))

    def _coloured(self) -> NDArray[np.float32]:
        """A colour for each pixel, evenly drawn from each channel's range in this image."""
        lowest_C11, highest_C11 = (limit((1, 2), keepdims=True) for limit in (self.image_CHW.min, self.image_CHW.max))
        drawn_CHW = generator_for(self.image_CHW, self._seed, 1).random(self.image_CHW.shape, np.float32)
        return np.asarray(lowest_C11 + drawn_CHW * (highest_C11 - lowest_C11))

    def _mean(self) -> NDArray[np.float32]:
        return np.broadcast_to(self.image_CHW.mean((1, 2), keepdims=True), self.image_CHW.shape).copy()

    def _imputed(self, gone_HW: NDArray[np.bool_]) -> NDArray[np.float32]:
        return np.where(gone_HW, impute(self.image_CHW, gone_HW) + self._road_noise_CHW, self.image_CHW)

    @cached_property
    def _road_noise_CHW(self) -> NDArray[np.float32]:
        return generator_for(self.image_CHW, self._seed, 2).standard_normal(
            self.image_CHW.shape, np.float32
        ) * np.float32(_ROAD_NOISE)


def ranks(
    saliency_HW: NDArray[np.floating], units_HW: NDArray[np.intp], ties_HW: NDArray[np.floating]
) -> NDArray[np.intp]:
    """The place of each pixel's unit, (H, W), from the brightest (0) to the darkest.

    A unit is as bright as the mean of its pixels; of equally bright ones that with the higher mean of `ties_HW` comes
    first.
    """
    sizes_U = np.bincount(units_HW.ravel())
    bright_U, ties_U = (np.bincount(units_HW.ravel(), each.ravel()) / sizes_U for each in (saliency_HW, ties_HW))
    order_U = np.lexsort((ties_U, bright_U))[::-1]
    rank_U = np.empty_like(order_U)
    rank_U[order_U] = np.arange(len(order_U))
    return rank_U[units_HW]
