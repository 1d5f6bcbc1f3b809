"""One mask against its row."""

import io

import numpy as np
import pytest
from PIL import Image

from vbp.review.masks import fault_of

CONFIG = {"size": 8, "fit": "crop", "frame": "network", "mask_format": "png8"}


@pytest.fixture
def mask():
    mask = np.zeros((8, 8), np.float32)
    mask[2, 5], mask[3, 5], mask[0, 0] = 1.0, 0.6, 0.2
    return mask


def row(**changes):
    return {
        "mask_mean": 1.8 / 64, "mask_area": 2 / 64, "peak_x": 5, "peak_y": 2, "flat": False, "width": 9, "height": 7
    } | changes  # fmt: skip


def npy(mask):
    buffer = io.BytesIO()
    np.save(buffer, mask)
    return buffer.getvalue()


def png(mask, levels=255, kind=np.uint8):
    buffer = io.BytesIO()
    Image.fromarray(np.floor(levels * mask.astype(np.float64) + 0.5).astype(kind)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_mask_that_is_as_its_row_says(mask):
    assert fault_of(npy(mask), row(), CONFIG | {"mask_format": "npy"}) is None
    assert fault_of(png(mask), row(), CONFIG) is None
    assert fault_of(png(mask, 65535, np.uint16), row(), CONFIG | {"mask_format": "png16"}) is None


def test_a_row_that_knows_the_mask_s_size(mask):
    assert fault_of(png(mask), row(mask_width=8, mask_height=8), CONFIG) is None
    assert fault_of(png(mask), row(mask_width=None, mask_height=None), CONFIG) is None


def test_a_flat_mask():
    flat = row(mask_mean=0.0, mask_area=0.0, peak_x=0, peak_y=0, flat=True)
    assert fault_of(png(np.zeros((8, 8), np.float32)), flat, CONFIG) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask_mean": 0.1}, "a mean of 0.02"),
        ({"mask_area": 0.5}, "area above 0.5 of 0.03"),
        ({"peak_x": 4}, r"no maximum at \(4, 2\)"),
        ({"mask_width": 9, "mask_height": 8}, r"8 x 8 pixels, but its row says 9 x 8"),
    ],
)
def test_a_mask_that_is_not(mask, changes, words):
    import re

    assert re.search(words, fault_of(png(mask), row(**changes), CONFIG))


@pytest.mark.parametrize("changes", [{"frame": "image"}, {"fit": "original"}])
def test_the_size_is_that_of_the_image_where_asked_for(mask, changes):
    assert fault_of(png(mask), row(width=8, height=8), CONFIG | changes) is None
    assert fault_of(png(mask), row(), CONFIG | changes) == "8 x 8 pixels, not 9 x 7"
    assert fault_of(png(mask), row(), CONFIG | {"size": 9}) == "8 x 8 pixels, not 9 x 9"


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"no png", lambda data: data[:60] + data[61:]])
def test_a_broken_file(mask, damage):
    assert "compute it again" in fault_of(damage(png(mask)), row(), CONFIG)
