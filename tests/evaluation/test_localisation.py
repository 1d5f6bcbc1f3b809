"""The four metrics against loops over pixels, values by hand, and what must hold of any map."""

import itertools

import numpy as np
import pytest

from vbp.evaluation.localisation import (
    LOCALISATION,
    energy_inside,
    localisation,
    mass_accuracy,
    pointing_game,
    rank_accuracy,
)

SEED = 15
REGION = np.array([[1, 1, 0], [0, 0, 0]], bool)
MAP = np.array([[6.0, 2.0, 4.0], [1.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (pointing_game, 1),  # the 6 is inside
        (energy_inside, 6 / 10),  # 5 + 1 of 5 + 1 + 3 + 1
        (rank_accuracy, 1 / 2),  # 6 inside, 4 outside
        (mass_accuracy, 8 / 16),
    ],
)
def test_values_by_hand(metric, expected):
    assert metric(MAP, REGION) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", LOCALISATION)
def test_equal_values_count_as_the_mean_over_their_orders(name):
    """The oracle walks through all 720 orders of the six pixels, and takes the first."""
    values = np.array([3, 1, 3, 1, 1, 3.0])
    inside = np.array([1, 1, 1, 0, 0, 0], bool)
    scores = []
    for order in itertools.permutations(range(6)):
        ranked = sorted(order, key=lambda pixel: -values[pixel])  # stable: equal ones stay in the order tried
        if name == "pointing-game":
            scores.append(float(inside[ranked[0]]))
        elif name == "rank-accuracy":
            scores.append(sum(inside[pixel] for pixel in ranked[:3]) / 3)
        else:
            kept = [values[pixel] - (1 if name == "energy-inside" else 0) for pixel in range(6)]
            scores.append(sum(value for value, here in zip(kept, inside, strict=True) if here) / sum(kept))
    found = LOCALISATION[name](values.reshape(2, 3), inside.reshape(2, 3))
    assert found == pytest.approx(np.mean(scores), abs=1e-12)


@pytest.mark.parametrize("name", LOCALISATION)
@pytest.mark.parametrize("level", [0.0, 0.7])
def test_a_flat_map_scores_its_chance(name, level):
    (score,) = localisation(np.full((2, 3), level, np.float32), REGION, [name])
    assert score.value == pytest.approx(score.chance, abs=1e-12)


@pytest.mark.parametrize("name", LOCALISATION)
def test_the_object_itself_scores_one_and_its_surroundings_nothing(name):
    assert LOCALISATION[name](REGION.astype(float), REGION) == 1
    assert LOCALISATION[name]((~REGION).astype(float), REGION) == 0


@pytest.mark.parametrize("name", LOCALISATION)
def test_shuffled_maps_score_chance_in_the_mean(name):
    """Over all 720 shuffles of a map of six pixels, exactly."""
    values = np.array([5, 0.1, 2, 2, 0, 1.0])
    scores = [
        LOCALISATION[name](values[list(order)].reshape(2, 3), REGION) for order in itertools.permutations(range(6))
    ]
    assert np.mean(scores) == pytest.approx(localisation(MAP, REGION, [name])[0].chance, abs=1e-12)


@pytest.mark.parametrize("name", LOCALISATION)
def test_brightness_and_turning_change_nothing(name):
    generator = np.random.default_rng(SEED)
    saliency = np.round(generator.random((9, 7)), 1)  # with ties
    region = generator.random((9, 7)) < 0.3
    score = LOCALISATION[name](saliency, region)
    assert LOCALISATION[name](saliency * 40, region) == pytest.approx(score, abs=1e-12)
    assert LOCALISATION[name](saliency[::-1, ::-1], region[::-1, ::-1]) == pytest.approx(score, abs=1e-12)


def test_a_floor_lowers_the_mass_and_not_the_energy():
    assert energy_inside(MAP + 100, REGION) == pytest.approx(energy_inside(MAP, REGION))
    assert mass_accuracy(MAP + 100, REGION) == pytest.approx(208 / 616)


def test_tiny_float32_values_are_summed_without_loss():
    saliency = np.full((512, 512), 1e-8, np.float32)
    saliency[0, 0] = 1
    region = np.zeros((512, 512), bool)
    region[1:] = True
    inside, everything = 511 * 512 * 1e-8, 1 + (512 * 512 - 1) * 1e-8
    assert localisation(saliency, region, ["mass-accuracy"])[0].value == pytest.approx(inside / everything, rel=1e-6)


def test_scores_come_in_the_order_asked_for_with_the_objects_share_as_chance():
    scores = localisation(MAP, REGION, ["mass-accuracy", "pointing-game"])
    assert [(score.metric, score.value, score.chance) for score in scores] == [
        ("mass-accuracy", 0.5, pytest.approx(1 / 3)),
        ("pointing-game", 1.0, pytest.approx(1 / 3)),
    ]


@pytest.mark.parametrize(
    ("saliency", "region", "message"),
    [
        (MAP, REGION.T, r"saliency_HW \(2, 3\) and region_HW \(3, 2\)"),
        (MAP, np.zeros((2, 3), bool), "empty"),
        (MAP - 3, REGION, "negative"),
        (np.where(MAP > 5, np.nan, MAP), REGION, "not finite"),
    ],
)
def test_what_is_refused(saliency, region, message):
    with pytest.raises(ValueError, match=message):
        localisation(saliency, region)
