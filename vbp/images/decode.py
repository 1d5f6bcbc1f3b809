"""Decode image bytes to upright RGB pixels.

Formats: JPEG, PNG, BMP (also without its file header, DIB), TIFF, WebP, GIF, AVIF, JPEG 2000, PBM, PGM and PPM; of
several frames or pages the first. One decoder, Pillow, reads them all. It refuses a truncated file, which others fill
up with grey. Its JPEG pixels equal those of torchvision's decoder, which is deprecated and only 10% faster; resizing
with torch is what saves time (see fit.py).

Pixels that are not 8-bit RGB are converted:

- EXIF orientation is applied.
- Transparency is dropped and the stored colours are used. This is ``convert("RGB")``, as in torchvision's ImageFolder
  and so in most training and evaluation: the mask explains what such a network sees. So colours that are stored under
  transparent pixels become visible.
- Palettes are looked up; CMYK and YCCK are converted without a colour profile, and Adobe's inversion is undone.
- Colour profiles and gamma are ignored.
- Integers keep the range of their type: of 16 bits the upper 8 are kept, for grey as for colour (Pillow's
  own conversion of 16-bit grey clips at 255). For TIFF's further types see tiff.py.

Nothing is guessed: a layout that would be read as another picture is refused by name. Broken or large metadata does
not prevent decoding.

Limits: damage that leaves a file readable cannot be recognised: a JPEG that was cut and closed by a new end marker, or
an uncompressed file that ends in zeros.

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
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from vbp.choices import Fit, choices_of
from vbp.errors import (
    CorruptImageError,
    EmptyFileError,
    ImageError,
    ImageTooLargeError,
    NotAnImageError,
    UnsupportedLayoutError,
)
from vbp.images.fit import fit_frame, placed, reach, resized
from vbp.images.frame import Frame
from vbp.images.png import bare_png, check_png
from vbp.images.tiff import check_blocks, layout_of, pillow_reads, read_tiff, with_its_palette
from vbp.networks.preprocessing import IMAGENET, Preprocessing

MAX_PIXELS = 178_956_970
"""Pillow's own limit against decompression bombs: 2 GiB / 4 / 3."""

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PPM": rb"P[1-6][\s#]",
    "HEIF": rb"....ftyp(hei[cmsx]|hev[cmsx]|m[is]f1.{4}((?!avi[fs]).{4}){0,6}hei[cmsx])",
    "AVIF": rb"....ftyp(avi[fs]|m[is]f1)",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51\0",
    "DIB": rb"(\x0c\0\0\0.{4}|[\x28\x34\x38\x40\x6c\x7c]\0\0\0.{8})\x01\0[\x01\x04\x08\x10\x18\x20]\0",
}
_SIGNATURE = re.compile(b"|".join(b"(?P<%s>%s)" % (name.encode(), of) for name, of in _SIGNATURES.items()), re.DOTALL)
_UNSUPPORTED = re.compile("unsupported|not (yet )?supported|cannot handle|unable to determine", re.IGNORECASE)
"""Pillow's messages for files of a known format in a layout that it does not read."""
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
    """An image as the network sees it, and its place in the original."""

    pixels_HWC: NDArray[np.uint8]
    """uint8 RGB."""
    width: int
    """Of the upright original, in pixels."""
    height: int
    """Of the upright original, in pixels."""
    format: str
    """JPEG, PNG, WEBP, GIF, BMP, TIFF, HEIF, AVIF, JPEG2000 or PPM (also for PBM and PGM)."""
    frame: Frame
    """The part of the original that `pixels_HWC` shows."""


