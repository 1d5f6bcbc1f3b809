"""Read TIFF files in layouts that Pillow refuses, or reads wrongly without an error.

A TIFF file chooses its number of samples per pixel, their type and size, their order in planes, and their meaning.
Pillow reads 8-bit unsigned samples that lie pixel by pixel (and a few other layouts) correctly, so it reads those. The
others are read here: Pillow only decompresses, from a file that claims to hold 8-bit grey; then the bytes are given
their true type. Layouts that are not read here either are refused by name.

How values become 8 bits:

- Integers keep the range of their type: of unsigned ones the upper 8 bits are kept, and the smallest signed value
  becomes 0.
- Floating point in [0, 1] is scaled to 0..255. If any value lies outside, the values are scaled from the image's own
  smallest to largest finite value, over all its colours; NaN counts as the smallest.
- If the file says that 0 is white, levels are reversed.

Shapes: H, W = height and width in pixels, S = samples a pixel, P = planes, B = bytes a row.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImagePalette
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from vbp.errors import CorruptImageError, ImageTooLargeError, UnsupportedLayoutError

_PREDICTED = (5, 8, 32946, 34925, 50000)
"""Compressions that use the tag Predictor: LZW, deflate under two numbers, LZMA, Zstd."""
_LOSSLESS = (1, 32773, *_PREDICTED)
"""Lossless compressions of bytes of any meaning: none, PackBits, and those with Predictor."""
_COLOURS = {0: 1, 1: 1, 2: 3, 5: 4}
"""Number of samples of a colour, by the tag PhotometricInterpretation."""
_MODES = {(1, False): "L", (1, True): "La", (3, False): "RGB", (3, True): "RGBa", (4, False): "CMYK"}
_TYPES = {(1, 8): "u1", (1, 16): "u2", (1, 32): "u4", (1, 64): "u8", (2, 8): "i1", (2, 16): "i2", (2, 32): "i4",
          (2, 64): "i8", (3, 16): "f2", (3, 32): "f4", (3, 64): "f8"}  # fmt: skip
"""NumPy's type by the tags SampleFormat and BitsPerSample."""
_NAMES = {1: "unsigned", 2: "signed", 3: "floating point"}
_PREDICTORS = _UNPREDICTED, _DIFFERENCES, _FLOAT_DIFFERENCES = 1, 2, 3


@dataclass(frozen=True)
class Layout:
    """The layout of one page's samples in the file; the fields are TIFF's tags."""

    width: int
    height: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    samples: int
    photometric: int | None
    compression: int
    predictor: int
    planar: bool
    extra: tuple[int, ...]
    subsampling: tuple[int, ...]
    ink_set: int
    fill_order: int
    orientation: int
    byte_order: str
    """Byte order ``<`` or ``>``, as in NumPy and struct."""
    tiled: bool
    block_width: int
    """Size of a tile or strip, in pixels."""
    block_height: int
    offsets: tuple[int, ...]
    """Offsets of strips or tiles in the file."""
    lengths: tuple[int, ...]

    @property
    def colours(self) -> int:
        """Number of samples of a colour; 0 if unknown."""
        return _COLOURS.get(-1 if self.photometric is None else self.photometric, 0)

    def __str__(self) -> str:
        """For messages."""
        kinds = " and ".join(_NAMES.get(kind, f"undefined (SampleFormat {kind})") for kind in sorted(set(self.formats)))
        bits = " and ".join(map(str, sorted(set(self.bits))))
        return (
            f"TIFF with {self.samples} samples a pixel of {bits} bits, {kinds}, {'planar, ' if self.planar else ''}"
            f"PhotometricInterpretation {self.photometric}, compression {self.compression}"
        )


