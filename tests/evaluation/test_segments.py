"""Squares and regions: whole, without gaps, along the edges of what is seen."""

import numpy as np
import pytest

from vbp.evaluation.segments import segments, squares


def test_squares_by_hand():
    np.testing.assert_array_equal(squares(2, 6, 2), [[0, 0, 1, 1, 2, 2]] * 2)
    np.testing.assert_array_equal(squares(3, 3, 9), np.zeros((3, 3)))


@pytest.mark.parametrize(("height", "width", "side"), [(227, 227, 9), (64, 48, 2.5), (5, 7, 1)])
def test_squares_differ_by_one_pixel_at_most(height, width, side):
    found = squares(height, width, side)
    assert set(found.ravel()) == set(range(found.max() + 1))
    rows, columns = (np.bincount(np.unique(found // (found[0].max() + 1), axis=axis).size * [0]) for axis in (0, 1))
    assert rows.size == columns.size == 1
    heights = np.bincount(found[:, 0] // (found[0, -1] + 1))
    widths = np.bincount(found[0])
    assert np.ptp(heights) <= 1
    assert np.ptp(widths) <= 1
    assert abs(heights.mean() - side) <= side / 2


def test_regions_follow_colours():
    """A disc on a plain ground: no region has pixels of both."""
    down, right = np.mgrid[:60, :80]
    disc = (down - 30) ** 2 + (right - 37) ** 2 < 15**2
    pixels = np.where(disc, [[[1.0]], [[0.2]], [[0.1]]], [[[0.1]], [[0.3]], [[0.9]]]).astype(np.float32)
    found = segments(pixels, 48)
    assert set(found.ravel()) == set(range(found.max() + 1))
    assert 24 <= found.max() + 1 <= 60
    assert not set(found[disc]) & set(found[~disc])


def test_the_range_of_the_pixels_changes_no_region():
    pixels = np.random.default_rng(3).random((3, 20, 24)).astype(np.float32)
    np.testing.assert_array_equal(segments(pixels, 20), segments(pixels * 4 - 2, 20))


def test_a_plain_image_is_cut_into_a_grid():
    assert np.bincount(segments(np.full((3, 40, 40), 0.5, np.float32), 16).ravel()).tolist() == [100] * 16
