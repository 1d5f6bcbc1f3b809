"""What int8 costs in masks: the comparison by hand, and the page of a small network."""

import numpy as np
import pytest
from PIL import Image

from vbp.evidence import int8 as module
from vbp.evidence.int8 import Likeness, brightest, introduction, photos_of, section
from vbp.images.decode import decode
from vbp.networks.models import load_model
from vbp.saliency.prepared import calibration


def test_masks_are_compared_by_correlation_difference_and_brightest_pixels():
    exact = np.arange(100, dtype=np.float32).reshape(10, 10) / 99
    assert Likeness.of(exact, exact) == Likeness(pytest.approx(1.0), 0.0, 1.0)
    other = exact.copy()
    other[9, 9], other[0, 0] = 0, 1  # the brightest and the darkest change places
    found = Likeness.of(other, exact)
    assert found.difference == 1
    assert found.iou == pytest.approx(4 / 6)
    assert found.pearson == pytest.approx(1 - 2 * (99 * 99) / (2 * np.square(np.arange(100) - 49.5).sum()))


def test_of_equal_pixels_the_first_are_the_brightest():
    bright = brightest(np.zeros((10, 10), np.float32))
    assert np.flatnonzero(bright).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.long
def test_a_page_tells_of_every_photo(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "LEAST_CORRELATION", -1.0)  # of random weights
    monkeypatch.setattr(module, "decode", lambda data: decode(data, size=48))
    draws = np.random.default_rng(6)
    for number in range(6):
        levels = draws.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((48, 48)).save(tmp_path / f"{number}.png")
    photos = photos_of(str(tmp_path))
    assert sorted(photos) == [f"{number}.png" for number in range(6)]
    page = "".join(section("a network", load_model("squeezenet1_1", "random"), photos, photos))
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [cells[0].strip() for cells in lines[-6:]] == sorted(photos)
    own, other = ([[cell.strip() for cell in cells[2:]] for cells in lines[first : first + 2]] for first in (2, 4))
    assert own == other  # the same photos calibrate alike
    worst = min(float(cells[1]) for cells in lines[-6:])
    assert float(own[0][0]) == worst
    assert "6 photos" in introduction(6)