def layout_of(data: bytes) -> Layout:
    """Reads the first page's directory.

    Raises:
        CorruptImageError: the size of the picture or the place of its samples is missing.
        UnsupportedLayoutError: the file is a BigTIFF in the byte order that Pillow does not read.
    """
    if data[:4] == b"MM\0+":
        raise UnsupportedLayoutError(
            "this layout is not supported: big-endian BigTIFF; write it as TIFF, or little-endian"
        )
    tags = ImageFileDirectory_v2(data[:16] if data[2:3] == b"+" else data[:8])  # + marks a BigTIFF
    stream = io.BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)

    def numbers(tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        found = tags.get(tag, default)
        return tuple(int(value) for value in (found if isinstance(found, tuple) else (found,)))

    def number(tag: int, default: int) -> int:
        return numbers(tag, (default,))[0]

    tiled = 322 in tags
    width, height, samples = number(256, 0), number(257, 0), number(277, 1)
    offsets = numbers(324 if tiled else 273)
    if width < 1 or height < 1 or not offsets:
        raise CorruptImageError(
            f"the TIFF's directory is of {width} x {height} pixels in {len(offsets)} strips or tiles; it is truncated "
            "or broken: write it again"
        )
    bits, compression = numbers(258, (1,)), number(259, 1)
    return Layout(
        width=width,
        height=height,
        bits=bits,
        formats=numbers(339, (1,)),
        samples=samples,
        photometric=number(262, 0) if 262 in tags else None,
        compression=compression,
        predictor=number(317, _UNPREDICTED) if compression in _PREDICTED else _UNPREDICTED,
        planar=number(284, 1) == 2 and samples > 1,
        extra=numbers(338),
        subsampling=numbers(530, (2, 2)),
        ink_set=number(332, 1),
        fill_order=number(266, 1),
        orientation=number(274, 1),
        byte_order="<" if data[:1] == b"I" else ">",
        tiled=tiled,
        block_width=number(322, 0) if tiled else width,
        block_height=number(323, 0) if tiled else min(number(278, height), height),
        offsets=offsets,
        lengths=numbers(325 if tiled else 279),
    )


def check_blocks(layout: Layout, max_pixels: int) -> None:
    """Refuse strips and tiles that are far larger than the picture, because each is decompressed as a whole.

    Raises:
        ImageTooLargeError: one of them, or all together, would take more than four bytes for each of `max_pixels`.
        CorruptImageError: they have no size.
    """
    width, height = layout.block_width, layout.block_height
    if width < 1 or height < 1:
        raise CorruptImageError(f"the TIFF's strips or tiles are of {width} x {height} pixels; write it again")
    across = math.ceil(layout.width / width) * width
    down = max(height, layout.height)
    bits = max(layout.bits) * (1 if layout.planar else layout.samples)
    if across * down * bits > 8 * 4 * max_pixels:
        raise ImageTooLargeError(
            f"strips or tiles of {width} x {height} pixels of {bits} bits take more than the limit of {4 * max_pixels} "
            "bytes; shrink the image, or write it in smaller tiles"
        )


def pillow_reads(data: bytes, layout: Layout) -> bool:
    """Whether Pillow reads this file, and reads its layout correctly.

    Raises:
        UnsupportedLayoutError: Pillow reads it wrongly, and so would we.
    """
    if layout.photometric is None:
        raise _unsupported(layout, "it does not say what its samples mean (PhotometricInterpretation)")
    if layout.photometric == 5 and layout.ink_set != 1:
        raise _unsupported(layout, "its inks are not CMYK")
    if layout.photometric == 6 and layout.compression in _LOSSLESS and layout.subsampling != (1, 1):
        raise _unsupported(layout, f"its colours are subsampled {layout.subsampling} without being a JPEG")
    few = layout.samples <= 4 and max(layout.bits) <= (12 if layout.compression in _LOSSLESS else 8)
    return few and set(layout.formats) == {1} and not layout.planar and _pillow_takes(data)


def _pillow_takes(data: bytes) -> bool:
    try:
        TiffImageFile(io.BytesIO(data))
    except SyntaxError:
        return False
    return True


def with_its_palette(image: TiffImageFile) -> None:
    """Corrects the colours of a palette image whose writer stored 8-bit palette entries as 16-bit ones.

    If all entries are below 256, the picture would be black. libtiff has the same rule.
    """
    entries = image.tag_v2.get(320, ())
    if image.mode in ("P", "PA") and entries and max(entries) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(entries))


