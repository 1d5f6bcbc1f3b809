"""Masks quantised and drawn by torch, on the CPU: to the bit what the NumPy rules give, on which the files rest."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vbp.choices import MASK_FORMATS, OverlayStyle, choices_of
from vbp.images.encode import encode_mask
from vbp.images.on_device import overlays, stored, sums
from vbp.images.overlay import overlay
from vbp.networks.preprocessing import Preprocessing

SEED = 11
LEVELS = {"png8": (255, np.uint8, np.float32), "png16": (65535, np.uint16, np.float64)}


def edges(levels):
    """Every value half-way between two levels, and its neighbours in float32."""
    half = ((np.arange(levels) + 0.5) / levels).astype(np.float32)
    return np.concatenate([half, np.nextafter(half, np.float32(0)), np.nextafter(half, np.float32(1)), [0, 1]])


@pytest.fixture
def masks_BHW():
    print("seed", SEED)  # noqa: T201
    values = np.random.default_rng(SEED).random((3, 64, 48), dtype=np.float32) ** 4
    values[0, :15] = edges(255)[: 15 * 48].reshape(15, 48)
    values[1] = 0
    return values


@pytest.fixture
def pixels_BHWC():
    return np.random.default_rng(SEED + 1).integers(0, 256, (3, 64, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("mask_format", LEVELS)
def test_levels_are_those_of_the_rule_for_every_value_on_an_edge(mask_format):
    levels, kind, exact = LEVELS[mask_format]
    values = edges(levels).astype(np.float32)[np.newaxis, np.newaxis]
    found = stored(torch.from_numpy(values), mask_format).numpy()
    assert found.dtype == kind
    np.testing.assert_array_equal(found, np.floor(values.astype(exact) * exact(levels) + exact(0.5)).astype(kind))


@pytest.mark.parametrize("mask_format", MASK_FORMATS)
def test_files_are_the_same_whoever_made_the_levels(masks_BHW, mask_format):
    levels_BHW = stored(torch.from_numpy(masks_BHW), mask_format).numpy()
    for levels_HW, mask_HW in zip(levels_BHW, masks_BHW, strict=True):
        assert encode_mask(levels_HW, mask_format) == encode_mask(mask_HW, mask_format)


def test_levels_of_another_format_are_no_mask():
    with pytest.raises(ValueError, match="mask values 0 .. 3 must lie in"):
        encode_mask(np.arange(4, dtype=np.uint8).reshape(2, 2), "png16")


@pytest.mark.parametrize("style", choices_of(OverlayStyle))
@pytest.mark.parametrize("channels", ["rgb", "bgr", "grey"])
def test_overlays_are_the_same_to_the_bit(masks_BHW, pixels_BHWC, style, channels):
    mean, std = ((0.4,), (0.3,)) if channels == "grey" else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    preprocessing = Preprocessing(mean, std, channels=channels)
    pixels_BHWC[1] = 77  # neither a mask nor a contrast
    found = overlays(style, torch.from_numpy(pixels_BHWC), torch.from_numpy(masks_BHW), preprocessing).numpy()
    assert found.dtype == np.uint8
    for drawn, pixels, mask in zip(found, pixels_BHWC, masks_BHW, strict=True):
        np.testing.assert_array_equal(drawn, overlay(style, pixels, mask, preprocessing))


def test_every_grey_on_every_level_is_pillows():
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 3), -1).reshape(1, -1, 52, 3)
    found = overlays("heat", torch.from_numpy(colours), torch.zeros(colours.shape[:3])).numpy()
    grey = np.asarray(Image.fromarray(colours[0]).convert("L"))
    np.testing.assert_array_equal(found[0, ..., 1], np.floor(0.6 * grey + 0.5))


def test_sums_are_those_of_the_mask(masks_BHW):
    masks_BHW[2, 10, 7] = masks_BHW[2, 40, 3] = 1
    found = {name: values.numpy() for name, values in sums(torch.from_numpy(masks_BHW)).items()}
    np.testing.assert_allclose(found["total"], masks_BHW.sum((1, 2), dtype=np.float64), rtol=1e-14)
    assert found["above"].tolist() == [int((mask > 0.5).sum()) for mask in masks_BHW]
    assert found["peak"].tolist() == [int(mask.argmax()) for mask in masks_BHW]
    assert found["peak"][1:].tolist() == [0, 10 * 48 + 7]  # the first of several


def test_sixteen_bits_open_as_such():
    levels = stored(torch.tensor([[[0.0, 0.5, 1.0]]]), "png16").numpy()[0]
    assert np.asarray(Image.open(io.BytesIO(encode_mask(levels, "png16")))).tolist() == [[0, 32768, 65535]]
