"""Similarity against loops over windows and scipy, and what must hold of any two maps."""

import numpy as np
import pytest
from scipy import stats

from vbp.evaluation.similarity import spearman, ssim, stretched, turned

SEED = 5


@pytest.fixture
def maps():
    generator = np.random.default_rng(SEED)
    first = generator.random((15, 18))
    return first, 0.6 * first + 0.4 * generator.random((15, 18))


def test_ssim_against_a_walk_over_windows(maps):
    """Wang's formula for each window of 11 by 11 pixels that lies within the maps."""
    first, second = ((each - each.min()) / (each.max() - each.min()) for each in maps)
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for row in range(5, 10):
        for column in range(5, 13):
            a, b = (each[row - 5 : row + 6, column - 5 : column + 6] for each in (first, second))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            found.append(
                (2 * mean_a * mean_b + 0.0001)
                * (2 * covariance + 0.0009)
                / ((mean_a**2 + mean_b**2 + 0.0001) * (var_a + var_b + 0.0009))
            )
    assert ssim(*maps) == pytest.approx(np.mean(found), abs=1e-9)


def test_spearman_against_scipy(maps):
    first, second = (np.round(each, 1) for each in maps)  # with ties
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first.ravel(), second.ravel()).statistic)


@pytest.mark.parametrize("measure", [ssim, spearman])
def test_what_holds_of_any_two_maps(measure, maps):
    first, second = maps
    assert measure(first, first) == pytest.approx(1)
    assert measure(first, second) == pytest.approx(measure(second, first))
    assert measure(3 * first + 2, second / 7) == pytest.approx(measure(first, second))
    assert measure(first, 1 - first) < 0 < measure(first, second) < 1


def test_flat_maps():
    flat, other = np.full((12, 12), 0.3), np.random.default_rng(SEED).random((12, 12))
    assert spearman(flat, other) == spearman(flat, flat) == 0
    assert ssim(flat, np.zeros((12, 12))) == 1
    assert abs(ssim(flat, other)) < 0.1


@pytest.mark.parametrize("measure", [ssim, spearman])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_maps_that_are_not_finite_have_no_similarity(measure, value, maps):
    broken = maps[0].copy()
    broken[2, 3] = value
    assert np.isnan(measure(broken, maps[1]))
    assert np.isnan(measure(maps[1], broken))


def test_small_maps_are_compared_as_a_whole():
    assert ssim(np.eye(4), np.eye(4)) == pytest.approx(1)


def test_stretched_and_turned_by_hand():
    np.testing.assert_array_equal(stretched(np.array([[2, 4, 6]])), [[0, 0.5, 1]])
    np.testing.assert_array_equal(stretched(np.array([[7.0, 7]])), [[0, 0]])
    np.testing.assert_array_equal(turned(np.arange(6).reshape(2, 3)), [[5, 4, 3], [2, 1, 0]])


def test_maps_that_prefer_the_centre_are_alike_by_chance():
    """What any map of such a method shares with any other is chance."""
    down, right = np.mgrid[:32, :32] - 15.5
    centred = np.exp(-(down**2 + right**2) / 128) + 0.3 * np.random.default_rng(SEED).random((32, 32))
    assert spearman(centred, turned(centred)) > 0.3
