"""Every format and every way to break it; the pictures are small and made here, Pillow only writes them."""

import contextlib
import io
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from vbp.errors import (
    CorruptImageError,
    EmptyFileError,
    ImageError,
    ImageTooLargeError,
    NotAnImageError,
    UnsupportedLayoutError,
)
from vbp.images import decode as module
from vbp.images.decode import BLANK, _open_heif, decode, decode_upright, left_to_device
from vbp.images.frame import Frame


def encoded(pixels, fmt="PNG", mode=None, **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, fmt, **options)
    return buffer.getvalue()


def smooth(width=40, height=30) -> np.ndarray:
    """Red grows to the right, green downwards, blue is even: survives JPEG almost unchanged."""
    x, y = np.meshgrid(np.linspace(20, 230, width), np.linspace(20, 230, height))
    return np.stack([x, y, np.full_like(x, 90)], axis=2).round().astype(np.uint8)


def noisy(width=64, height=48) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Formats


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_return_the_pixels_written(fmt):
    data = encoded(smooth(), fmt, **({"lossless": True} if fmt == "WEBP" else {}))
    picture = decode(data, fit="original")
    assert np.array_equal(picture.pixels_HWC, smooth())
    assert picture.pixels_HWC.dtype == np.uint8
    assert (picture.width, picture.height, picture.format) == (40, 30, fmt)
    assert picture.frame == Frame(0, 0, 40, 30)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"restart_marker_blocks": 1}])
def test_jpeg_is_close_to_the_pixels_written(options):
    pixels = decode_upright(encoded(smooth(), "JPEG", quality=95, **options))
    assert np.abs(pixels.astype(int) - smooth()).max() <= 6


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(compression):
    assert np.array_equal(decode_upright(encoded(smooth(), "TIFF", compression=compression)), smooth())


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "BMP", "TIFF", "PPM", "GIF"])
def test_grey_becomes_three_equal_channels(fmt):
    grey = np.full((9, 7), 131, np.uint8)
    assert np.array_equal(decode_upright(encoded(grey, fmt)), np.full((9, 7, 3), 131))


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "PPM"])
def test_one_bit_is_black_and_white(fmt):
    bits = np.eye(9, dtype=bool)
    expected = np.repeat((255 * np.eye(9, dtype=np.uint8))[..., np.newaxis], 3, axis=2)
    assert np.array_equal(decode_upright(encoded(Image.fromarray(bits), fmt)), expected)


@pytest.mark.parametrize("magic", [b"P2", b"P3"])
def test_plain_text_netpbm(magic):
    values = b"0 128 255" if magic == b"P2" else b"0 0 0 128 128 128 255 255 255"
    pixels = decode_upright(magic + b"\n# a comment\n3 1\n255\n" + values + b"\n")
    assert pixels.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]


def test_palette_with_transparency_shows_the_palettes_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decode_upright(encoded(image, transparency=bytes([0, 128]))).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert decode_upright(encoded(image, "GIF", transparency=0)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("RGBA", (200, 10, 60, 0), [200, 10, 60]), ("RGBA", (1, 2, 3, 255), [1, 2, 3]), ("LA", (77, 0), [77, 77, 77])],
)
def test_transparency_is_dropped_and_stored_colours_kept(mode, colour, expected):
    assert decode_upright(encoded(Image.new(mode, (1, 1), colour))).tolist() == [[expected]]


def test_first_frame_of_an_animation():
    first, second = Image.new("RGB", (6, 5), (255, 0, 0)), Image.new("RGB", (6, 5), (0, 0, 255))
    for fmt, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encoded(first, fmt, save_all=True, append_images=[second], **options)
        assert decode_upright(data)[2, 2].tolist() == [255, 0, 0], fmt


