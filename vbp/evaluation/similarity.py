"""How alike two maps of one image are.

Shapes: H, W the height and width of both maps.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

Map = NDArray[np.floating]
_SIGMA, _REACH = 1.5, 5
_C1, _C2 = 0.01**2, 0.03**2


def ssim(first_HW: Map, second_HW: Map) -> float:
    """Structural similarity of the maps, each stretched to [0, 1]: 1 for equal ones, about 0 for unrelated ones.

    Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, TIP 2004, with the paper's
    Gaussian window of 11 by 11 pixels and its constants. Windows lie within the maps, where these are large enough. A
    flat map is stretched to zeros. NaN where a value is not finite.
    """
    first_HW, second_HW = stretched(first_HW), stretched(second_HW)
    blur = partial(gaussian_filter, sigma=_SIGMA, radius=_REACH)
    mean_HW, other_HW = blur(first_HW), blur(second_HW)
    spread_HW = blur(first_HW**2) - mean_HW**2 + blur(second_HW**2) - other_HW**2
    together_HW = blur(first_HW * second_HW) - mean_HW * other_HW
    level_HW = (2 * mean_HW * other_HW + _C1) / (mean_HW**2 + other_HW**2 + _C1)
    likeness_HW = level_HW * (2 * together_HW + _C2) / (spread_HW + _C2)
    margins = (_REACH if side > 2 * _REACH else 0 for side in likeness_HW.shape)
    inner = tuple(slice(margin, side - margin) for margin, side in zip(margins, likeness_HW.shape, strict=True))
    return float(likeness_HW[inner].mean())


def spearman(first_HW: Map, second_HW: Map) -> float:
    """Rank correlation of the pixels, in [-1, 1]; equal values share their ranks.

    A flat map has no order: 0. NaN where a value is not finite.
    """
    if not (np.isfinite(first_HW).all() and np.isfinite(second_HW).all()):
        return float("nan")
    ranks_2P = np.stack([rankdata(each_HW) for each_HW in (first_HW, second_HW)])
    ranks_2P -= ranks_2P.mean(1, keepdims=True)
    size = float(np.sqrt((ranks_2P**2).sum(1).prod()))
    return float(ranks_2P[0] @ ranks_2P[1] / size) if size else 0.0


def stretched(saliency_HW: Map) -> NDArray[np.float64]:
    """The map from 0 to 1; zeros for a flat one, NaN for one that is not finite."""
    values_HW = np.asarray(saliency_HW, np.float64)
    if not np.isfinite(values_HW).all():
        return np.full_like(values_HW, np.nan)
    lowest, highest = values_HW.min(), values_HW.max()
    return (values_HW - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(values_HW)


def turned(saliency_HW: Map) -> Map:
    """The map, turned by 180 degrees: the level of chance for how alike two maps are.

    It has the same values, the same structure, and the same preference for centre or border, but its bright places are
    others. Maps of one method share that much for any two images.
    """
    return saliency_HW[::-1, ::-1]