def read_tiff(data: bytes, layout: Layout, max_pixels: int) -> Image.Image:
    """Reads the first page, by the rules at the top of this file.

    Args:
        data: the whole file.
        layout: layout of its first page.
        max_pixels: limit against decompression bombs. Samples may take three bytes for each of them, as RGB does.

    Returns:
        The picture as stored, without its orientation; mode L, La, RGB, RGBa or CMYK.

    Raises:
        UnsupportedLayoutError: the layout is not read here either; names it.
        ImageTooLargeError: the samples have more bytes than `max_pixels` allows.
        CorruptImageError: the samples are cut off or broken.
    """
    mode = _mode(layout)
    kind = np.dtype(layout.byte_order + _TYPES[layout.formats[0], layout.bits[0]])
    decoded = layout.width * layout.height * layout.samples * kind.itemsize
    if decoded > 3 * max_pixels:
        raise ImageTooLargeError(
            f"{layout.width} x {layout.height} pixels of {layout.samples} x {layout.bits[0]} bits take {decoded} bytes "
            f"and exceed the limit of {3 * max_pixels}; shrink the image"
        )
    bands = layout.colours + (1 if mode.endswith("a") else 0)
    if layout.planar:
        planes_PHW = [_samples(data, layout, plane, 1, kind)[..., 0] for plane in range(bands)]
        values_HWS = np.stack(planes_PHW, axis=-1)
    else:
        values_HWS = _samples(data, layout, 0, layout.samples, kind)[..., :bands]
    levels_HWS = _levels(values_HWS)
    if layout.photometric == 0:
        levels_HWS[..., 0] = 255 - levels_HWS[..., 0]
    height, width = levels_HWS.shape[:2]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(levels_HWS).tobytes())


def _mode(layout: Layout) -> str:
    """Pillow's mode for the result; refuses layouts that are not read here."""
    if not layout.colours:
        raise _unsupported(layout, f"PhotometricInterpretation {layout.photometric} is not read in this form")
    if layout.compression not in _LOSSLESS:
        raise _unsupported(layout, f"compression {layout.compression} is not read in this form")
    if len(set(layout.bits)) > 1 or len(set(layout.formats)) > 1:
        raise _unsupported(layout, "its samples differ in type")
    if (layout.formats[0], layout.bits[0]) not in _TYPES:
        raise _unsupported(layout, "samples of this type are not read")
    if layout.predictor not in _PREDICTORS or (layout.predictor == _FLOAT_DIFFERENCES and layout.formats[0] != 3):
        raise _unsupported(layout, f"predictor {layout.predictor} does not fit its samples")
    surplus = layout.samples - layout.colours
    if surplus < 0:
        raise _unsupported(layout, f"its colours need {layout.colours} samples")
    if layout.colours == 1 and surplus > 1:
        raise _unsupported(layout, "nothing says which of its grey samples to show; keep one or three")
    premultiplied = surplus > 0 and layout.extra[:1] == (1,)
    mode = _MODES.get((layout.colours, premultiplied))
    if mode is None or (premultiplied and layout.photometric == 0):
        raise _unsupported(layout, "its alpha is not read in this form")
    return mode


def _unsupported(layout: Layout, why: str) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(f"this layout is not supported: {layout}: {why}; convert the image to 8-bit RGB")