def test_a_jpeg_with_more_pictures_behind_it_is_a_jpeg():
    first, second = Image.new("RGB", (16, 16), (200, 40, 40)), Image.new("RGB", (16, 16), (0, 0, 255))
    picture = decode(encoded(first, "MPO", save_all=True, append_images=[second], quality=95), fit="original")
    assert picture.format == "JPEG"
    assert np.abs(picture.pixels_HWC.astype(int) - (200, 40, 40)).max() <= 3


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "pjpeg", "dib", "apng", "avif", "jp2", "j2k"])
def test_formats_by_their_rarer_names(suffix):
    """The name plays no role; these are what the files hold."""
    fmt = {"dib": "DIB", "apng": "PNG", "avif": "AVIF", "jp2": "JPEG2000", "j2k": "JPEG2000"}.get(suffix, "JPEG")
    options = {"j2k": {"no_jp2": True}, "apng": {"save_all": True, "append_images": [Image.new("RGB", (40, 30))]}}
    picture = decode(encoded(smooth(), fmt, **options.get(suffix, {})), fit="original")
    assert picture.format == {"DIB": "BMP"}.get(fmt, fmt)
    lossless = fmt not in ("JPEG", "AVIF")
    assert np.abs(picture.pixels_HWC.astype(int) - smooth()).max() <= (0 if lossless else 12)


def test_sixteen_bits_of_jpeg_2000_keep_their_range():
    values = np.array([[0, 1 << 12, (1 << 16) - 1]], np.uint16).repeat(8, 1).repeat(24, 0)
    pixels = decode_upright(encoded(Image.fromarray(values), "JPEG2000"))
    assert pixels[0, ::8, 0].tolist() == [0, 16, 255]


@pytest.mark.parametrize("orientation", [3, 6])
def test_avif_is_turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode_upright(encoded(smooth(), "AVIF", exif=exif))
    assert np.abs(pixels.astype(int) - np.rot90(smooth(), -1 if orientation == 6 else 2)).max() <= 12


def bmp(width, height, bits, rows, *, compression=0, masks=b"", palette=b"") -> bytes:
    """By hand; a negative height stands for rows from the top."""
    size = 40 + len(masks) + len(palette)
    used = len(palette) // 4
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(rows), 0, 0, used, 0)
    start = struct.pack("<2sIHHI", b"BM", 14 + size + len(rows), 0, 0, 14 + size)
    return start + header + masks + palette + rows


def test_bmp_from_the_top_with_masks_and_by_runs():
    known = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    top = b"".join(row[:, ::-1].tobytes() + b"\0\0" for row in known)
    assert np.array_equal(decode_upright(bmp(2, -2, 24, top)), known)
    high = (known >> 3).astype("<u2")
    short = (high[..., 0] << 11 | high[..., 1] << 6 | (high[..., 1] > 0) << 5 | high[..., 2]).astype("<u2")
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    assert np.array_equal(decode_upright(bmp(2, -2, 16, short.tobytes(), compression=3, masks=masks)), known)
    palette = b"\0\0\xff\0\0\xff\0\0\xff\0\0\0\xff\xff\xff\0"
    runs = bytes([1, 2, 1, 3, 0, 0, 1, 0, 1, 1, 0, 1])  # lower row first
    assert np.array_equal(decode_upright(bmp(2, 2, 8, runs, compression=1, palette=palette)), known)


def test_a_gif_smaller_than_its_screen_lies_where_it_belongs():
    data = encoded(np.full((2, 2), 255, np.uint8), "GIF")
    data = data[:6] + struct.pack("<HH", 4, 3) + data[10:]
    at = data.index(b",") + 1
    pixels = decode_upright(data[:at] + struct.pack("<HH", 1, 1) + data[at + 4 :])
    assert pixels.shape == (3, 4, 3)
    assert (pixels[1:3, 1:3] == 255).all()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (lambda: encoded(smooth(), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "12-bit"),
        (lambda: bmp(2, 2, 24, b"\xff\xd8\xff\xe0", compression=4), "compression"),
        (lambda: bmp(2, 2, 17, bytes(20)), "pixel depth"),
        (lambda: bmp(2, 2, 16, bytes(20), compression=3, masks=struct.pack("<III", 0x3FF, 0x400, 0x800)), "bitfields"),
    ],
)
def test_what_is_not_read_is_named_and_not_called_truncated(data, why):
    with pytest.raises(UnsupportedLayoutError, match=f"^this layout is not supported: .*{why}") as raised:
        decode(data())
    assert "truncated" not in str(raised.value)


# More than 8 bits, and CMYK

