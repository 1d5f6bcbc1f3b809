"""What of a PNG file is the picture."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from vbp.errors import CorruptImageError, UnsupportedLayoutError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PALETTE = 3


def check_png(data: bytes) -> None:
    """Refuses what Pillow would read as another picture.

    Raises:
        UnsupportedLayoutError: a chunk that is needed to understand the picture, and that nobody here understands.
        CorruptImageError: colours by palette, and no palette.
    """
    names = {name for name, _ in _chunks(data)}
    unknown = sorted(name for name in names if name[:1].isupper() and name not in _PICTURE)
    if unknown:
        raise UnsupportedLayoutError(
            f"this layout is not supported: PNG with the chunk {unknown[0].decode('latin-1')!r}; write it as plain PNG"
        )
    if data[25:26] == bytes([_PALETTE]) and b"PLTE" not in names and b"IDAT" in names:
        raise CorruptImageError("the PNG's colours are numbers into a palette that it lacks; write it again")


def bare_png(data: bytes) -> bytes:
    """The picture alone, with its EXIF where that is sound: no texts, no profiles, no animation.

    A large text, or a profile with a wrong check sum, is no reason to refuse a picture.
    """
    kept = (chunk for name, chunk in _chunks(data) if name in _PICTURE or (name == b"eXIf" and _is_sound(chunk)))
    return SIGNATURE + b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and whole chunk, up to the end of the picture; the last is short where the file is."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, data[at : at + 12 + length]
        if name == b"IEND":
            return
        at += 12 + length


def _is_sound(chunk: bytes) -> bool:
    return chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
