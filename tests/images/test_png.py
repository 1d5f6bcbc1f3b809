"""Which damage of a PNG file makes it unreadable, and which does not. Files are written by hand, chunk by chunk."""

import struct
import zlib

import numpy as np
import pytest

from vbp.errors import CorruptImageError, ImageError, UnsupportedLayoutError
from vbp.images.decode import decode, decode_upright

KNOWN = np.random.default_rng(2).integers(0, 256, (11, 13, 3), dtype=np.uint8)
LARGE = 3_000_000


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*extra: bytes, behind=b"", colour=2, depth=8, rows=None, interlace=0, plte=b"") -> bytes:
    """KNOWN, or `rows` of other samples; `extra` chunks before the pixels, `behind` after them."""
    raw = b"".join(b"\0" + row.tobytes() for row in (KNOWN if rows is None else rows))
    header = struct.pack(">IIBBBBB", KNOWN.shape[1], KNOWN.shape[0], depth, colour, 0, 0, interlace)
    parts = [chunk(b"IHDR", header), *extra, plte, chunk(b"IDAT", zlib.compress(raw)), behind, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_wrong_check_sum(whole: bytes) -> bytes:
    return whole[:-1] + bytes([whole[-1] ^ 0xFF])


EXTRAS = {
    "gamma": chunk(b"gAMA", struct.pack(">I", 100_000)),
    "short gamma": chunk(b"gAMA", b"\0"),
    "chromaticity": chunk(b"cHRM", struct.pack(">8I", *[31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000])),
    "large text": chunk(b"tEXt", b"Comment\0" + b"c" * LARGE),
    "much text": b"".join(chunk(b"tEXt", b"k%d\0" % number + b"c" * 1_000_000) for number in range(70)),
    "large compressed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"c" * LARGE)),
    "large XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x>" + b"a" * LARGE + b"</x>")),
    "large profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(LARGE))),
    "profile that is none": chunk(b"iCCP", b"icc\0\0not zlib"),
    "profile of an unknown compression": chunk(b"iCCP", b"icc\0\7" + zlib.compress(bytes(9))),
    "profile without a name": chunk(b"iCCP", b""),
    "profile with a wrong check sum": with_wrong_check_sum(chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(500)))),
    "EXIF that is none": chunk(b"eXIf", b"garbage"),
    "EXIF with a wrong check sum": with_wrong_check_sum(chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0")),
    "animation that is none": chunk(b"acTL", b"\0") + chunk(b"fcTL", b"\0"),
    "one transparent colour": chunk(b"tRNS", KNOWN[0, 0].astype(">u2").tobytes()),
    "short transparency": chunk(b"tRNS", b"\0"),
    "private": chunk(b"prVt", b"whatever"),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_metadata_never_costs_the_picture(name):
    assert np.array_equal(decode_upright(png(EXTRAS[name])), KNOWN)
    assert np.array_equal(decode_upright(png(behind=EXTRAS[name])), KNOWN)


def test_sound_exif_counts_also_beside_a_text_that_is_too_large():
    exif = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    turned = np.rot90(KNOWN, -1)
    assert np.array_equal(decode_upright(png(chunk(b"eXIf", exif))), turned)
    assert np.array_equal(decode_upright(png(chunk(b"eXIf", exif), EXTRAS["large compressed text"])), turned)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_of_each_depth_with_transparency(bits):
    rng = np.random.default_rng(bits)
    colours = rng.integers(0, 256, (1 << bits, 3), dtype=np.uint8)
    numbers = rng.integers(0, 1 << bits, KNOWN.shape[:2])
    per_byte = 8 // bits
    padded = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % per_byte)))
    shifts = bits * np.arange(per_byte)[::-1]
    rows = (padded.reshape(len(padded), -1, per_byte) << shifts).sum(axis=2).astype(np.uint8)
    palette, opacities = chunk(b"PLTE", colours.tobytes()), chunk(b"tRNS", rng.bytes(1 << bits))
    for plte in (palette, palette + opacities, palette + chunk(b"tRNS", b"\0")):
        assert np.array_equal(decode_upright(png(colour=3, depth=bits, rows=rows, plte=plte)), colours[numbers])


def test_sixteen_bits_with_alpha_keep_the_upper_byte_of_the_colours():
    noise = np.random.default_rng(1).integers(0, 1 << 16, KNOWN.shape[:2] + (4,))
    for colour, used in ((4, [0, 3]), (6, [0, 1, 2, 3])):
        values = noise[..., used].astype(">u2")
        shown = decode_upright(png(colour=colour, depth=16, rows=values))
        assert np.array_equal(shown, np.broadcast_to(values[..., :-1] >> 8, KNOWN.shape))


def test_interlaced():
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row for top, left, down, across in passes for row in KNOWN[top::down, left::across] if row.size]
    assert np.array_equal(decode_upright(png(rows=rows, interlace=1)), KNOWN)


def test_a_chunk_that_must_be_understood_is_not_skipped():
    with pytest.raises(UnsupportedLayoutError, match="not supported: PNG with the chunk 'CgBI'"):
        decode(png(chunk(b"CgBI", b"\0\0\0\1")))


def test_numbers_into_no_palette_are_corrupt():
    with pytest.raises(CorruptImageError, match="palette that it lacks"):
        decode(png(colour=3, rows=KNOWN[..., 0]))


def test_truncated_beside_a_text_that_is_too_large():
    data = png(EXTRAS["large compressed text"])
    start = data.index(b"IDAT")
    for cut in range(start, len(data) - 16, 7):
        with pytest.raises(ImageError):
            decode(data[:cut])