def _samples(data: bytes, layout: Layout, plane: int, samples: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """Values_HWS of one plane, or of all samples if they lie pixel by pixel."""
    across, down = math.ceil(layout.width / layout.block_width), math.ceil(layout.height / layout.block_height)
    first = plane * across * down
    if len(layout.offsets) < first + across * down:
        raise CorruptImageError(
            f"the TIFF names {len(layout.offsets)} strips or tiles and needs {first + across * down}; it is truncated "
            "or broken: write it again"
        )
    row = layout.block_width * samples * kind.itemsize
    part = slice(first, first + across * down)
    bytes_HB = _decompressed(data, layout, part, row, across)
    blocks = [
        _unpredicted(bytes_HB[:, start : start + row], layout, samples, kind)
        for start in range(0, across * row, row)
    ]  # fmt: skip
    values_HWS = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
    return values_HWS[:, : layout.width]


def _unpredicted(bytes_HB: NDArray[np.uint8], layout: Layout, samples: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """The values of a column of blocks; differences between neighbours, which compress better, are summed up."""
    height, size = len(bytes_HB), kind.itemsize
    if layout.predictor == _FLOAT_DIFFERENCES:
        # A row has all upper bytes first, then all next ones; the differences run through the whole row.
        steps = bytes_HB.reshape(height, -1, samples)
        summed = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(height, size, -1)
        merged = np.ascontiguousarray(summed.transpose(0, 2, 1))
        return merged.view(kind.newbyteorder(">")).reshape(height, -1, samples)
    values: NDArray[Any] = np.ascontiguousarray(bytes_HB).view(kind).reshape(height, -1, samples)
    if layout.predictor == _DIFFERENCES:
        whole = np.dtype(f"u{size}")
        steps = values.astype(kind.newbyteorder("=")).view(whole)
        return np.cumsum(steps, axis=1, dtype=whole).view(kind.newbyteorder("="))
    return values


def _decompressed(data: bytes, layout: Layout, part: slice, row: int, across: int) -> NDArray[np.uint8]:
    """The decompressed bytes_HB of some strips or tiles, by a TIFF of 8-bit grey that points to them."""
    width, height = (across * row, layout.height)
    fields: list[tuple[int, tuple[int, ...]]] = [
        (256, (width,)), (257, (height,)), (258, (8,)), (259, (layout.compression,)), (262, (1,)),
        (266, (layout.fill_order,)), (277, (1,)),
    ]  # fmt: skip
    fields += [(322, (row,)), (323, (layout.block_height,))] if layout.tiled else [(278, (layout.block_height,))]
    head, directory = 8, 2 + 12 * (len(fields) + 2) + 4
    count = part.stop - part.start
    start = head + directory + (2 * 4 * count if count > 1 else 0)
    if start + len(data) >= 1 << 32:
        raise _unsupported(layout, "files of over 4 GiB are not read in this form")
    offsets = tuple(offset + start for offset in layout.offsets[part])
    fields += [(324 if layout.tiled else 273, offsets), (325 if layout.tiled else 279, layout.lengths[part])]
    view = io.BytesIO(struct.pack("<2sHI", b"II", 42, head) + b"".join(_written(fields, head + directory)) + data)
    with TiffImageFile(view) as image:
        image.decodermaxblock = len(data)
        return np.array(image)


def _written(fields: list[tuple[int, tuple[int, ...]]], behind: int) -> Iterator[bytes]:
    """The bytes of a directory of 32-bit numbers, and of its arrays from the offset `behind`."""
    arrays = b""
    yield struct.pack("<H", len(fields))
    for tag, values in sorted(fields):
        body = struct.pack(f"<{len(values)}I", *values)
        if len(body) > 4:
            arrays, body = arrays + body, struct.pack("<I", behind + len(arrays))
        yield struct.pack("<HHI", tag, 4, len(values)) + body.ljust(4, b"\0")
    yield struct.pack("<I", 0) + arrays


def _levels(values_HWS: NDArray[Any]) -> NDArray[np.uint8]:
    """Values of any type -> uint8, by the rules at the top of this file."""
    bits = 8 * values_HWS.dtype.itemsize
    levels_HWS: NDArray[np.uint8]
    if values_HWS.dtype.kind == "u":
        levels_HWS = (values_HWS >> (bits - 8)).astype(np.uint8)
    elif values_HWS.dtype.kind == "i":
        levels_HWS = ((values_HWS >> (bits - 8)).astype(np.int16) + 128).astype(np.uint8)
    else:
        levels_HWS = _float_levels(values_HWS)
    return levels_HWS


def _float_levels(values_HWS: NDArray[Any]) -> NDArray[np.uint8]:
    wide_HWS = values_HWS.astype(np.float64)
    finite = np.isfinite(wide_HWS)
    low = float(wide_HWS.min(where=finite, initial=np.inf))
    high = float(wide_HWS.max(where=finite, initial=-np.inf))
    if low > high:
        return np.zeros(wide_HWS.shape, np.uint8)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    # Halved, because the difference of two float64 may overflow.
    spread = high / 2 - low / 2 or 1.0
    unit_HWS = (np.nan_to_num(wide_HWS, nan=low, posinf=high, neginf=low) / 2 - low / 2) / spread
    levels_HWS: NDArray[np.uint8] = np.floor(255 * unit_HWS + 0.5).astype(np.uint8)
    return levels_HWS
