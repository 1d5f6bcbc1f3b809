"""Masks carried back onto the original."""

import io

import numpy as np
import pytest
from PIL import Image

from vbp.images.decode import decode
from vbp.images.frame import Frame, place, point_in_image


def ramp(width: int, height: int) -> np.ndarray:
    return np.tile(((np.arange(width) + 0.5) / width).astype(np.float32), (height, 1))


def test_same_size_is_the_same_mask():
    mask = np.random.default_rng(0).random((224, 224), dtype=np.float32)
    assert np.array_equal(place(mask, Frame(0, 0, 224, 224), 224, 224), mask)


def test_enlarged_by_two_by_hand():
    mask = np.array([[0, 1]], np.float32)
    assert place(mask, Frame(0, 0, 4, 2), 4, 2).tolist() == [[0, 0.25, 0.75, 1]] * 2


def test_zero_outside_the_frame():
    placed = place(np.ones((2, 2), np.float32), Frame(3, 1, 7, 5), 10, 6)
    expected = np.zeros((6, 10), np.float32)
    expected[1:5, 3:7] = 1
    assert np.array_equal(placed, expected)


def test_padding_is_cut_away():
    mask = np.zeros((4, 4), np.float32)
    mask[1:3] = 1  # the picture; above and below is padding
    mask[0] = 0.5
    for scale in (0.5, 1, 2, 3.5):  # the padding does not shine through, whatever the scale
        width, height = int(4 * scale), int(2 * scale)
        placed = place(mask, Frame(0, -scale, 4 * scale, 3 * scale), width, height)
        assert np.array_equal(placed, np.ones((height, width)))


def test_a_pixel_belongs_to_the_frame_if_its_centre_does():
    placed = place(np.ones((3, 3), np.float32), Frame(1.4, 1.6, 4.4, 4.6), 6, 6)
    assert np.flatnonzero(placed.any(axis=0)).tolist() == [1, 2, 3]
    assert np.flatnonzero(placed.any(axis=1)).tolist() == [2, 3, 4]
    assert set(placed.ravel().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    "frame", [Frame(0, 0, 500, 375), Frame(37 * 500 / 298, 0, 261 * 500 / 298, 375), Frame(0, -62.5, 500, 437.5)]
)
def test_gradient_keeps_its_place(frame):
    placed = place(ramp(224, 224), frame, 500, 375)
    x = (np.arange(500) + 0.5 - frame.left) / (frame.right - frame.left)
    inside = (x > 1 / 224) & (x < 1 - 1 / 224)  # the outermost half cells are flat
    assert np.abs(placed[187, inside] - x[inside]).max() < 1e-5
    outside = (x < 0) | (x > 1)
    assert not placed[:, outside].any()


def test_peak_keeps_its_place():
    mask = np.zeros((224, 224), np.float32)
    mask[100, 50] = 1
    frame = Frame(62, 0, 438, 376)
    y, x = np.unravel_index(place(mask, frame, 500, 376).argmax(), (376, 500))
    assert abs(x + 0.5 - (62 + 50.5 * 376 / 224)) <= 1
    assert abs(y + 0.5 - 100.5 * 376 / 224) <= 1


def test_shrinking_averages():
    checks = (np.indices((64, 64)).sum(axis=0) % 2).astype(np.float32)
    assert np.abs(place(checks, Frame(0, 0, 8, 8), 8, 8) - 0.5).max() < 0.05


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_what_decode_framed_comes_back_where_it_was(fit):
    """A bright square: the picture itself serves as the mask."""
    pixels = np.zeros((90, 160, 3), np.uint8)
    pixels[30:60, 70:110] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    picture = decode(buffer.getvalue(), size=64, fit=fit)
    placed = place((picture.pixels_HWC[..., 0] / 255).astype(np.float32), picture.frame, 160, 90)
    assert (placed[33:57, 73:107] > 0.95).all()
    assert (placed[:26] < 0.05).all()
    assert (placed[:, :66] < 0.05).all()
    assert (placed[:, 114:] < 0.05).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_originals(size):
    assert place(np.ones((8, 8), np.float32), Frame(0, 0, *size), *size).tolist() == np.ones(size[::-1]).tolist()


def test_a_crop_finer_than_a_pixel():
    placed = place(ramp(224, 224), Frame(2499.5, 0, 2500.5, 1), 5000, 1)
    assert np.flatnonzero(placed).tolist() == [2499]


def test_values_stay_in_range_and_type():
    placed = place(np.random.default_rng(3).random((50, 70)).astype(np.float32), Frame(-9.7, 3.2, 131.1, 88.8), 120, 99)
    assert placed.dtype == np.float32
    assert placed.shape == (99, 120)
    assert 0 <= placed.min() <= placed.max() <= 1


def test_wrong_arguments():
    with pytest.raises(ValueError, match="one mask at a time"):
        place(np.ones((1, 2, 2), np.float32), Frame(0, 0, 1, 1), 1, 1)
    with pytest.raises(ValueError, match="empty"):
        place(np.ones((2, 2), np.float32), Frame(1, 0, 1, 1), 1, 1)


def test_a_point_of_the_mask_in_the_original():
    assert point_in_image(0, 0, (4, 2), Frame(0, 0, 4, 2)) == (0.5, 0.5)
    assert point_in_image(3, 1, (4, 2), Frame(10, 20, 18, 28)) == (17, 26)
    assert point_in_image(0, 0, (2, 2), Frame(-4, 0, 4, 8)) == (-2, 2)  # on padding
