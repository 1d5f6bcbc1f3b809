"""The part codecs: which libraries are measured, and that all give the same pixels."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from vbp.evidence.codecs import _libraries, codecs

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # torchvision


@pytest.mark.long
def test_every_piece_is_measured(setup):
    found = codecs(setup, photos=1)
    names = {rate.name for rate in found.rates}
    wanted = ("decode JPEG 500x375 to 224", "draw overlay", "encode mask PNG", "encode overlay JPEG")
    assert {f"{what} by vbp, 1 core" for what in wanted} <= names
    assert all(rate.median > 0 for rate in found.rates)
    differences = [figure for figure in found.figures if figure.name.startswith("greatest difference")]
    assert differences
    assert all(figure.reached for figure in differences)


@pytest.fixture(scope="module")
def libraries():
    return list(_libraries([]))


def test_decoders_agree_on_png(libraries):
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    for library in libraries:
        if "PNG" in library.decoders:
            assert np.array_equal(library.decoders["PNG"](buffer.getvalue()), pixels_HWC), library.name


def test_encoders_agree_on_masks_and_colours(libraries):
    mask_HW = np.random.default_rng(0).random((9, 7), dtype=np.float32)
    red_HWC = np.full((16, 16, 3), (200, 10, 30), np.uint8)
    for library in libraries:
        if "mask PNG" in library.encoders:
            read = np.asarray(Image.open(io.BytesIO(library.encoders["mask PNG"](mask_HW))))
            assert np.array_equal(read, np.floor(255 * mask_HW + 0.5)), library.name
        read = np.asarray(Image.open(io.BytesIO(library.encoders["overlay JPEG"](red_HWC))))
        assert np.abs(read.astype(int) - red_HWC).max() < 8, library.name


def test_absent_libraries_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    notes = []
    assert "simplejpeg" not in [library.name for library in _libraries(notes)]
    assert [note for note in notes if note.startswith("simplejpeg is left out: ")]
