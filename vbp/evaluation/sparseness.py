"""On how few pixels a map's sum lies, and maps made equally sparse.

Sparseness is no merit: it says how a map looks. But it shifts other metrics by itself (Vandersmissen and Oramas, On the
Coherence of Quantitative Evaluation of Visual Explanations, 2023, arXiv 2302.10764): a map that is merely raised to a
power has more of its energy inside, and is more or less stable, though it orders the pixels in the same way. So two
methods should also be compared after `matched` has given one the sparseness of the other. Metrics of order alone
(pointing game, rank accuracy, all perturbations) need no such control: powers leave them as they are.

Shapes: H, W the map's height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from vbp.evaluation.scores import Score

Map = NDArray[np.floating]
_LEAST, _MOST = 1e-3, 1e3
"""Between which powers `matched` looks."""


def gini(saliency_HW: Map) -> float:
    """The Gini index: 0 for a flat map, 1 - 1 / pixels for a single bright pixel.

    Chalasani et al., Concise Explanations of Neural Networks Using Adversarial Training, ICML 2020 (arXiv 1810.06583).
    """
    values_P = np.sort(np.asarray(saliency_HW, np.float64), axis=None)
    total = values_P.sum()
    places_P = np.arange(1, values_P.size + 1)
    return float(((2 * places_P - values_P.size - 1) @ values_P) / (values_P.size * total)) if total else 0.0


def complexity(saliency_HW: Map) -> float:
    """The entropy, in nats, of the pixels' shares of the sum: 0 for a single bright pixel, log(pixels) for a flat map.

    Bhatt et al., Evaluating and Aggregating Feature-based Model Explanations, IJCAI 2020 (arXiv 2005.00631).
    """
    values_P = np.asarray(saliency_HW, np.float64).ravel()
    total = values_P.sum()
    if not total:
        return float(np.log(values_P.size))
    shares_P = values_P[values_P > 0] / total
    return float(-(shares_P * np.log(shares_P)).sum())


SPARSENESS: Mapping[str, Callable[[Map], float]] = MappingProxyType({"sparseness": gini, "complexity": complexity})


def sparseness(saliency_HW: Map, metrics: Collection[str] = tuple(SPARSENESS)) -> list[Score]:
    """The scores of one map, in the order of `metrics`; they have no chance level.

    Args:
        saliency_HW: finite values of at least 0.
        metrics: names in `SPARSENESS`.

    Raises:
        ValueError: the map is not as above.
    """
    _check(saliency_HW)
    return [Score(name, SPARSENESS[name](saliency_HW)) for name in metrics]


def matched(saliency_HW: Map, wanted: float) -> tuple[NDArray[np.float64], float]:
    """The map, raised to the power that gives it another Gini index; and that power.

    The map is divided by its maximum first, so that no power overflows. Powers from 0.001 to 1000 are tried. Where none
    of them gives the index, the one that comes closest is taken: a map that is 0 on half of its pixels stays as sparse
    as that, and a flat map stays flat.

    Args:
        saliency_HW: finite values of at least 0.
        wanted: the Gini index of another map, see `gini`.

    Raises:
        ValueError: the map is not as above.
    """
    _check(saliency_HW)
    highest = float(saliency_HW.max())
    values_HW = np.asarray(saliency_HW, np.float64) / (highest or 1.0)

    def excess(log_power: float) -> float:
        return gini(_raised(values_HW, float(np.exp(log_power)))) - wanted

    least, most = np.log(_LEAST), np.log(_MOST)
    if excess(least) >= 0:
        log_power = least
    elif excess(most) <= 0:
        log_power = most
    else:
        log_power = brentq(excess, least, most, xtol=1e-6)
    power = float(np.exp(log_power))
    return _raised(values_HW, power), power


def _raised(values_HW: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    with np.errstate(under="ignore"):
        return np.asarray(values_HW**power)


def _check(saliency_HW: Map) -> None:
    if not (np.isfinite(saliency_HW).all() and (saliency_HW >= 0).all()):
        raise ValueError("saliency_HW has values that are negative or not finite.")