SIXTEEN = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
EIGHT = [[0, 0, 1], [128, 254, 255]]


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_the_upper_byte(fmt):
    assert decode_upright(encoded(Image.fromarray(SIXTEEN), fmt))[..., 0].tolist() == EIGHT


def test_sixteen_bit_grey_of_the_other_byte_order():
    image = Image.frombytes("I;16B", (3, 2), SIXTEEN.astype(">u2").tobytes())
    assert decode_upright(encoded(image, "TIFF"))[..., 0].tolist() == EIGHT


def test_sixteen_bit_pgm_and_ppm():
    grey = b"P5 3 2 65535\n" + SIXTEEN.astype(">u2").tobytes()
    assert decode_upright(grey)[..., 0].tolist() == EIGHT
    colour = b"P6 3 2 65535\n" + np.repeat(SIXTEEN.astype(">u2"), 3).tobytes()
    pixels = decode_upright(colour)
    assert np.abs(pixels[..., 2].astype(int) - EIGHT).max() <= 1  # Pillow rounds here


def test_sixteen_bit_rgb_png_keeps_the_upper_byte():
    rows = b"".join(b"\0" + np.repeat(row.astype(">u2"), 3).tobytes() for row in SIXTEEN)
    pixels = decode_upright(png(3, 2, rows, depth=16, colour=2))
    assert pixels[..., 0].tolist() == EIGHT
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_twelve_bit_tiff():
    samples = struct.pack(">I", 0x000 << 20 | 0x800 << 8 | 0xFF0 >> 4)[:3] + b"\xff\xf0\x00"  # 0, 2048, 4095, 0
    fields = [
        (256, 3, 4),
        (257, 3, 1),
        (258, 3, 12),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, 1),
        (279, 4, 6),
    ]
    packed = struct.unpack(">Q", b"\0\0" + (0x000 << 36 | 0x800 << 24 | 0xFFF << 12).to_bytes(6, "big"))[0]
    samples = packed.to_bytes(8, "big")[2:]
    header = struct.pack("<2sHI", b"II", 42, 14) + samples
    directory = struct.pack("<H", len(fields)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in fields
    )
    pixels = decode_upright(header + directory + struct.pack("<I", 0))
    assert pixels[0, :, 0].tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.2, 0.4, 0.6], [51, 102, 153]),
        ([-1.0, 0.0, 3.0], [0, 64, 255]),
        ([1000.0, 2000.0, 3000.0], [0, 128, 255]),
        ([7.0, 7.0, 7.0], [0, 0, 0]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([2.0, float("inf"), 4.0], [0, 255, 255]),
        ([float("nan")] * 3, [0, 0, 0]),
    ],
)
def test_floating_point_tiff(values, expected):
    data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert decode_upright(data)[0, :, 1].tolist() == expected


def test_32_bit_integer_tiff():
    data = encoded(Image.fromarray(np.array([[-(1 << 31), -1, 0, (1 << 31) - 1]], np.int32)), "TIFF")
    assert decode_upright(data)[0, :, 0].tolist() == [0, 127, 128, 255]