def decode(
    data: bytes,
    *,
    size: int = 224,
    fit: Fit = "crop",
    max_pixels: int = MAX_PIXELS,
    fast: bool = False,
    preprocessing: Preprocessing = IMAGENET,
) -> Picture:
    """Decodes an image file and brings it into the network's frame.

    Args:
        data: the whole file.
        size: side of the frame in pixels.
        fit: ``crop`` (short side to `size`, centre cut out, as torchvision does within one grey level), ``pad``
            (long side to `size`, bars in the mean colour of `preprocessing`), ``stretch``, ``original`` (no
            resizing), or ``trained``, as `preprocessing` says.
        max_pixels: limit against decompression bombs, checked on the header before anything is decoded.
        fast: decode large JPEGs at half, a quarter or an eighth of their resolution, never below what `fit` needs.
            The pixels differ from those without it, and masks correlate only about 0.92 with the exact ones.
        preprocessing: the network's preprocessing; here only its resizing. Pixels stay RGB and are not normalised.

    Returns:
        The picture; its pixels are uint8 RGB, (size, size, 3) unless `fit` is ``original``.

    Raises:
        ValueError: `size` or `fit` is none of the above.
        EmptyFileError: no bytes.
        NotAnImageError: the bytes have no format that we read.
        CorruptImageError: the file is truncated or broken.
        UnsupportedLayoutError: we read the format, but not this layout of it.
        ImageTooLargeError: the image has more than `max_pixels`.
    """
    if size < 1:
        raise ValueError(f"size (={size}) must be at least 1 pixel")
    if fit not in choices_of(Fit):
        raise ValueError(f"fit (={fit!r}) must be one of {', '.join(choices_of(Fit))}")
    kind = _kind(data)
    frame_size = (reach(size, fit, preprocessing), fit) if fast else None
    with _image_errors(), _pillow_warnings_ignored():
        try:
            stored = _read(data, kind, max_pixels, frame_size)
        except (ImageTooLargeError, UnsupportedLayoutError):
            raise
        except Exception:
            if kind != "PNG":
                raise
            stored = _read(bare_png(data), kind, max_pixels, frame_size)
        upright = _upright_rgb(stored)
    turned = stored.orientation >= 5
    width, height = (stored.height, stored.width) if turned else (stored.width, stored.height)
    pixels_HWC, frame = fit_frame(upright, size, fit, width, height, preprocessing)
    return Picture(pixels_HWC, width, height, "BMP" if kind == "DIB" else kind, frame)


LARGEST_ON_DEVICE = 1 << 26
"""Pixels of the largest image that is left to a device: 200 MB there, and 800 MB while it is resized."""
BLANK = np.zeros((1, 1, 3), np.uint8)
"""The pixels of a picture that is left to a device."""


def left_to_device(
    data: bytes, *, size: int = 224, fit: Fit = "crop", preprocessing: Preprocessing = IMAGENET
) -> Picture | None:
    """What `decode` would say of a file, without its pixels, if other decoders read the file as Pillow does.

    These are upright JPEGs of 8 bits in YCbCr. Only the header is read.

    Args:
        data: the whole file.
        size: as for `decode`.
        fit: as for `decode`, but not ``original``.
        preprocessing: as for `decode`.

    Returns:
        The picture with the pixels `BLANK`; None if `decode` must read the file, or refuse it.
    """
    try:
        if _kind(data) != "JPEG":
            return None
        with _image_errors(), _pillow_warnings_ignored():
            opened = _open(data, "JPEG", LARGEST_ON_DEVICE)
            if not _is_ycbcr(opened) or _orientation(opened) != 1:
                return None
    except ImageError:
        return None
    place = placed(*opened.size, size, fit, preprocessing)
    return None if place.is_of_a_strip else Picture(BLANK, *opened.size, "JPEG", place.frame)


def _is_ycbcr(jpeg: ImageFile) -> bool:
    """Whether libjpeg takes the three colours of a JPEG for YCbCr; they may also be RGB, which is rare."""
    if jpeg.mode != "RGB" or "jfif" in jpeg.info:
        return jpeg.mode == "RGB"
    if "adobe" in jpeg.info:
        return jpeg.info.get("adobe_transform") == 1
    return [layer[0] for layer in getattr(jpeg, "layer", ())] == [1, 2, 3]


