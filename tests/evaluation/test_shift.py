"""The shift test on images and answers that can be followed by hand."""

import numpy as np
import pytest
import torch

from vbp.evaluation.shift import brightest, elsewhere, shift, shifted

SEED = 17
SIZE = 56
COLUMNS = [-5, -2, 2, 5]  # 20 and 10 of 224 pixels


def test_a_region_moves_over_what_is_beside_it_and_what_it_uncovers_is_filled():
    image = np.zeros((1, 3, 8), np.float32)
    image[0, :, 2:4] = 7, 9
    region = np.zeros((3, 8), bool)
    region[:, 2:4] = True
    expected = {
        1: [0, 0, 0, 7, 9, 0, 0, 0],
        3: [0, 0, 0, 0, 0, 7, 9, 0],
        -3: [9, 0, 0, 0, 0, 0, 0, 0],
        0: [0, 0, 7, 9, 0, 0, 0, 0],
    }
    for found, row in zip(shifted(image, region, expected), expected.values(), strict=True):
        np.testing.assert_allclose(found[0], [row] * 3, atol=1e-6)


def test_a_filled_gap_is_between_its_neighbours():
    image = np.broadcast_to(np.array([1, 1, 5, 3, 3, 3], np.float32), (2, 4, 6)).copy()
    region = np.zeros((4, 6), bool)
    region[:, 2] = True
    np.testing.assert_allclose(shifted(image, region, [2])[0][0], [[1, 1, 2, 3, 5, 3]] * 4, atol=1e-6)


def test_the_brightest_by_hand():
    saliency = np.array([[0.2, 0.9, 0.2, 0.5, 0.2]])
    np.testing.assert_array_equal(brightest(saliency, 0.4, np.zeros((1, 5))), [[0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(brightest(saliency, 0.6, np.array([[0, 0, 1, 0, 0]])), [[0, 1, 1, 1, 0]])


def test_elsewhere_by_hand():
    np.testing.assert_array_equal(elsewhere(np.arange(12).reshape(3, 4)), [[10, 11, 8, 9], [2, 3, 0, 1], [6, 7, 4, 5]])


def ball():
    """A white ball on black; and an answer that tells in which column its middle is."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    ball = (rows - 27) ** 2 + (columns - 30) ** 2 <= 9**2
    return ball, torch.from_numpy(np.broadcast_to(ball, (3, SIZE, SIZE)).astype(np.float32).copy())


def middle(batch):
    """The mean column of what is white, in place of class 1."""
    white = (batch[:, 0] > 0.99).double()
    columns = (white.sum(1) * torch.arange(SIZE)).sum(1) / white.sum((1, 2))
    return torch.stack([torch.zeros_like(columns), columns], 1)


def test_moving_the_marked_ball_moves_the_answer_as_far():
    region, pixels = ball()
    score = shift(region.astype(float), pixels, 1, middle)
    assert score.value == pytest.approx(np.mean(np.abs(COLUMNS)), abs=0.05)
    assert score.chance == pytest.approx(0, abs=0.05)  # elsewhere there is nothing to move
    assert (score.metric, score.settings) == ("shift", "share 0.2, shifts -5 -2 2 5, seed 500")


def test_a_map_that_marks_another_place_moves_nothing():
    region, pixels = ball()
    other = np.roll(region, (SIZE // 2, SIZE // 2), (0, 1)).astype(float)
    score = shift(other, pixels, 1, middle)
    assert score.value == pytest.approx(0, abs=0.05)
    assert score.chance == pytest.approx(np.mean(np.abs(COLUMNS)), abs=0.05)


def test_the_region_has_the_same_area_for_every_map():
    """A map of one pixel and one of half the image: the answer, the number of changed pixels, is alike."""
    generator = np.random.default_rng(SEED)
    pixels = torch.from_numpy(generator.standard_normal((3, SIZE, SIZE)).astype(np.float32))

    def changed(batch):
        return (batch != pixels).any(1).double().sum((1, 2))[:, None]

    point, half = np.zeros((2, SIZE, SIZE))
    point[20, 30] = 1
    half[:, : SIZE // 2] = 1
    values = [shift(saliency, pixels, 0, changed) for saliency in (point, half)]
    for score in values:
        assert 0.2 * SIZE**2 <= score.value <= 0.3 * SIZE**2
        assert score.chance == pytest.approx(score.value, rel=0.12)


def test_a_flat_map_and_its_chance_are_alike_in_the_mean():
    gaps = []
    for seed in range(12):
        pixels = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, SIZE, SIZE)).astype(np.float32))
        score = shift(np.zeros((SIZE, SIZE)), pixels, 0, lambda batch: batch[:, :, :20].mean((1, 2, 3))[:, None])
        gaps.append(score.value - score.chance)
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / 12**0.5


@pytest.mark.parametrize("saliency", [np.zeros((SIZE, SIZE + 1)), np.full((SIZE, SIZE), np.inf)])
def test_what_is_refused(saliency):
    with pytest.raises(ValueError, match="must have finite values"):
        shift(saliency, ball()[1], 1, middle)