def test_cmyk_jpeg():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = decode_upright(encoded(image, "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3


def test_ycck_jpeg():
    # Stored inverted as Adobe does: Y 200, Cb 128, Cr 128, K 255, which is the grey 255 - 200.
    data = encoded(Image.new("CMYK", (16, 16), (55, 127, 127, 0)), "JPEG", quality=100)
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0
    ycck = data[: adobe + 11] + b"\2" + data[adobe + 12 :]
    assert np.abs(decode_upright(ycck).astype(int) - 55).max() <= 2


def test_cmyk_tiff():
    assert decode_upright(encoded(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF")).tolist() == [[[0, 255, 255]]]


# Orientation

# What a viewer shows of a picture with rows "ab", "cd", "ef", for each orientation.
TURNED = {
    1: ["ab", "cd", "ef"],
    2: ["ba", "dc", "fe"],
    3: ["fe", "dc", "ba"],
    4: ["ef", "cd", "ab"],
    5: ["ace", "bdf"],
    6: ["eca", "fdb"],
    7: ["fdb", "eca"],
    8: ["bdf", "ace"],
}


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(fmt, orientation):
    grey = {letter: 20 + 40 * i for i, letter in enumerate("abcdef")}
    stored = np.array([[grey[c] for c in row] for row in TURNED[1]], np.uint8).repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(fmt, {})
    picture = decode(encoded(stored, fmt, exif=exif, **options), fit="original")
    shown = np.array([[grey[c] for c in row] for row in TURNED[orientation]])
    assert (picture.width, picture.height) == (16 * shown.shape[1], 16 * shown.shape[0])
    assert np.abs(picture.pixels_HWC[8::16, 8::16, 0].astype(int) - shown).max() <= 2


@pytest.mark.parametrize("fast", [False, True])
def test_frame_refers_to_the_upright_picture(fast):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decode(encoded(smooth(800, 400), "JPEG", exif=exif), size=100, fast=fast)
    assert (picture.width, picture.height) == (400, 800)
    assert picture.frame == Frame(0, 200, 400, 600)


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0"])
def test_unreadable_exif_does_not_cost_the_picture(exif):
    assert decode_upright(encoded(smooth(), "JPEG", exif=exif)).shape == (30, 40, 3)


# What is refused


def test_empty_file():
    with pytest.raises(EmptyFileError, match="0 bytes"):
        decode(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        b"just some text\n" * 100,
        b"\0" * 5000,
        b"\xff",
        b"%PDF-1.7\n",
        b"PK\3\4" + b"\0" * 100,
        b"BMW is a make of cars, and this is a text about it",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_not_an_image(data):
    with pytest.raises(NotAnImageError, match="none of JPEG"):
        decode(data)


WRITERS = {
    "jpeg": lambda: encoded(noisy(), "JPEG", quality=90),
    "progressive": lambda: encoded(noisy(), "JPEG", quality=90, progressive=True),
    "restarts": lambda: encoded(noisy(), "JPEG", quality=90, restart_marker_blocks=2),
    "grey": lambda: encoded(noisy(), "JPEG", mode="L"),
    "cmyk": lambda: encoded(noisy(), "JPEG", mode="CMYK"),
    "png": lambda: encoded(noisy()),
    "bmp": lambda: encoded(noisy(), "BMP"),
    "webp": lambda: encoded(noisy(), "WEBP", quality=90),
    "gif": lambda: encoded(noisy(), "GIF"),
    "tiff": lambda: encoded(noisy(), "TIFF"),
    "lzw": lambda: encoded(noisy(), "TIFF", compression="tiff_lzw"),
    "ppm": lambda: encoded(noisy(), "PPM"),
    "avif": lambda: encoded(noisy(), "AVIF"),
    "jp2": lambda: encoded(noisy(), "JPEG2000"),
    "lossy jp2": lambda: encoded(noisy(), "JPEG2000", irreversible=True, quality_layers=[20], tile_size=(32, 32)),
    "dib": lambda: encoded(noisy(), "DIB"),
    "plain": lambda: b"P3 8 6 9 " + b" ".join(b"%d" % v for v in noisy(8, 6).ravel() % 10),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_at_any_place_is_refused_or_complete(kind):
    data = WRITERS[kind]()
    whole = decode_upright(data)
    refused = 0
    cuts = sorted(
        {1, 2, 3, 4, 5, 8, 12, 20, *range(1, len(data), max(1, len(data) // 120)), *range(len(data) - 40, len(data))}
    )
    for cut in cuts:
        try:
            pixels = decode_upright(data[:cut])
        except ImageError:
            refused += 1
        else:  # what is missing is no part of the picture
            assert np.array_equal(pixels, whole), f"{kind} cut at {cut} of {len(data)} was filled up"
    assert refused >= len(cuts) - 40


def test_truncated_jpeg_is_corrupt_wherever_it_was_cut():
    for data in (WRITERS["jpeg"](), WRITERS["progressive"]()):
        for cut in range(4, len(data), 37):
            with pytest.raises(CorruptImageError, match="truncated"):
                decode(data[:cut])


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "restarts", "grey", "cmyk", "png", "jp2", "lossy jp2"])
def test_tail_of_zeros_is_corrupt(kind):
    """What an interrupted copy into a preallocated file leaves behind."""
    data = WRITERS[kind]()
    for cut in range(len(data) // 2, len(data) - 20, 101):
        with pytest.raises(CorruptImageError):
            decode(data[:cut] + bytes(len(data) - cut))


def test_end_of_a_thumbnail_is_not_the_end_of_the_picture():
    data = encoded(noisy(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + encoded(noisy(16, 16), "JPEG"))
    assert data.count(b"\xff\xd9") == 2
    with pytest.raises(CorruptImageError, match="end marker"):
        decode(data[: len(data) - 900] + bytes(900))


def test_bytes_after_the_end_are_no_error():
    for kind in ("jpeg", "progressive", "png", "gif"):
        data = WRITERS[kind]()
        assert np.array_equal(decode_upright(data + b"\0" * 999 + b"trailer"), decode_upright(data))


@pytest.mark.parametrize("kind", WRITERS)
def test_damage_raises_nothing_but_image_errors(kind):
    data, rng = WRITERS[kind](), np.random.default_rng(7)
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), rng.choice([40, 400, len(data)])), 3):
            damaged[position] = rng.integers(256)
        with contextlib.suppress(ImageError):
            decode(bytes(damaged), size=16, max_pixels=100_000)


def png(width, height, rows=b"", *, depth=8, colour=0) -> bytes:
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg_that_claims(width, height) -> bytes:
    data = encoded(np.zeros((8, 8), np.uint8), "JPEG")
    frame = data.index(b"\xff\xc0") + 5
    return data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]


@pytest.mark.parametrize("bomb", [png(20000, 20000), jpeg_that_claims(20000, 20000), b"P5 20000 20000 255\n"])
@pytest.mark.parametrize("fast", [False, True])
def test_decompression_bombs_are_refused_by_their_header(bomb, fast):
    with pytest.raises(ImageTooLargeError, match="400000000"):
        decode(bomb, fast=fast)


def test_limit_can_be_set():
    data = encoded(smooth(40, 30))
    assert decode(data, max_pixels=1200).width == 40
    with pytest.raises(ImageTooLargeError, match="40 x 30 pixels exceed the limit of 1199"):
        decode(data, max_pixels=1199)


@pytest.mark.filterwarnings("error")
def test_pillows_warnings_do_not_become_errors():
    with pytest.raises(CorruptImageError, match="truncated"):
        decode(jpeg_that_claims(9500, 9500)[:-2])  # Pillow warns from 89 million pixels on
    exif = b"II*\0\x08\0\0\0\2\0" + b"\xff" * 24  # corrupt tags, which Pillow warns of
    assert decode_upright(encoded(smooth(), "JPEG", exif=b"Exif\0\0" + exif)).shape == (30, 40, 3)
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert decode_upright(encoded(image, transparency=bytes([0, 128]))).shape == (1, 2, 3)


def test_warning_filters_are_as_before_after_overlapping_decodes():
    before = list(warnings.filters)
    data = WRITERS["jpeg"]()
    threads = [threading.Thread(target=lambda: [decode(data) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


@pytest.mark.parametrize(("option", "message"), [({"size": 0}, r"size \(=0\)"), ({"fit": "zoom"}, "'zoom'.*crop")])
def test_wrong_arguments(option, message):
    with pytest.raises(ValueError, match=message):
        decode(b"", **option)


# The rest


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("width", "height"), [(1000, 700), (700, 1000), (2100, 300)])
def test_fast_is_about_the_same_picture_in_the_same_frame(fit, width, height):
    data = encoded(smooth(width, height), "JPEG", quality=95)
    exact, fast = decode(data, size=64, fit=fit), decode(data, size=64, fit=fit, fast=True)
    assert fast.frame == exact.frame
    assert (fast.width, fast.height) == (width, height)
    assert np.abs(fast.pixels_HWC.astype(int) - exact.pixels_HWC).max() <= 12


def test_equal_bytes_give_equal_pixels():
    data = WRITERS["jpeg"]()
    assert np.array_equal(decode(data).pixels_HWC, decode(data).pixels_HWC)


def test_importing_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys, vbp.images.decode, vbp.images.encode, vbp.images.overlay, vbp.images.frame;"
        "print(sorted({'torch', 'torchvision', 'matplotlib', 'ray', 'fsspec', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _heif_header(*brands):
    return b"\0\0\0\x1cftyp" + b"".join(brands) + bytes(100)


@pytest.mark.parametrize(
    "data", [_heif_header(b"heic", b"\0\0\0\0", b"mif1"), _heif_header(b"mif1", b"\0\0\0\0", b"mif1", b"heic")]
)
def test_heif_without_its_package_names_the_extra(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    _open_heif.cache_clear()
    with pytest.raises(UnsupportedLayoutError, match=r"pip install 'visualbackprop\[heif\]', on every node"):
        decode(data)


def test_heif():
    heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    stream = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 40, 90))).save(stream, quality=95)
    picture = decode(stream.getvalue(), size=32)
    assert (picture.format, picture.width, picture.height) == ("HEIF", 64, 48)
    assert abs(picture.pixels_HWC.astype(int) - (200, 40, 90)).max() <= 6
    for end in (30, 200, len(stream.getvalue()) - 20):
        with pytest.raises(CorruptImageError):
            decode(stream.getvalue()[:end])


@pytest.mark.parametrize(
    ("data", "told"), [(b"shopping list: milk", "'shopping list: m'"), (b"\x00\xff'", '"\\x00\\xff\'"')]
)
def test_bytes_in_messages_are_no_python(data, told):
    with pytest.raises(NotAnImageError, match=f"starts with {re.escape(told)}, which"):
        decode(data)


# What is left to a device


def exif(orientation):
    written = Image.Exif()
    written[274] = orientation
    return written


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"exif": exif(1)}, {"exif": b"Exif\0\0broken"}],
    ids=["baseline", "progressive", "full colour", "upright", "broken metadata"],
)
def test_an_ordinary_jpeg_is_left_with_all_that_decoding_says_of_it(fit, options):
    data = encoded(noisy(70, 50), "JPEG", **options)
    left, expected = left_to_device(data, size=32, fit=fit), decode(data, size=32, fit=fit)
    assert left.pixels_HWC is BLANK
    assert (left.width, left.height, left.format, left.frame) == (70, 50, "JPEG", expected.frame)


def without_jfif(data, *segments):
    """The JPEG with these segments instead of its first one."""
    length = int.from_bytes(data[4:6], "big")
    return data[:2] + b"".join(segments) + data[4 + length :]


ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0"


@pytest.mark.parametrize(
    ("data", "is_left"),
    [
        (without_jfif(encoded(smooth(), "JPEG")), True),
        (without_jfif(encoded(smooth(), "JPEG"), ADOBE + b"\1"), True),
        (without_jfif(encoded(smooth(), "JPEG"), ADOBE + b"\0"), False),
        (encoded(smooth(), "JPEG", keep_rgb=True), False),
    ],
    ids=["by its numbers", "by Adobe's word", "RGB by Adobe's word", "RGB by its letters"],
)
def test_colours_are_left_where_libjpeg_takes_them_for_ycbcr(data, is_left):
    assert (left_to_device(data) is not None) is is_left


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        encoded(smooth(), "PNG"),
        encoded(smooth(), "JPEG", "L"),
        encoded(smooth(), "JPEG", "CMYK"),
        encoded(smooth(), "JPEG", exif=exif(6)),
        encoded(smooth(), "JPEG")[:-2],
        encoded(smooth(), "JPEG")[:40],
        encoded(smooth(2000, 2), "JPEG"),
    ],
    ids=["empty", "text", "PNG", "grey", "CMYK", "turned", "no end", "half a header", "strip"],
)
def test_what_only_the_cpu_reads_as_it_should_is_not_left(data):
    assert left_to_device(data) is None


def test_an_image_too_large_for_a_device_is_not_left(monkeypatch):
    data = encoded(smooth(40, 30), "JPEG")
    monkeypatch.setattr(module, "LARGEST_ON_DEVICE", 40 * 30)
    assert left_to_device(data) is not None
    monkeypatch.setattr(module, "LARGEST_ON_DEVICE", 40 * 30 - 1)
    assert left_to_device(data) is None
