"""Intervals, p values and ranks against scipy, all sign changes, and data whose answer is known."""

import itertools

import numpy as np
import pytest
from scipy import stats

from vbp.evaluation import statistics
from vbp.evaluation.statistics import agreement, corrected, differences, holm, means, ranks

SEED = 12
NAN = float("nan")


@pytest.fixture
def table():
    """40 images, three methods: b is better than a by 0.2, c is a."""
    generator = np.random.default_rng(SEED)
    base = generator.random(40)
    return np.stack([base, base + 0.2 + 0.05 * generator.standard_normal(40), base], 1)


def test_means_and_their_intervals_against_scipy(table):
    for found, column in zip(means(table, "abc"), table.T, strict=True):
        interval = stats.bootstrap((column,), np.mean, method="percentile", n_resamples=20_000, rng=SEED)
        assert found.mean == pytest.approx(column.mean())
        assert found.images == 40
        width = found.high - found.low
        assert found.low == pytest.approx(interval.confidence_interval.low, abs=0.06 * width)
        assert found.high == pytest.approx(interval.confidence_interval.high, abs=0.06 * width)


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(SEED)
    table = generator.exponential(1.0, (60, 300))  # 300 studies of 60 images; the true mean is 1
    found = means(table, [str(study) for study in range(300)], confidence=0.9, resamples=400)
    assert 0.84 < np.mean([each.low <= 1 <= each.high for each in found]) < 0.94


def test_missing_scores_are_left_out():
    table = np.array([[1.0, NAN, NAN], [2.0, 3.0, NAN], [NAN, 5.0, NAN], [3.0, 7.0, 4.0], [4.0, NAN, NAN]])
    whole, some, one = means(table, ["whole", "some", "one"])
    assert (whole.mean, whole.images, some.mean, some.images) == (2.5, 4, 5.0, 3)
    assert 3 <= some.low < 5 < some.high <= 7
    assert (one.mean, one.images) == (4.0, 1)
    assert np.isnan([one.low, one.high]).all()


def test_no_score_at_all_is_nan():
    table = np.array([[1.0, NAN], [2.0, NAN]])
    assert np.isnan(means(table, "ab")[1].mean)
    (difference,) = differences(table, "ab", "a")
    assert np.isnan([difference.mean, difference.low, difference.high, difference.p]).all()
    assert difference.images == 0


def test_a_difference_is_taken_image_by_image(table):
    """The spread between images is five times the difference's: unpaired intervals would overlap."""
    better, same = differences(table, "abc", "a")
    assert (better.method, better.reference, better.images) == ("b", "a", 40)
    assert 0.18 < better.low < 0.2 < better.high < 0.23
    assert better.p == pytest.approx(1 / 10_001)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_p_against_all_sign_changes():
    gaps = np.array([0.3, -0.1, 0.4, 0.2, 0.25, -0.05, 0.15, 0.1])
    table = np.stack([np.zeros(8), gaps], 1)
    sums = [abs(np.dot(signs, gaps)) for signs in itertools.product([-1, 1], repeat=8)]
    exact = np.mean(np.array(sums) >= gaps.sum() - 1e-9)
    (found,) = differences(table, "ab", "a")
    assert found.p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 10_000) ** 0.5)


def test_p_of_equal_methods_is_evenly_spread():
    table = np.random.default_rng(SEED).standard_normal((30, 201))
    table[:, 0] = 0  # so that the comparisons are independent of each other
    found = differences(table, [str(column) for column in range(201)], "0", resamples=100)
    assert stats.kstest([each.p for each in found], "uniform").pvalue > 0.01


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, NAN, 0.6]), [1, NAN, 1])
    assert holm([]).shape == (0,)


def test_differences_are_corrected_together(table):
    found = corrected([*differences(table, "abc", "a"), *differences(table[:, :2], "ab", "b")])
    assert [each.p_corrected for each in found] == pytest.approx([3 / 10_001, 1, 3 / 10_001])
    assert [each.p for each in found] == pytest.approx([1 / 10_001, 1, 1 / 10_001])


@pytest.mark.parametrize(("higher_is_better", "places"), [(True, [2, 1, 3]), (False, [2, 3, 1])])
def test_ranks(higher_is_better, places):
    base = np.random.default_rng(SEED).random(30)
    found = ranks(np.stack([base, base + 1, base - 1], 1), "abc", higher_is_better)
    assert [each.rank for each in found] == places
    assert [(each.low, each.high) for each in found] == [(place, place) for place in places]
    assert [each.first for each in found] == [float(place == 1) for place in places]


def test_ranks_of_methods_that_are_alike_are_unsure():
    table = np.random.default_rng(SEED).random((50, 4))
    found = ranks(table, "abcd", True)
    assert sum(each.first for each in found) == pytest.approx(1)
    assert all(each.high > each.low for each in found)


def test_equal_methods_share_their_places():
    base = np.arange(9.0)
    first, second, last = ranks(np.stack([base, base, base - 1], 1), "abc", True)
    assert (first.rank, second.rank, last.rank) == (1.5, 1.5, 3)
    assert (first.first, second.first, last.first) == (0.5, 0.5, 0)


def test_ranks_are_over_images_that_all_methods_have():
    table = np.array([[1.0, 2.0, NAN], [1.0, 2.0, NAN], [9.0, NAN, NAN]])
    first, second, none = ranks(table, "abc", True)
    assert (first.rank, second.rank) == (2, 1)
    assert np.isnan([none.rank, none.low, none.high, none.first]).all()
    assert np.isnan(ranks(np.full((3, 2), NAN), "ab", True)[0].rank)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 2, 3, 4], [10, 20, 30, 40]], 1),
        ([[1, 2, 3], [3, 2, 1]], 0),
        ([[1, 2, 3], [1, 3, 2], [2, 1, 3]], 4 / 9),  # sums of places 4, 6, 8: 12 * 8 / (9 * 24)
        ([[1, 2, 3]], NAN),
        ([[5, 5], [7, 7]], NAN),
    ],
)
def test_agreement(rows, expected):
    assert agreement(rows) == pytest.approx(expected, nan_ok=True)


def test_agreement_against_scipys_friedman_statistic():
    values = np.random.default_rng(SEED).integers(0, 4, (7, 5))  # with ties
    assert agreement(values) == pytest.approx(stats.friedmanchisquare(*values.T).statistic / (7 * 4))


def test_the_seed_decides(table):
    assert means(table, "abc") == means(table, "abc")
    assert means(table, "abc", seed=1)[0] != means(table, "abc", seed=2)[0]


def test_many_images_are_drawn_in_pieces(monkeypatch, table):
    whole = means(table, "abc", resamples=250)
    sizes = [len(draws) for draws in statistics._draws(40, 250, 500)]
    assert sizes == [100, 100, 50]
    monkeypatch.setattr(statistics, "_AT_ONCE", 1000)
    assert means(table, "abc", resamples=250) == whole


def test_what_is_refused(table):
    with pytest.raises(ValueError, match=r"\(40, 3\) must have one column for each of 2 methods"):
        means(table, "ab")
    with pytest.raises(ValueError, match="'d' is none of a, b, c"):
        differences(table, "abc", "d")
