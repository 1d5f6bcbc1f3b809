"""Check PNG files, and reduce them to the chunks of the picture."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from vbp.errors import CorruptImageError, UnsupportedLayoutError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PALETTE = 3


def check_png(data: bytes) -> None:
    """Refuses a file that Pillow would read as another picture.

    Raises:
        UnsupportedLayoutError: the file has a critical chunk that is unknown here.
        CorruptImageError: the colours are by palette, and there is no palette.
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
    """The picture alone, and its EXIF if that is sound, without texts, profiles and animation.

    So a large text or a profile with a wrong checksum does not make Pillow refuse the picture.
    """
    kept = (chunk for name, chunk in _chunks(data) if name in _PICTURE or (name == b"eXIf" and _is_sound(chunk)))
    return SIGNATURE + b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of each chunk, up to the end of the picture; the last one is short if the file is truncated."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, data[at : at + 12 + length]
        if name == b"IEND":
            return
        at += 12 + length


def _is_sound(chunk: bytes) -> bool:
    return chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
