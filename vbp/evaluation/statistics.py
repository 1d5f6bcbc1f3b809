"""How sure a table of scores is: intervals, differences to one method, ranks.

The images are the sample. So everything here is resampled over images: a bootstrap draws as many of them as there are,
with repeats, and all methods keep their scores for each image drawn (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13: percentile intervals). An interval says what other images of the same kind could have
given. It does not say what other networks, seeds or settings would give.

Two limits. Under some 20 images percentile intervals are too narrow. Where all images have one score, the interval has
no width, whatever their number.

Shapes: I images, M methods, R resamples, T comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

CONFIDENCE = 0.95
RESAMPLES = 2000
SIGN_FLIPS = 10_000
_AT_ONCE = 100
"""Resamples that are in memory at the same time."""

Table = NDArray[np.floating]
"""Scores of one metric, (I, M); NaN where a method has none for an image."""


@dataclass(frozen=True)
class Mean:
    """One method's mean over the images that it has a score for.

    Attributes:
        method: its name.
        mean: NaN where it has no score at all.
        low: lower end of the interval; NaN with fewer than two images.
        high: upper end.
        images: how many there are.
    """

    method: str
    mean: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Difference:
    """One method's mean minus the reference's, over the images that both have a score for.

    Attributes:
        method: its name.
        reference: the other's.
        mean: the difference; NaN where they share no image.
        low: lower end of its interval; NaN with fewer than two images.
        high: upper end.
        p: how often a difference as large as this one comes by chance, if both are equally good.
        images: how many they share.
        p_corrected: the same for all comparisons together, by `corrected`; None before.
    """

    method: str
    reference: str
    mean: float
    low: float
    high: float
    p: float
    images: int
    p_corrected: float | None = None


@dataclass(frozen=True)
class Rank:
    """One method's place among all, over the images that all have a score for; 1 is best.

    Attributes:
        method: its name.
        rank: by the mean; equal means share their places. NaN for a method without any score.
        low: lower end of its interval.
        high: upper end.
        first: share of the resamples in which it was best.
    """

    method: str
    rank: float
    low: float
    high: float
    first: float


def means(
    scores_IM: Table,
    methods: Sequence[str],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 500,
) -> list[Mean]:
    """Each method's mean and its interval.

    Raises:
        ValueError: the table has not one column for each method.
    """
    _check(scores_IM, methods)
    lows_M, highs_M = _intervals(scores_IM, confidence, resamples, seed)
    counts_M = (~np.isnan(scores_IM)).sum(0)
    columns = zip(methods, _nanmean(scores_IM), lows_M, highs_M, counts_M, strict=True)
    return [Mean(name, float(mean), float(low), float(high), int(count)) for name, mean, low, high, count in columns]


def differences(
    scores_IM: Table,
    methods: Sequence[str],
    reference: str,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 500,
) -> list[Difference]:
    """Every other method minus `reference`, image by image.

    The p value is that of a permutation test: if both were equally good, each image's difference could as well have the
    other sign. All signs are drawn `SIGN_FLIPS` times; p is the share of draws whose mean is at least as far from 0.

    Raises:
        ValueError: the table has not one column for each method, or `reference` is none of them.
    """
    _check(scores_IM, methods)
    if reference not in methods:
        raise ValueError(f"reference {reference!r} is none of {', '.join(methods)}.")
    others = [column for column, name in enumerate(methods) if name != reference]
    gaps_IM = scores_IM[:, others] - scores_IM[:, [methods.index(reference)]]
    found = means(
        gaps_IM, [methods[column] for column in others], confidence=confidence, resamples=resamples, seed=seed
    )
    p_M = _sign_flip_p(gaps_IM, seed)
    return [
        Difference(each.method, reference, each.mean, each.low, each.high, float(p), each.images)
        for each, p in zip(found, p_M, strict=True)
    ]


def corrected(found: Sequence[Difference]) -> list[Difference]:
    """The same with `p_corrected`, for all of them together: hand over every comparison that a reader will see."""
    adjusted_T = holm([each.p for each in found])
    return [replace(each, p_corrected=float(p)) for each, p in zip(found, adjusted_T, strict=True)]


def holm(p_T: ArrayLike) -> NDArray[np.float64]:
    """P values, corrected so that the chance of a single false finding among all stays what it was for one.

    Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 1979. NaN is no
    comparison and stays NaN.
    """
    values_T = np.asarray(p_T, np.float64)
    order = [index for index in np.argsort(values_T) if not np.isnan(values_T[index])]
    factors = np.arange(len(order), 0, -1)
    adjusted_T = np.full_like(values_T, np.nan)
    adjusted_T[order] = np.minimum(np.maximum.accumulate(values_T[order] * factors), 1)
    return adjusted_T


def ranks(
    scores_IM: Table,
    methods: Sequence[str],
    higher_is_better: bool,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 500,
) -> list[Rank]:
    """Each method's place, and how it changes with the images drawn.

    Raises:
        ValueError: the table has not one column for each method.
    """
    _check(scores_IM, methods)
    known = [column for column in range(len(methods)) if not np.isnan(scores_IM[:, column]).all()]
    complete_IM = scores_IM[:, known][~np.isnan(scores_IM[:, known]).any(1)]
    found = {name: Rank(name, *4 * (float("nan"),)) for name in methods}
    if len(complete_IM) and known:
        sign = -1 if higher_is_better else 1
        places_M = rankdata(sign * complete_IM.mean(0))
        drawn_RM = rankdata(sign * _resampled_means(complete_IM, resamples, seed), axis=1)
        lows_M, highs_M = _quantiles(drawn_RM, confidence)
        best_RM = drawn_RM == drawn_RM.min(1, keepdims=True)
        first_M = (best_RM / best_RM.sum(1, keepdims=True)).mean(0)
        for column, values in zip(known, zip(places_M, lows_M, highs_M, first_M, strict=True), strict=True):
            found[methods[column]] = Rank(methods[column], *map(float, values))
    return [found[name] for name in methods]


def agreement(values_SM: ArrayLike) -> float:
    """How alike the rankings of the rows are: 1 for equal ones, 0 where every method has the same mean place.

    Kendall's coefficient of concordance W, with his correction for ties (Kendall and Babington Smith, Annals of
    Mathematical Statistics 1939). Random rankings of many methods have about 1 / S.

    Args:
        values_SM: one row for each setting, metric or network, (S, M), the same end being the good one; no NaN.

    Returns:
        W; NaN for fewer than two rows or methods, or where all values of each row are equal.
    """
    places_SM = rankdata(np.atleast_2d(values_SM), axis=1)
    rows, columns = places_SM.shape
    ties = sum(
        float((sizes**3 - sizes).sum()) for sizes in (np.unique(row, return_counts=True)[1] for row in places_SM)
    )
    most = rows**2 * (columns**3 - columns) - rows * ties
    sums_M = places_SM.sum(0)
    return float(12 * ((sums_M - sums_M.mean()) ** 2).sum() / most) if rows > 1 and most else float("nan")


def _check(scores_IM: Table, methods: Sequence[str]) -> None:
    if scores_IM.ndim != 2 or scores_IM.shape[1] != len(methods):
        raise ValueError(f"scores_IM {scores_IM.shape} must have one column for each of {len(methods)} methods.")


def _nanmean(scores_IM: Table) -> NDArray[np.float64]:
    present_IM = ~np.isnan(scores_IM)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return np.asarray(np.nan_to_num(scores_IM).sum(0) / present_IM.sum(0))


def _draws(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image is drawn, (at most `_AT_ONCE`, I), for all resamples."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _AT_ONCE):
        size = min(_AT_ONCE, resamples - start)
        yield generator.multinomial(images, np.full(images, 1 / images), size).astype(np.float64)


def _resampled_means(scores_IM: Table, resamples: int, seed: int) -> NDArray[np.float64]:
    """(R, M); NaN where a draw has no score of a method."""
    present_IM, values_IM = (~np.isnan(scores_IM)).astype(np.float64), np.nan_to_num(scores_IM)
    with np.errstate(invalid="ignore"):
        drawn = [draws_RI @ values_IM / (draws_RI @ present_IM) for draws_RI in _draws(len(values_IM), resamples, seed)]
    return np.concatenate(drawn)


def _intervals(
    scores_IM: Table, confidence: float, resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    limits_2M = np.full((2, scores_IM.shape[1]), np.nan)
    several = (~np.isnan(scores_IM)).sum(0) > 1
    if several.any():
        limits_2M[:, several] = _quantiles(_resampled_means(scores_IM[:, several], resamples, seed), confidence)
    return limits_2M[0], limits_2M[1]


def _quantiles(drawn_RM: NDArray[np.float64], confidence: float) -> NDArray[np.float64]:
    return np.asarray(np.nanquantile(drawn_RM, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0))


def _sign_flip_p(gaps_IM: Table, seed: int) -> NDArray[np.float64]:
    """Two-sided p values of all columns; NaN for a column without values."""
    values_IM = np.nan_to_num(gaps_IM)
    seen_M = np.abs(values_IM.sum(0)) * (1 - 1e-12)  # equal sums in another order count as equal
    generator = np.random.default_rng(seed)
    as_far_M = np.zeros(gaps_IM.shape[1])
    for _ in range(SIGN_FLIPS // _AT_ONCE):
        signs_RI = generator.choice([-1.0, 1.0], (_AT_ONCE, len(values_IM)))
        as_far_M += (np.abs(signs_RI @ values_IM) >= seen_M).sum(0)
    p_M = (as_far_M + 1) / (SIGN_FLIPS + 1)
    return np.where(np.isnan(gaps_IM).all(0), np.nan, p_M)
