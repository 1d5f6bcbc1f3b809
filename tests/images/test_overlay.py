"""Overlays against values worked out by hand."""

import numpy as np
import pytest

from vbp.choices import OverlayStyle, choices_of
from vbp.images import overlay as module
from vbp.images.overlay import heat, overlay, red, reference
from vbp.networks.preprocessing import Preprocessing

GREYS = np.array([[[0] * 3, [100] * 3, [255] * 3]], np.uint8)


def mask(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_red_adds_to_red_and_takes_from_green_and_blue():
    pixels = np.array([[[10, 200, 30], [250, 20, 128], [1, 2, 3]]], np.uint8)
    # 0.2 is 51 levels, 0.1 is 25.5: 250 + 25.5 is clamped, 128 - 25.5 = 102.5 rounds up.
    assert red(pixels, mask(0.2, 0.1, 0)).tolist() == [[[61, 149, 0], [255, 0, 103], [1, 2, 3]]]
    assert red(pixels, mask(1, 1, 1)).tolist() == [[[255, 0, 0], [255, 0, 0], [255, 0, 0]]]


def test_reference_stretches_what_the_network_sees():
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    # Normalised: black (-2.1179, -2.0357, -1.8044), white (2.2489, 2.4286, 2.6400).
    # With 10 * 0.5 the red of white is 7.2489, so the range is 9.3668.
    expected = [[[0, 2, 9], [255, 124, 130]]]
    assert reference(pixels, mask(0, 0.5)).tolist() == expected


def test_reference_without_a_mask_is_the_picture_stretched():
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    # Range -2.1179 .. 2.6400.
    assert reference(pixels, mask(0, 0)).tolist() == [[[0, 4, 17], [234, 244, 255]]]


def test_reference_takes_the_networks_own_normalisation():
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    # red in (0 - 0.2) / 0.5, green in (0 - 0.5) / 0.25, blue in 0 / 1: red -0.4 .. 1.6, green -2 .. 2, blue 0 .. 1.
    own = Preprocessing(mean=(0, 0.5, 0.2), std=(1, 0.25, 0.5), channels="bgr")
    assert reference(pixels, mask(0, 0), own).tolist() == [[[102, 0, 128], [230, 255, 191]]]
    assert overlay("reference", pixels, mask(0, 0), own).tolist() == [[[102, 0, 128], [230, 255, 191]]]
    # grey in (0 - 0.5) / 0.5: -1 .. 1.
    grey = Preprocessing(mean=(0.5,), std=(0.5,), channels="grey")
    assert reference(pixels, mask(0, 0), grey).tolist() == [[[0] * 3, [255] * 3]]


def test_heat_leaves_the_dimmed_grey_picture_where_the_mask_is_zero():
    assert heat(GREYS, mask(0, 0, 0)).tolist() == [[[0] * 3, [60] * 3, [153] * 3]]


def test_heat_turns_colours_to_grey():
    drawn = heat(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), mask(0, 0, 0))
    # BT.601: 76, 150 and 29 of 255, times 0.6.
    assert drawn.tolist() == [[[46] * 3, [90] * 3, [17] * 3]]


def test_heat_covers_the_picture_where_the_mask_is_high():
    drawn = heat(GREYS, mask(1, 1, 1))
    assert drawn.tolist() == [[[252, 255, 164]] * 3]  # the bright end of inferno
    high = heat(GREYS, mask(0.5, 0.5, 0.5))
    assert (high == high[0, 0]).all()


def test_heat_grows_with_the_root_of_the_mask():
    black = np.zeros((1, 101, 3), np.uint8)
    drawn = heat(black, np.linspace(0, 1, 101, dtype=np.float32)[np.newaxis]).astype(int)
    brightness = drawn.sum(axis=2)[0]
    assert (np.diff(brightness) >= 0).all()
    assert brightness[10] > 0.2 * brightness[-1]  # a tenth of the mask shows


def test_heat_of_white_by_hand():
    # Mask 0.01: root 0.1, level 26, opacity 1.5 * 26 / 255 = 0.1529; inferno(0.2 + 0.8 * 26 / 255) is the table's
    # entry 72, (0.3915, 0.0809, 0.4331) -> 0.1529 * (99.8, 20.6, 110.4) + 0.8471 * 153.
    drawn = heat(np.full((1, 1, 3), 255, np.uint8), mask(0.01))[0, 0].astype(int)
    assert np.abs(drawn - (145, 133, 146)).max() <= 1


@pytest.mark.parametrize("style", choices_of(OverlayStyle))
def test_every_style_keeps_shape_and_type_and_input(style):
    rng = np.random.default_rng(0)
    pixels, mask_HW = rng.integers(0, 256, (13, 17, 3), dtype=np.uint8), rng.random((13, 17), dtype=np.float32)
    before = pixels.copy(), mask_HW.copy()
    drawn = overlay(style, pixels, mask_HW)
    assert drawn.shape == (13, 17, 3)
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn, getattr(module, style)(pixels, mask_HW))
    assert np.array_equal(pixels, before[0])
    assert np.array_equal(mask_HW, before[1])


@pytest.mark.parametrize("style", choices_of(OverlayStyle))
def test_flat_pictures_and_masks(style):
    black = overlay(style, np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32))
    assert black.shape == (4, 4, 3)
    if style != "reference":
        assert not black.any()


@pytest.mark.parametrize("style", choices_of(OverlayStyle))
def test_wrong_arguments(style):
    pixels = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\(6, 4\).*\(4, 6\)"):
        overlay(style, pixels, np.zeros((6, 4), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        overlay(style, pixels.astype(np.float32), np.zeros((4, 6), np.float32))
    for wrong in (1.01, -0.01, float("nan")):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            overlay(style, pixels, np.full((4, 6), wrong, np.float32))


def test_unknown_style():
    with pytest.raises(ValueError, match=f"'jet'.*{', '.join(choices_of(OverlayStyle))}"):
        overlay("jet", np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.float32))
