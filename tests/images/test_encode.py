"""Encoders: exact values, round trips, equal bytes for equal input."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from vbp.errors import CorruptImageError, EmptyFileError, NotAnImageError
from vbp.images.encode import decode_mask, encode_jpeg, encode_mask, encode_png, encode_strip

FORMATS = ["png8", "png16", "npy"]


def random_mask(height=33, width=47) -> np.ndarray:
    return np.random.default_rng(0).random((height, width), dtype=np.float32)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_eight_bits_round_half_up():
    values = np.array([[0, 0.5 / 255 - 1e-5, 0.5 / 255 + 1e-5, 0.5, 1]], np.float32)
    image = opened(encode_mask(values, "png8"))
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[0, 0, 1, 128, 255]]


def test_sixteen_bits_round_half_up():
    values = np.array([[0, 0.4 / 65535, 0.6 / 65535, 0.5, 1]], np.float32)
    image = opened(encode_mask(values, "png16"))
    assert image.mode == "I;16"
    assert np.asarray(image).tolist() == [[0, 0, 1, 32768, 65535]]


def test_npy_is_plain_float32():
    mask = random_mask()
    loaded = np.load(io.BytesIO(encode_mask(mask.astype(np.float64), "npy")), allow_pickle=False)
    assert loaded.dtype == np.float32
    assert np.array_equal(loaded, mask)


@pytest.mark.parametrize(("name", "tolerance"), [("png8", 0.5 / 255), ("png16", 0.5 / 65535), ("npy", 0)])
def test_masks_come_back(name, tolerance):
    mask = random_mask()
    back = decode_mask(encode_mask(mask, name))
    assert back.dtype == np.float32
    assert back.shape == mask.shape
    assert np.abs(back - mask).max() <= tolerance + 1e-7
    assert decode_mask(encode_mask(np.ones((1, 1), np.float32), name)).tolist() == [[1.0]]


@pytest.mark.parametrize("name", FORMATS)
def test_equal_masks_give_equal_bytes(name):
    strided = random_mask()[:, ::2]
    assert encode_mask(strided, name) == encode_mask(strided.copy(), name)


@pytest.mark.parametrize("wrong", [1.0001, -0.0001, float("nan"), float("inf")])
@pytest.mark.parametrize("name", FORMATS)
def test_values_that_are_no_mask(name, wrong):
    mask = random_mask()
    mask[3, 4] = wrong
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        encode_mask(mask, name)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="'jpg'.*png8, png16, npy"):
        encode_mask(random_mask(), "jpg")
    with pytest.raises(ValueError, match="one mask at a time"):
        encode_mask(np.zeros((1, 2, 2), np.float32), "png8")
    with pytest.raises(ValueError, match="at least one"):
        encode_strip([], [])


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_masks_are_corrupt(name):
    data = encode_mask(random_mask(), name)
    for cut in [*range(8, len(data), 53), *range(len(data) - 20, len(data))]:
        with pytest.raises(CorruptImageError):
            decode_mask(data[:cut])


def test_files_that_are_no_masks():
    with pytest.raises(EmptyFileError):
        decode_mask(b"")
    for data in (b"<html>", encode_jpeg(np.zeros((8, 8, 3), np.uint8)), pickle.dumps([1])):
        with pytest.raises(NotAnImageError, match="neither PNG nor npy"):
            decode_mask(data)
    with pytest.raises(CorruptImageError, match="RGB"):
        decode_mask(encode_png(np.zeros((8, 8, 3), np.uint8)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), np.float64),
        np.zeros(4, np.float32),
        np.full((2, 2), 2, np.float32),
        np.full((2, 2), np.nan, np.float32),
        np.zeros((0, 3), np.float32),
    ],
)
def test_arrays_that_are_no_masks(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    with pytest.raises(CorruptImageError):
        decode_mask(buffer.getvalue())


class Trap:
    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_never_unpickles():
    buffer = io.BytesIO()
    np.save(buffer, np.array([[Trap()]], object), allow_pickle=True)
    with pytest.raises(CorruptImageError):
        decode_mask(buffer.getvalue())
    assert not Trap.sprung


def test_npy_that_claims_terabytes():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4000000, 4000000), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with pytest.raises(CorruptImageError):
        decode_mask(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(64))


def test_png_is_lossless():
    pixels = np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(opened(encode_png(pixels))), pixels)
    assert encode_png(pixels) == encode_png(pixels)


def test_jpeg_is_close_and_keeps_thin_colours():
    pixels = np.full((32, 32, 3), 120, np.uint8)
    pixels[:, 15] = (255, 40, 40)  # one red line, which halved colour resolution would wash out
    image = opened(encode_jpeg(pixels))
    assert image.format == "JPEG"
    back = np.asarray(image).astype(int)
    assert np.abs(back - pixels).max() <= 25
    assert (back[:, 15, 0] - back[:, 15, 1]).min() > 180
    assert encode_jpeg(pixels) == encode_jpeg(pixels)


def test_strip_by_hand():
    shallow = np.array([[0, 1, 2, 4]] * 4, np.float32)
    deep = np.array([[3, 5], [5, 3]], np.float32)
    flat = np.full((4, 4), 0.3, np.float32)
    strip = np.asarray(opened(encode_strip([shallow, deep], [flat, shallow])))
    deep_row = [0, 0, 255, 255]
    shallow_row = [0, 64, 128, 255]
    white = [255, 255]
    assert strip.shape == (4 + 2 + 4, 4 + 2 + 4)
    assert strip[0].tolist() == [*deep_row, *white, *shallow_row]  # deepest first
    assert strip[1].tolist() == strip[0].tolist()  # enlarged without smoothing
    assert strip[3].tolist() == [*deep_row[::-1], *white, *shallow_row]
    assert (strip[4:6] == 255).all()
    assert strip[6].tolist() == [*shallow_row, *white, 0, 0, 0, 0]  # a flat mask is black


def test_strip_of_wide_maps_and_one_row():
    strip = np.asarray(opened(encode_strip([np.ones((2, 6), np.float32), np.eye(1, 3, dtype=np.float32)], [])))
    assert strip.shape == (2, 6 + 2 + 6)
