"""Encode masks and pictures to file bytes, and decode masks. Equal input gives equal bytes.

Shapes: H, W = height and width in pixels, C = 3 colour channels.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vbp.choices import MASK_FORMATS, MaskFormat
from vbp.errors import CorruptImageError, EmptyFileError, NotAnImageError
from vbp.images.decode import first_bytes

_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_LEVELS = {"png8": np.uint8, "png16": np.uint16}
"""Types of the levels that a format holds."""
_GAP = 2
"""Pixels between the pictures of a strip, as in the authors' Lua code."""


def encode_mask(mask_HW: NDArray[Any], mask_format: MaskFormat) -> bytes:
    """Encodes a mask.

    Args:
        mask_HW: float32 in [0, 1]; or what `vbp.images.on_device.stored` makes of it for this format.
        mask_format: ``png8`` grey, floor(255 m + 0.5); ``png16`` grey, floor(65535 m + 0.5); ``npy`` float32 as it is.

    Raises:
        ValueError: the format is unknown, the mask not two-dimensional, or a value outside [0, 1] or not finite.
    """
    if mask_format not in MASK_FORMATS:
        raise ValueError(f"mask format (={mask_format!r}) must be one of {', '.join(MASK_FORMATS)}")
    if mask_HW.ndim != 2 or 0 in mask_HW.shape:
        raise ValueError(f"mask of shape {mask_HW.shape} must be (H, W) and not empty; encode one mask at a time")
    if mask_format in _LEVELS and mask_HW.dtype == _LEVELS[mask_format]:
        return _png(mask_HW)
    if not (mask_HW.min() >= 0 and mask_HW.max() <= 1):
        raise ValueError(f"mask values {mask_HW.min()} .. {mask_HW.max()} must lie in [0, 1]; normalise it first")
    if mask_format == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(mask_HW, np.float32), allow_pickle=False)
        return buffer.getvalue()
    if mask_format == "png8":
        return _png(_grey8(mask_HW))
    return _png(np.floor(65535 * mask_HW.astype(np.float64) + 0.5).astype(np.uint16))


def decode_mask(data: bytes) -> NDArray[np.float32]:
    """Reads a mask that `encode_mask` wrote, in any of its formats. Never unpickles.

    Returns:
        mask_HW float32 in [0, 1]; from ``png8`` and ``png16`` to within half a level.

    Raises:
        EmptyFileError: no bytes.
        NotAnImageError: neither PNG nor npy.
        CorruptImageError: the file is truncated, broken, or no mask (colour, wrong type, values outside [0, 1]).
    """
    if not data:
        raise EmptyFileError("the mask file is empty (0 bytes); compute it again")
    if not data.startswith((b"\x89PNG", b"\x93NUMPY")):
        raise NotAnImageError(
            f"the mask file starts with {first_bytes(data[:8])}, neither PNG nor npy; compute it again"
        )
    try:
        mask_HW = _read_npy(data) if data.startswith(b"\x93NUMPY") else _read_png(data)
    except Exception as error:  # Pillow and NumPy raise many kinds
        raise CorruptImageError(f"the mask cannot be read: {error}; compute it again") from error
    return mask_HW


def encode_png(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Encodes RGB pixels without loss."""
    return _png(pixels_HWC)


def encode_jpeg(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Encodes RGB pixels for looking at: quality 90, colour at full resolution."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "JPEG", quality=90, subsampling="4:4:4")
    return buffer.getvalue()


def encode_strip(maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.float32]]) -> bytes:
    """Draws the averaged maps and the intermediate masks of the method as one PNG.

    The first row shows the averaged maps, the second the intermediate masks, both from the deepest to the shallowest.
    Each is scaled linearly from its smallest to its largest value (a flat one is black), and enlarged without
    smoothing to the height of the tallest.

    Args:
        maps: averaged maps, each (h, w), from the input upwards (deepest last), as the explainer keeps them.
        masks: intermediate masks, each (h, w), in the same order.

    Raises:
        ValueError: there is neither a map nor a mask.
    """
    rows = [row for row in (maps, masks) if len(row)]
    if not rows:
        raise ValueError("a strip needs at least one map or mask; ask the explainer to keep its maps")
    height = max(picture.shape[0] for row in rows for picture in row)
    drawn = [_row(row, height) for row in rows]
    strip_HW = np.full((len(rows) * (height + _GAP) - _GAP, max(row.shape[1] for row in drawn)), 255, np.uint8)
    for index, row_HW in enumerate(drawn):
        top = index * (height + _GAP)
        strip_HW[top : top + height, : row_HW.shape[1]] = row_HW
    return _png(strip_HW)


def _row(pictures: Sequence[NDArray[np.float32]], height: int) -> NDArray[np.uint8]:
    scaled = [_scale(_grey8(_stretch(picture)), height) for picture in reversed(pictures)]
    gap = np.full((height, _GAP), 255, np.uint8)
    return np.concatenate([part for picture in scaled for part in (picture, gap)][:-1], axis=1)


def _stretch(picture_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = picture_HW.min(), picture_HW.max()
    return (picture_HW - low) / (high - low) if high > low else np.zeros_like(picture_HW)


def _scale(grey_HW: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    width = max(1, round(grey_HW.shape[1] * height / grey_HW.shape[0]))
    return np.asarray(Image.fromarray(grey_HW).resize((width, height), Image.Resampling.NEAREST))


def _grey8(unit_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    levels_HW: NDArray[np.uint8] = np.floor(255 * unit_HW + 0.5).astype(np.uint8)
    return levels_HW


def _png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    # Run-length matching only: on masks this is three times as fast as level 6, and smaller (5.9 kB against 6.2).
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _read_png(data: bytes) -> NDArray[np.float32]:
    if not data.endswith(_PNG_END):
        raise ValueError("the PNG has no end")
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    greatest = {"L": 255, "I;16": 65535}.get(image.mode)
    if greatest is None:
        raise ValueError(f"a {image.mode} picture where 8-bit or 16-bit grey was expected")
    return np.asarray(image).astype(np.float32) / np.float32(greatest)


def _read_npy(data: bytes) -> NDArray[np.float32]:
    mask_HW: NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
    if mask_HW.ndim != 2 or mask_HW.dtype != np.float32:
        raise ValueError(f"shape {mask_HW.shape} and {mask_HW.dtype} where (H, W) and float32 were expected")
    if not (mask_HW.min() >= 0 and mask_HW.max() <= 1):
        raise ValueError(f"values {mask_HW.min()} .. {mask_HW.max()} outside [0, 1]")
    return mask_HW
