"""Gini index and entropy by hand and by their definitions; maps that are made equally sparse."""

import numpy as np
import pytest

from vbp.evaluation.localisation import pointing_game, rank_accuracy
from vbp.evaluation.sparseness import complexity, gini, matched, sparseness

SEED = 8


@pytest.fixture
def saliency():
    return np.random.default_rng(SEED).random((8, 9)).astype(np.float32)


def test_gini_is_half_the_mean_difference_of_all_pairs(saliency):
    values = saliency.ravel().astype(float)
    differences = [abs(first - second) for first in values for second in values]
    assert gini(saliency) == pytest.approx(np.mean(differences) / (2 * values.mean()))


@pytest.mark.parametrize(
    ("values", "index", "entropy"),
    [
        ([[0, 0, 5, 0]], 3 / 4, 0),
        ([[2, 2, 2, 2]], 0, np.log(4)),
        ([[0, 0, 0, 0]], 0, np.log(4)),
        ([[0, 1, 0, 1]], 1 / 2, np.log(2)),
        ([[1, 3]], 1 / 4, -(np.log(1 / 4) + 3 * np.log(3 / 4)) / 4),
    ],
)
def test_values_by_hand(values, index, entropy):
    assert gini(np.array(values)) == pytest.approx(index)
    assert complexity(np.array(values)) == pytest.approx(entropy)


def test_brightness_and_places_change_nothing(saliency):
    shuffled = np.random.default_rng(1).permutation(saliency.ravel()).reshape(9, 8)
    for measure in (gini, complexity):
        assert measure(shuffled * 30) == pytest.approx(measure(saliency), rel=1e-5)


def test_scores(saliency):
    scores = sparseness(saliency, ["complexity", "sparseness"])
    assert [(score.metric, score.value, score.chance) for score in scores] == [
        ("complexity", complexity(saliency), None),
        ("sparseness", gini(saliency), None),
    ]


@pytest.mark.parametrize("wanted", [0.05, 0.4, 0.7, 0.97])
def test_a_matched_map_has_the_other_sparseness_and_its_own_order(saliency, wanted):
    found, power = matched(saliency * 1e20, wanted)
    assert gini(found) == pytest.approx(wanted, abs=1e-4)
    np.testing.assert_allclose(found, (saliency / saliency.max()).astype(float) ** power, rtol=1e-4)
    region = np.zeros((8, 9), bool)
    region[2:5, 3:6] = True
    assert pointing_game(found, region) == pointing_game(saliency, region)
    assert rank_accuracy(found, region) == rank_accuracy(saliency, region)


def test_its_own_sparseness_is_the_first_power(saliency):
    assert matched(saliency, gini(saliency))[1] == pytest.approx(1, abs=1e-4)


def test_what_no_power_reaches_is_approached():
    half = np.array([[0, 0, 1, 2.0]])
    assert gini(matched(half, 0.1)[0]) == pytest.approx(1 / 2, abs=1e-3)
    assert gini(matched(half, 0.9)[0]) == pytest.approx(3 / 4)
    flat, _ = matched(np.full((2, 2), 3.0), 0.6)
    np.testing.assert_array_equal(flat, np.ones((2, 2)))
    np.testing.assert_array_equal(matched(np.zeros((2, 2)), 0.6)[0], np.zeros((2, 2)))


@pytest.mark.parametrize("value", [-1, np.nan, np.inf])
def test_what_is_refused(saliency, value):
    saliency[0, 0] = value
    for function in (sparseness, lambda broken: matched(broken, 0.5)):
        with pytest.raises(ValueError, match="negative or not finite"):
            function(saliency)
