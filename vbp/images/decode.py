"""Image bytes -> upright RGB pixels.

JPEG, PNG, BMP, TIFF, WebP, GIF, PBM, PGM and PPM; of several frames or pages the first. One decoder, Pillow, reads
them all. It refuses a truncated file where others fill up with grey, and its JPEG pixels are those of torchvision's
decoder, which is deprecated and only 10% faster; what is fast is to resize with torch (see fit.py).

What becomes of pixels that are not 8-bit RGB:

- EXIF orientation is applied.
- Transparency is dropped and the stored colours are used, which is ``convert("RGB")``, what torchvision's ImageFolder
  and so most training and evaluation does: the mask explains what such a network sees. Colours stored under
  transparent pixels show, therefore.
- Palettes are looked up; CMYK and YCCK are converted without a colour profile, Adobe's inverted ones turned back.
- Of 16 bits the upper 8 are kept, for grey as for colour (Pillow's own conversion of 16-bit grey clips at 255).
- Floating point in [0, 1] is scaled to 0..255. Floating point beyond that, and integers beyond 16 bits, are scaled
  from the image's own least to greatest finite value; NaN counts as the least.

Limits: damage that leaves a format readable cannot be told from a picture: a JPEG cut and closed by a new end marker,
an uncompressed file whose rest is zeros.

Shapes: H, W = height and width in pixels, C = 3 colour channels.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from vbp.errors import CorruptImageError, EmptyFileError, ImageError, ImageTooLargeError, NotAnImageError
from vbp.images.fit import FITS, Fit, fit_frame, resized
from vbp.images.frame import Frame

MAX_PIXELS = 178_956_970
"""Pillow's own limit against decompression bombs: 2 GiB / 4 / 3."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    rb"|II[*+]\0|MM\0[*+]|P[1-6][\s#]",
    re.DOTALL,
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as the network sees it, and where that lies in the original."""

    pixels_HWC: NDArray[np.uint8]
    """RGB."""
    width: int
    """Of the upright original, in pixels."""
    height: int
    """Of the upright original, in pixels."""
    format: str
    """JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM (also for PBM and PGM)."""
    frame: Frame
    """What part of the original `pixels_HWC` shows."""


def decode(
    data: bytes, *, size: int = 224, fit: Fit = "crop", max_pixels: int = MAX_PIXELS, fast: bool = False
) -> Picture:
    """Decodes an image file and brings it into the network's frame.

    Args:
        data: the whole file.
        size: side of the frame in pixels.
        fit: ``crop`` (short side to `size`, centre cut out, as torchvision does within one grey level), ``pad``
            (long side to `size`, bars in the mean colour of ImageNet), ``stretch``, or ``original`` (no resizing).
        max_pixels: limit against decompression bombs, checked on the header before anything is decoded.
        fast: decode large JPEGs at half, a quarter or an eighth of their resolution, never below what `fit` needs.
            The pixels differ from those without it, and masks correlate only about 0.92 with the exact ones.

    Returns:
        The picture; its pixels are uint8 RGB, (size, size, 3) unless `fit` is ``original``.

    Raises:
        ValueError: `size` or `fit` is none of the above.
        EmptyFileError: no bytes.
        NotAnImageError: no format that we read.
        CorruptImageError: such a format, but truncated or broken.
        ImageTooLargeError: more than `max_pixels`.
    """
    if size < 1:
        raise ValueError(f"size (={size}) must be at least 1 pixel")
    if fit not in FITS:
        raise ValueError(f"fit (={fit!r}) must be one of {', '.join(FITS)}")
    with _image_errors(), _pillow_warnings_ignored():
        image = _open(data, max_pixels)
        stored_width, stored_height = image.size
        if fast:
            image.draft(image.mode, resized(stored_width, stored_height, size, fit))
        _load(image, data)
        turned = _orientation(image) >= 5
        upright = _upright_rgb(image)
    width, height = (stored_height, stored_width) if turned else (stored_width, stored_height)
    pixels_HWC, frame = fit_frame(upright, size, fit, width, height)
    return Picture(pixels_HWC, width, height, _format(image), frame)


def decode_upright(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decodes the whole image at its own size.

    Returns:
        pixels_HWC uint8 RGB, EXIF orientation applied.

    Raises:
        ImageError: as `decode` does.
    """
    return decode(data, fit="original", max_pixels=max_pixels).pixels_HWC


