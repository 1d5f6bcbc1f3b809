"""Twenty kinds of broken images, each with the stage and the error of its row."""

import io
import random
import struct
import zipfile
import zlib

from PIL import Image


def _encoded(kind: str, **options) -> bytes:
    noise = random.Random(kind).randbytes(64 * 48 * 3)
    stream = io.BytesIO()
    Image.frombytes("RGB", (64, 48), noise).save(stream, kind, **options)
    return stream.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_that_claims(width: int, height: int) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(b"\0")) + _chunk(b"IEND", b"")


def _gif_that_claims(width: int, height: int) -> bytes:
    data = _encoded("GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped_in_pixels(data: bytes) -> bytes:
    at = data.index(b"IDAT") + 400
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def _archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("cat.png", b"not here")
    return stream.getvalue()


def hostile() -> dict[str, tuple[bytes | None, str, str]]:
    """File name -> its bytes (None: a link that leads nowhere), the stage that must fail, and the type of the error."""
    corrupt, none = ("decode", "CorruptImageError"), ("decode", "NotAnImageError")
    return {
        "nothing.jpg": (b"", "decode", "EmptyFileError"),
        "gone.jpg": (None, "fetch", "FileNotFoundError"),
        "text.jpg": (b"this is no image", *none),
        "page.png": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", *none),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', *none),
        "paper.jpg": (b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n", *none),
        "archive.png": (_archive(), *none),
        "zeros.png": (bytes(5000), *none),
        "noise.jpg": (random.Random(0).randbytes(5000), *none),
        "video.gif": (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + bytes(500), *none),
        "half.jpg": (_half(_encoded("JPEG")), *corrupt),
        "half.png": (_half(_encoded("PNG")), *corrupt),
        "half.gif": (_half(_encoded("GIF")), *corrupt),
        "half.bmp": (_half(_encoded("BMP")), *corrupt),
        "half.tif": (_encoded("TIFF")[:-4000], *corrupt),
        "half.webp": (_half(_encoded("WEBP")), *corrupt),
        "half.ppm": (_half(_encoded("PPM")), *corrupt),
        "flipped.png": (_flipped_in_pixels(_encoded("PNG")), *corrupt),
        "bomb.png": (_png_that_claims(20_000, 20_000), "decode", "ImageTooLargeError"),
        "bomb.gif": (_gif_that_claims(65_000, 65_000), "decode", "ImageTooLargeError"),
    }
