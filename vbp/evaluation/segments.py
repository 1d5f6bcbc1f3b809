"""Cut an image into squares, or into regions of similar colour, for metrics that remove more than pixels.

The regions are superpixels in the manner of SLIC (Achanta et al., TPAMI 2012): k-means of colour and place that starts
on a grid. Two simplifications: the search is not limited to a window, and regions may have more than one piece.

Shapes: C, H, W channels, height and width of the image; P its pixels; K regions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import vq

_COMPACTNESS = 0.1
"""How much a distance of one grid cell counts beside the whole range of colours; SLIC's usual 10 of 100."""
_ROUNDS = 5


def squares(height: int, width: int, side: float) -> NDArray[np.intp]:
    """The square of each pixel, (H, W), numbered from 0; whole ones only, so their sides are about `side` pixels."""
    down, across = (min(max(round(length / side), 1), length) for length in (height, width))
    rows, columns = np.arange(height) * down // height, np.arange(width) * across // width
    return rows[:, None] * across + columns


def segments(pixels_CHW: NDArray[np.float32], number: int) -> NDArray[np.intp]:
    """The region of each pixel, (H, W), numbered from 0 without gaps.

    Args:
        pixels_CHW: the image, in any range.
        number: about how many regions.
    """
    height, width = pixels_CHW.shape[1:]
    side = max((height * width / number) ** 0.5, 1.0)
    spread = float(np.ptp(pixels_CHW)) or 1.0
    places_2HW = np.mgrid[:height, :width] * _COMPACTNESS / side
    features_PF = np.concatenate([pixels_CHW / spread, places_2HW]).reshape(-1, height * width).T.astype(np.float64)
    regions_P = squares(height, width, side).ravel()
    for _ in range(_ROUNDS):
        regions_P, _ = vq(features_PF, _means(features_PF, regions_P))
    return np.unique(regions_P, return_inverse=True)[1].reshape(height, width)


def _means(features_PF: NDArray[np.float64], regions_P: NDArray[np.intp]) -> NDArray[np.float64]:
    """The mean features of each region that has pixels, (K, F)."""
    sizes_K = np.bincount(regions_P)
    sums_FK = [np.bincount(regions_P, feature_P) for feature_P in features_PF.T]
    return (np.array(sums_FK)[:, sizes_K > 0] / sizes_K[sizes_K > 0]).T