def _open(data: bytes, max_pixels: int) -> ImageFile:
    """Reads the header."""
    if not data:
        raise EmptyFileError("the file is empty (0 bytes); write it again or remove it")
    if not _SIGNATURE.match(data):
        raise NotAnImageError(
            f"the file starts with {data[:16]!r}, which is none of {', '.join(_FORMATS)}; remove or convert it"
        )
    stream = io.BytesIO(data)
    try:
        image = Image.open(stream, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{error} (PIL.Image.MAX_IMAGE_PIXELS); shrink the image") from error
    except UnidentifiedImageError as error:
        raise CorruptImageError(
            f"the header cannot be read, though the file starts as an image ({data[:8]!r}, {len(data)} bytes); "
            "it may be truncated: write it again"
        ) from error
    if image.width * image.height > max_pixels:
        raise ImageTooLargeError(
            f"{image.width} x {image.height} pixels exceed the limit of {max_pixels}; shrink the image"
        )
    # Pillow has read up to the scan. It refuses a file that stops early, but not one whose rest is zeros, as
    # interrupted copies leave behind.
    if _format(image) == "JPEG" and data.rfind(b"\xff\xd9") < stream.tell():
        raise CorruptImageError("the JPEG has no end marker; it is truncated: write it again")
    return image


def _load(image: ImageFile, data: bytes) -> None:
    """Decodes the pixels."""
    # Pillow feeds its JPEG decoder 64 KiB at a time and copies what is left over each time; all at once is 10% faster.
    image.decodermaxblock = len(data)
    image.load()


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 of a loaded image; 1 where there is none, or none that can be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever is wrong with the metadata, the pixels are good
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        rgb = Image.fromarray(_eight_bits(image)).convert("RGB")
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    orientation = _orientation(image)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Grey values of 12, 16 or 32 bits or floating point -> uint8, by the rules at the top of this file."""
    values_HW = np.asarray(image)
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))[0]  # TIFF also has 12
        return _upper_byte(values_HW, bits)
    finite = values_HW[np.isfinite(values_HW)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if image.mode == "I" and low >= 0 and high < 1 << 16:  # 16-bit PGM among others
        return _upper_byte(values_HW, 16)
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    spread = high - low if high > low else 1.0
    unit_HW = (np.nan_to_num(values_HW.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / spread
    levels_HW: NDArray[np.uint8] = np.floor(255 * unit_HW + 0.5).astype(np.uint8)
    return levels_HW


def _upper_byte(values_HW: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    levels_HW: NDArray[np.uint8] = (values_HW >> (bits - 8)).astype(np.uint8)
    return levels_HW


def _format(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else str(image.format)  # MPO: a JPEG followed by more of them


@contextmanager
def _image_errors() -> Iterator[None]:
    """Whatever a broken file makes Pillow raise (struct.error, SyntaxError, OverflowError ...) is CorruptImageError."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageTooLargeError("decoding needs more memory than there is; shrink the image") from error
    except Exception as error:
        raise CorruptImageError(
            f"the image cannot be decoded: {error} ({type(error).__name__}); it is truncated, broken or of a "
            "rare kind: write it again or convert it"
        ) from error


_lock = threading.Lock()
_decoding = 0
_filters = warnings.catch_warnings()


@contextmanager
def _pillow_warnings_ignored() -> Iterator[None]:
    """Silences Pillow while any thread decodes, and restores the filters after the last.

    ``warnings.catch_warnings`` alone swaps a list that all threads share: two that overlap would leave the filters
    of the one in place of the other's.
    """
    global _decoding, _filters
    with _lock:
        if _decoding == 0:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _decoding += 1
    try:
        yield
    finally:
        with _lock:
            _decoding -= 1
            if _decoding == 0:
                _filters.__exit__(None, None, None)
