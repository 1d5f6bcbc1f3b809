"""TIFF in every layout that people have, written by hand (tests/tiffwriter.py) from a known picture."""

import itertools
import random

import numpy as np
import pytest

from tests.tiffwriter import tiff
from vbp.errors import CorruptImageError, ImageError, ImageTooLargeError, UnsupportedLayoutError
from vbp.images.decode import decode, decode_upright

H, W = 21, 37


def picture(samples: int = 3) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (H, W, samples), dtype=np.uint8)


def as_type(levels_HWS: np.ndarray, kind: str) -> np.ndarray:
    """Values of that type that stand for the levels; random below the upper byte."""
    name = np.dtype(kind)
    if name.kind == "f":
        return (levels_HWS / 255).astype(name)
    size = name.itemsize
    lower = np.random.default_rng(4).integers(0, 1 << min(62, 8 * (size - 1)), levels_HWS.shape).astype(object)
    values = levels_HWS.astype(object) * (1 << 8 * (size - 1)) + (lower if size > 1 else 0)
    return (values - (1 << (8 * size - 1)) if name.kind == "i" else values).astype(name)


def grey(levels_HW: np.ndarray) -> np.ndarray:
    return np.repeat(levels_HW[..., np.newaxis], 3, axis=2)


KINDS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
BLOCKS = [{}, {"rows": 5}, {"tile": (16, 16)}, {"tile": (48, 32)}]
PACKINGS = [
    *itertools.product(["none", "packbits"], [1]),
    *itertools.product(["lzw", "deflate", "old-deflate"], [1, 2, 3]),
]
LAYOUTS = [
    (kind, order, planar, samples, block, compression, predictor)
    for kind, order, planar, samples, block, (compression, predictor) in itertools.product(
        KINDS, "<>", [False, True], [1, 3], BLOCKS, PACKINGS
    )
    if predictor != 3 or kind in ("f2", "f4", "f8")
]


@pytest.mark.parametrize("part", range(8))
def test_every_layout_is_the_picture_written(part):
    """A sample of all combinations, another one in every run."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # noqa: T201
    for kind, order, planar, samples, block, compression, predictor in random.Random(seed).sample(LAYOUTS, 25):
        known = picture(samples)
        data = tiff(
            as_type(known, kind),
            byte_order=order, planar=planar, compression=compression, predictor=predictor, **block,
        )  # fmt: skip
        shown = decode_upright(data)
        assert np.array_equal(shown, known if samples == 3 else grey(known[..., 0])), (
            kind, order, planar, samples, block, compression, predictor,
        )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", "<>")
def test_white_may_be_zero(kind, order):
    known = picture(1)
    assert np.array_equal(
        decode_upright(tiff(as_type(255 - known, kind), photometric=0, byte_order=order)), grey(known[..., 0])
    )


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planar", [False, True])
def test_further_samples_are_no_colour(kind, planar):
    known, further = picture(3), picture(3)[::-1]
    for extra in [(0,), (2,), (0, 0), (2, 0), (0, 0, 0)]:
        values = np.concatenate([known, further[..., : len(extra)]], axis=2)
        assert np.array_equal(decode_upright(tiff(as_type(values, kind), planar=planar, extra=extra)), known), extra
    for extra in [(0,), (2,)]:
        values = as_type(known[..., :2], kind)
        shown = decode_upright(tiff(values, planar=planar, extra=extra))
        assert np.array_equal(shown, grey(known[..., 0])), extra


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("colours", [1, 3])
def test_premultiplied_alpha_is_divided_out(kind, planar, colours):
    known = np.full((H, W, colours + 1), 50, np.uint8)
    known[..., -1] = 100
    shown = decode_upright(tiff(as_type(known, kind), planar=planar, extra=(1,), photometric=1 if colours == 1 else 2))
    assert np.abs(shown.astype(int) - 255 * 50 / 100).max() <= 1


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("planar", [False, True])
def test_cmyk(kind, planar):
    inks = picture(4)
    shown = decode_upright(tiff(as_type(inks, kind), photometric=5, planar=planar))
    right = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    assert np.abs(shown - right).max() <= 1


@pytest.mark.parametrize(("lab", "rgb"), [((255, 0, 0), (255, 255, 255)), ((0, 0, 0), (0, 0, 0)),
                                          ((138, 81, 70), (255, 0, 0)), ((118, -48, 49), (0, 128, 0))])  # fmt: skip
def test_lab(lab, rgb):
    """L of 255 is 100; a and b are signed. The last two are sRGB's red and green under D50."""
    values = np.broadcast_to(np.array(lab, np.int16).astype(np.uint8), (4, 4, 3))
    shown = decode_upright(tiff(values, photometric=8))
    assert np.abs(shown[0, 0].astype(int) - rgb).max() <= 8


@pytest.mark.parametrize("full", [True, False])
def test_palettes_of_16_bits_and_of_writers_that_took_them_for_8(full):
    colours = np.random.default_rng(5).integers(0, 256, (3, 256))
    entries = colours * 257 if full else colours
    numbers = picture(1)
    shown = decode_upright(tiff(numbers, photometric=3, tags={320: (3, entries.ravel().tolist())}))
    assert np.array_equal(shown, colours.T[numbers[..., 0]])