def decode_upright(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decodes the whole image at its own size.

    Returns:
        pixels_HWC uint8 RGB, EXIF orientation applied.

    Raises:
        ImageError: as for `decode`.
    """
    return decode(data, fit="original", max_pixels=max_pixels).pixels_HWC


def first_bytes(data: bytes) -> str:
    r"""Bytes for people, in quotes: text as it is, other bytes as ``\x89``."""
    return ascii(data.decode("latin-1"))


def _kind(data: bytes) -> str:
    """The format, recognised by the file's first bytes."""
    if not data:
        raise EmptyFileError("the file is empty (0 bytes); write it again or remove it")
    match = _SIGNATURE.match(data)
    if match is None:
        raise NotAnImageError(
            f"the file starts with {first_bytes(data[:16])}, which is none of {', '.join(_SIGNATURES)}; "
            "remove or convert it"
        )
    kind = next(name for name in _SIGNATURES if match[name] is not None)
    if kind == "HEIF":
        _open_heif()
    return kind


@cache
def _open_heif() -> None:
    """Register HEIF with Pillow, if the package for it is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise UnsupportedLayoutError(
            "HEIF is read by a package that is not installed: pip install 'visualbackprop[heif]', on every node"
        ) from error
    register_heif_opener()


@dataclass(frozen=True, eq=False)
class _Stored:
    """An image with its pixels decoded, as they are stored."""

    image: Image.Image
    width: int
    """Width in the file; `image` is smaller if it was decoded at reduced resolution."""
    height: int
    orientation: int
    """EXIF's 1..8, of which 5 to 8 swap width and height."""


def _read(data: bytes, kind: str, max_pixels: int, fast: tuple[int, Fit] | None) -> _Stored:
    """Read header and pixels, with checks; with `fast`, JPEGs at a reduced resolution for that size and fit."""
    if kind == "PNG":
        check_png(data)
    layout = layout_of(data) if kind == "TIFF" else None
    if layout:
        check_blocks(layout, max_pixels)
    if layout and not pillow_reads(data, layout):
        image: Image.Image = read_tiff(data, layout, max_pixels)
        return _Stored(image, *image.size, layout.orientation if layout.orientation in _UPRIGHT else 1)
    opened = _open(data, kind, max_pixels)
    width, height = opened.size
    if fast:
        opened.draft(opened.mode, resized(width, height, *fast))
    # Pillow feeds its JPEG decoder 64 KiB at a time and copies the rest each time; all at once is 10% faster.
    opened.decodermaxblock = len(data)
    opened.load()
    return _Stored(opened, width, height, _orientation(opened))


def _open(data: bytes, kind: str, max_pixels: int) -> ImageFile:
    """Reads the header."""
    stream = io.BytesIO(data)
    try:
        image = Image.open(stream, formats=(kind,))
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{error} (PIL.Image.MAX_IMAGE_PIXELS); shrink the image") from error
    except UnidentifiedImageError as error:
        raise _unreadable(data, kind) from error
    if image.width * image.height > max_pixels:
        raise ImageTooLargeError(
            f"{image.width} x {image.height} pixels exceed the limit of {max_pixels}; shrink the image"
        )
    # Pillow has read up to the scan. It refuses a file that stops early, but not one that ends in zeros, as
    # interrupted copies do. A truncated JPEG 2000 it reads as far as possible.
    if kind in ("JPEG", "JPEG2000") and data.rfind(b"\xff\xd9") < stream.tell():
        raise CorruptImageError(f"the {kind} has no end marker; it is truncated: write it again")
    if isinstance(image, TiffImageFile):
        with_its_palette(image)
    return image


def _unreadable(data: bytes, kind: str) -> ImageError:
    """The error that says why Pillow refuses the header; `Image.open` does not report it."""
    try:
        Image.OPEN[kind][0](io.BytesIO(data), "")
        reason = "no reason is given"
    except Exception as error:
        reason = str(error)
    if _UNSUPPORTED.search(reason):
        return UnsupportedLayoutError(f"this layout is not supported: {kind}: {reason}; convert the image")
    return CorruptImageError(
        f"the header cannot be read, though the file starts as an image ({first_bytes(data[:8])}, {len(data)} bytes): "
        f"{reason}; it may be truncated: write it again"
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 of a loaded image; 1 if it is missing or unreadable."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata is no reason to refuse the pixels
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _upright_rgb(stored: _Stored) -> Image.Image:
    image = stored.image
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray(_upper_byte(image))
    if image.mode == "La":  # Pillow converts this mode only to LA
        image = image.convert("LA")
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb.transpose(_UPRIGHT[stored.orientation]) if stored.orientation in _UPRIGHT else rgb


def _upper_byte(image: Image.Image) -> NDArray[np.uint8]:
    """Convert grey values of 16 bits (also of a PGM, mode I), or of 12 bits (TIFF), to uint8."""
    bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))[0]
    levels_HW: NDArray[np.uint8] = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return levels_HW


@contextmanager
def _image_errors() -> Iterator[None]:
    """Turn Pillow's errors on broken files (struct.error, SyntaxError, OverflowError ...) into CorruptImageError."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageTooLargeError("decoding needs more memory than there is; shrink the image") from error
    except Exception as error:
        if _UNSUPPORTED.search(str(error)):
            raise UnsupportedLayoutError(f"this layout is not supported: {error}; convert the image") from error
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

    ``warnings.catch_warnings`` alone replaces a list that all threads share: if two calls overlap, the first one's
    filters would stay in force at the end.
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