@pytest.mark.parametrize("kind", ["u1", "u2", "f8"])
def test_big_tiff(kind):
    assert np.array_equal(decode_upright(tiff(as_type(picture(), kind), big=True)), picture())
    with pytest.raises(UnsupportedLayoutError, match="BigTIFF"):
        decode(tiff(as_type(picture(), kind), big=True, byte_order=">"))


@pytest.mark.parametrize("kind", ["u1", "i2"])
@pytest.mark.parametrize(("orientation", "turn"), [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)),
    (6, lambda a: np.rot90(a, -1)), (8, np.rot90), (9, lambda a: a), (0, lambda a: a)])  # fmt: skip
def test_orientation(kind, orientation, turn):
    shown = decode(tiff(as_type(picture(), kind), tags={274: (3, [orientation])}), fit="original")
    assert np.array_equal(shown.pixels_HWC, turn(picture()))
    assert (shown.height, shown.width) == turn(picture()).shape[:2]


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),
        ([[1.0, 1.5, 2.0]], [[0, 128, 255]]),
        ([[-1e308, 0.0, 1e308]], [[0, 128, 255]]),
        ([[np.nan, 3.0, np.inf]], [[0, 0, 0]]),
        ([[np.nan, np.nan]], [[0, 0]]),
    ],
)
def test_floating_point(values, levels):
    shown = decode_upright(tiff(np.array(values, np.float64)[..., np.newaxis]))
    assert shown[..., 0].tolist() == levels


def test_colours_of_floating_point_share_one_scale():
    values = np.array([[[0.0, 1.0, 4.0]]], np.float32)
    assert decode_upright(tiff(values)).tolist() == [[[0, 64, 255]]]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"samples": 5, "photometric": 1, "extra": (0,) * 4}, "5 samples a pixel of 8 bits.*which of its grey samples"),
        ({"kind": "u2", "photometric": 3}, "PhotometricInterpretation 3"),
        ({"photometric": 6, "planar": True}, "PhotometricInterpretation 6"),
        ({"photometric": 6}, "subsampled"),
        ({"photometric": 32803, "samples": 1}, "PhotometricInterpretation 32803"),
        ({"tags": {262: None}}, "does not say what its samples mean"),
        ({"photometric": 5, "samples": 4, "tags": {332: (3, [2])}}, "not CMYK"),
        ({"tags": {339: (3, [1, 1, 3])}}, "differ in type"),
        ({"tags": {339: (3, [4, 4, 4])}}, "undefined"),
        ({"tags": {258: (3, [5, 6, 5])}}, "differ in type"),
        ({"kind": "f4", "tags": {258: (3, [24, 24, 24])}}, "24 bits"),
        ({"kind": "u2", "compression": "deflate", "tags": {317: (3, [3])}}, "predictor 3"),
        ({"kind": "f4", "tags": {259: (3, [34887])}}, "compression 34887"),
        ({"samples": 2, "photometric": 2}, "need 3 samples"),
        ({"tags": {259: (3, [7]), 258: (3, [12, 12, 12])}}, "of 12 bits"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(options, why):
    values = as_type(picture(options.pop("samples", 3)), options.pop("kind", "u1"))
    with pytest.raises(UnsupportedLayoutError, match=f"^this layout is not supported: TIFF with.*{why}"):
        decode(tiff(values, **options))


@pytest.mark.parametrize("compression", ["none", "deflate", "lzw", "packbits"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("planar", [False, True])
def test_a_truncated_file_is_refused_wherever_it_was_cut(compression, block, planar):
    data = tiff(as_type(picture(), "i2"), compression=compression, planar=planar, **block)
    whole = decode_upright(data)
    for cut in range(4, len(data), max(1, len(data) // 60)):
        try:
            shown = decode_upright(data[:cut])
        except ImageError:
            continue
        assert np.array_equal(shown, whole), cut


@pytest.mark.parametrize("tag", [273, 324])
def test_a_strip_or_tile_too_few_is_corrupt(tag):
    block = {"tile": (16, 16)} if tag == 324 else {"rows": 5}
    with pytest.raises(CorruptImageError, match="names 2 strips or tiles and needs"):
        decode(tiff(as_type(picture(), "i2"), tags={tag: (4, [0, 0])}, **block))


def test_bombs_are_refused_by_what_they_would_take():
    """Few pixels, but each of many bytes."""
    data = tiff(np.zeros((100, 100, 3)), compression="deflate", planar=True)
    assert decode(data, max_pixels=80_000).width == 100
    with pytest.raises(ImageTooLargeError, match="240000 bytes.*the limit of 75000"):
        decode(data, max_pixels=25_000)


@pytest.mark.parametrize("kind", ["u1", "f8"])
@pytest.mark.parametrize("tile", [(1 << 20, 16), (16, 1 << 20), (1 << 31, 1 << 31)])
def test_tiles_far_larger_than_the_picture_are_refused_by_what_they_would_take(kind, tile):
    tags = {322: (4, [tile[0]]), 323: (4, [tile[1]])}
    data = tiff(as_type(picture(), kind), tile=(48, 32), compression="deflate", tags=tags)
    with pytest.raises(ImageTooLargeError, match=f"tiles of {tile[0]} x {tile[1]} pixels"):
        decode(data, max_pixels=1_000_000)


@pytest.mark.parametrize("tag", [322, 323])
def test_tiles_without_a_size_are_corrupt(tag):
    with pytest.raises(CorruptImageError, match="strips or tiles are of"):
        decode(tiff(as_type(picture(), "i2"), tile=(48, 32), tags={tag: (4, [0])}))
