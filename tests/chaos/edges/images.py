"""A structure-aware fuzz of image files: each file gives pixels, or an error row's exception.

``python -m tests.chaos.edges.images SEED COUNT`` tries that many files in this process. `fuzz` does so in a process of
its own, so that a crash or a hang of a decoder is found too. A case is named by seed and number: `case` makes it again.
"""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tests.tiffwriter import tiff

SECONDS = 10.0
"""CPU time that one file may take."""
MEMORY_MIB = 200
"""What the process may grow by while it decodes images of at most `MAX_PIXELS`, the decoders' libraries included."""
MAX_PIXELS = 1_000_000
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 9, 12, 15, 16, 24, 32, 64, 127, 128, 255, 256, 257, 999, 4096, 32767, 32768, 50000,
           65535, 65536, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)  # fmt: skip
Mutation = Callable[[random.Random, bytes], bytes]


def number(rng: random.Random, letter: str) -> bytes:
    """An integer at the edge of something, packed by struct's format."""
    bits = 8 * struct.calcsize(letter)
    return struct.pack(letter, rng.choice([*NUMBERS, rng.getrandbits(bits)]) & ((1 << bits) - 1))


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def any_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, removed, doubled or cut off, mostly near the start."""
    at = rng.randrange(min(len(data), rng.choice([40, 400, len(data)])))
    length = rng.choice([1, 2, 4, 8, 50])
    return rng.choice(
        [
            lambda: put(data, at, rng.randbytes(min(length, len(data) - at))),
            lambda: data[:at] + data[at + length :],
            lambda: data[: at + length] + data[at:],
            lambda: data[:at],
            lambda: put(data, at, number(rng, rng.choice(["<H", ">H", "<I", ">I", "B"])))[: len(data)],
        ]
    )()


def shuffled(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    """One part dropped, doubled, moved or swapped for noise."""
    i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
    noise = rng.randbytes(rng.choice([0, 4, 30]))
    return rng.choice(
        [
            parts[:i] + parts[i + 1 :],
            parts[:i] + [parts[i]] * rng.choice([2, 3, 200]) + parts[i + 1 :],
            parts[:i] + [parts[j]] + parts[i:],
            parts[:i] + [noise] + parts[i:],
        ]
    )


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunks.append((name, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


PNG_NAMES = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"tEXt", b"zTXt", b"iTXt",
             b"eXIf", b"pHYs", b"acTL", b"fcTL", b"fdAT", b"CgBI", b"abCd")  # fmt: skip


def png(rng: random.Random, data: bytes) -> bytes:
    """A field of a chunk, a chunk's name, the order of chunks; check sums are made right again."""
    chunks = png_chunks(data)
    if not chunks:
        return any_bytes(rng, data)
    i = rng.choice([0, rng.randrange(len(chunks))])
    name, body = chunks[i]
    if rng.random() < 0.5 and body:
        body = put(body, rng.randrange(len(body)), number(rng, rng.choice(["B", ">H", ">I"])))[: len(body)]
    elif rng.random() < 0.3:
        body = zlib.compress(bytes(rng.choice([10, 100_000, 20_000_000])))
        body = rng.choice([b"", b"name\0\0", b"XML:com.adobe.xmp\0\1\0\0\0"]) + body
    elif rng.random() < 0.5:
        name = rng.choice(PNG_NAMES)
    chunks[i] = (name, body)
    parts = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    return data[:8] + b"".join(shuffled(rng, parts) if rng.random() < 0.4 else parts)


def tiff_fields(rng: random.Random, data: bytes) -> bytes:
    """Tag, type, count or value of some entries of the first directory."""
    if len(data) < 16:
        return any_bytes(rng, data)
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    word, start, step, head = ("Q", 16, 20, 8) if big else ("I", 8, 12, 2)
    if not big:
        (start,) = struct.unpack_from(order + "I", data, 4)
    if start + head > len(data):
        return any_bytes(rng, data)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = start + head + step * rng.randrange(max(1, min(count, 60)))
        half = step // 2 + 2
        offset, letter = rng.choice([(0, "H"), (2, "H"), (4, word), (half, "H"), (half, word), (half, word)])
        if at + step <= len(data):
            if offset == 0:
                tag = rng.choice([256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324,
                                  325, 330, 332, 338, 339, 347, 513, 514, 530, 532, 34665, 34675])  # fmt: skip
                data = put(data, at, struct.pack(order + "H", tag))
            elif half == offset and letter == "H":  # a short: photometric, bits, compression ...
                few = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64, 999, 32773, 32803, 32946, 34925, 50000, 50001]
                data = put(data, at + offset, struct.pack(order + "H", rng.choice(few)))
            else:
                data = put(data, at + offset, number(rng, order + letter))
    return data


def jpeg_segments(data: bytes) -> list[bytes]:
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        if marker == 0xDA:
            break
        parts.append(data[at : at + 2 + length])
        at += 2 + length
    return [*parts, data[at:]]


def jpeg(rng: random.Random, data: bytes) -> bytes:
    """A field of a segment, a marker, the order of segments."""
    parts = jpeg_segments(data)
    i = rng.randrange(1, len(parts)) if len(parts) > 1 else 0
    part = parts[i]
    if rng.random() < 0.2 and len(part) > 1:
        part = put(part, 1, bytes([rng.randrange(0xC0, 0xFF)]))
    elif part:
        part = put(part, rng.randrange(min(len(part), 24)), number(rng, rng.choice(["B", "B", ">H"])))[: len(part)]
    parts[i] = part
    return b"".join(shuffled(rng, parts) if rng.random() < 0.3 else parts)


def fields_of(offsets: list[tuple[int, str]]) -> Mutation:
    def mutated(rng: random.Random, data: bytes) -> bytes:
        at, letter = rng.choice(offsets)
        return put(data, at, number(rng, letter))[: len(data)]

    return mutated


def boxes(rng: random.Random, data: bytes) -> bytes:
    """Length, name or the body's first bytes of a box (AVIF, JPEG 2000), or of a chunk (WebP), at any depth."""
    marks = [b"ftyp", b"meta", b"iloc", b"ispe", b"av1C", b"ipma", b"mdat", b"pixi", b"irot", b"jP  ", b"jp2h", b"ihdr",
             b"colr", b"jp2c", b"\xff\x51", b"\xff\x52", b"\xff\x5c", b"\xff\x90", b"VP8 ", b"VP8L", b"VP8X", b"ANIM",
             b"ANMF", b"ALPH", b"EXIF", b"ICCP"]  # fmt: skip
    found = [data.index(mark) for mark in marks if mark in data]
    if not found:
        return any_bytes(rng, data)
    at = max(0, rng.choice(found) + rng.choice([-4, 0, *range(4, 40)]))
    return put(data, at, number(rng, rng.choice(["B", ">H", ">I", "<I", "<H"])))[: len(data)]


GIF = fields_of([(6, "<H"), (8, "<H"), (10, "B"), (11, "B"), (12, "B")])
BMP = fields_of([(10, "<I"), (14, "<I"), (18, "<I"), (22, "<I"), (26, "<H"), (28, "<H"), (30, "<I"), (34, "<I"),
                 (46, "<I"), (54, "<I")])  # fmt: skip


def gif(rng: random.Random, data: bytes) -> bytes:
    """Screen, a frame's place and size, the length of codes."""
    frame = data.find(b",")
    if frame < 0 or rng.random() < 0.4:
        return GIF(rng, data)
    at, letter = rng.choice([(1, "<H"), (3, "<H"), (5, "<H"), (7, "<H"), (9, "B"), (10, "B"), (11, "B")])
    return put(data, frame + at, number(rng, letter))[: len(data)]


def seeds() -> dict[str, tuple[bytes, Mutation]]:
    """Name -> a sound small file, and who knows its structure."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6

    def pillow(kind: str, bands: int = 3, mode: str | None = None, frames: int = 1, **options: object) -> bytes:
        image = Image.fromarray(noise[..., :bands] if bands > 1 else noise[..., 0])
        options |= {"save_all": True, "append_images": [Image.fromarray(noise[::-1, :, :3])]} if frames > 1 else {}
        stream = io.BytesIO()
        (image.convert(mode) if mode else image).save(stream, kind, **options)
        return stream.getvalue()

    files: dict[str, tuple[bytes, Mutation]] = {
        "png": (pillow("PNG"), png),
        "png-palette": (pillow("PNG", mode="P", transparency=3), png),
        "png-alpha": (pillow("PNG", 4, exif=exif), png),
        "png-bit": (pillow("PNG", mode="1"), png),
        "apng": (pillow("PNG", frames=2), png),
        "jpeg": (pillow("JPEG", exif=exif), jpeg),
        "jpeg-progressive": (pillow("JPEG", progressive=True), jpeg),
        "jpeg-grey": (pillow("JPEG", 1), jpeg),
        "jpeg-cmyk": (pillow("JPEG", mode="CMYK"), jpeg),
        "mpo": (pillow("MPO", frames=2), jpeg),
        "gif": (pillow("GIF"), gif),
        "gif-animated": (pillow("GIF", frames=2, duration=50), gif),
        "bmp": (pillow("BMP"), BMP),
        "bmp-palette": (pillow("BMP", mode="P"), BMP),
        "dib": (pillow("DIB"), fields_of([(0, "<I"), (4, "<I"), (8, "<I"), (12, "<H"), (14, "<H"), (16, "<I")])),
        "webp": (pillow("WEBP", exif=exif), boxes),
        "webp-lossless": (pillow("WEBP", 4, lossless=True), boxes),
        "webp-animated": (pillow("WEBP", frames=2), boxes),
        "avif": (pillow("AVIF", exif=exif), boxes),
        "jp2": (pillow("JPEG2000"), boxes),
        "j2k": (pillow("JPEG2000", no_jp2=True, irreversible=True, quality_layers=[10]), boxes),
        "ppm": (pillow("PPM"), any_bytes),
        "pgm16": (b"P5 24 20 65535\n" + noise.tobytes()[:960], any_bytes),
        "plain": (b"P3 4 2 9 " + b" ".join(b"%d" % (v % 10) for v in noise.ravel()[:24]), any_bytes),
        "tiff-jpeg": (pillow("TIFF", compression="jpeg"), tiff_fields),
        "tiff-fax": (pillow("TIFF", mode="1", compression="group4"), tiff_fields),
        "tiff-lzw": (pillow("TIFF", compression="tiff_lzw"), tiff_fields),
        "tiff-zstd": (pillow("TIFF", compression="zstd"), tiff_fields),
        "tiff-palette": (pillow("TIFF", mode="P"), tiff_fields),
        "tiff-pages": (pillow("TIFF", frames=2), tiff_fields),
        "tiff": (tiff(noise[..., :3], rows=7), tiff_fields),
        "tiff-planar": (tiff(noise[..., :3].astype("u2"), planar=True, rows=7, compression="deflate"), tiff_fields),
        "tiff-tiled": (tiff(noise.astype("f4") / 255, tile=(16, 16), extra=(2,), compression="lzw"), tiff_fields),
        "tiff-float": (tiff(noise[..., :1] / 255, predictor=3, compression="deflate", byte_order=">"), tiff_fields),
        "tiff-big": (tiff(noise[..., :3].astype("i2"), big=True), tiff_fields),
        "tiff-alpha": (tiff(noise.astype("u2"), extra=(1,), compression="packbits"), tiff_fields),
    }
    return files


SEEDS = seeds()


def case(seed: int, index: int) -> tuple[str, bytes]:
    """Name and bytes of a case."""
    rng = random.Random(f"{seed} {index}")
    name = rng.choice(sorted(SEEDS))
    data, mutation = SEEDS[name]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = (mutation if rng.random() < 0.85 else any_bytes)(rng, data) or b"\0"
    return name, data


@dataclass
class Outcome:
    """What came of the cases of one seed."""

    seed: int
    cases: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    """``pixels``, or the type of the error."""
    seconds: float = 0.0
    """Of the slowest case."""
    grown_mib: int = 0
    faults: list[str] = field(default_factory=list)


def judged(data: bytes) -> str:
    """How the file ends: ``pixels`` or an ImageError's name. Wrong pixels are an AssertionError; all else escapes."""
    from vbp.errors import ImageError
    from vbp.images.decode import decode

    try:
        picture = decode(data, size=16, max_pixels=MAX_PIXELS)
    except ImageError as error:
        return type(error).__name__ if len(str(error)) > 20 else f"a bare {type(error).__name__}"
    pixels, whole = picture.pixels_HWC, picture.width * picture.height
    assert (pixels.dtype, pixels.shape) == (np.uint8, (16, 16, 3)), f"pixels {pixels.dtype} {pixels.shape}"
    assert 1 <= whole <= MAX_PIXELS, f"{picture.width} x {picture.height}"
    return "pixels"


def run(seed: int, count: int) -> Iterator[dict[str, object]]:
    """Tries the cases in this process: for each its number before, and what came of it after."""
    from vbp.images.decode import decode

    decode(SEEDS["jpeg"][0], size=16)  # imports torch
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(count):
        name, data = case(seed, index)
        yield {"case": index, "name": name}
        begun = time.process_time()
        try:
            end, fault = judged(data), ""
        except BaseException as error:
            end, fault = "fault", f"{type(error).__name__}: {error}"
        seconds = time.process_time() - begun
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024
        if end.startswith("a bare"):
            fault = end
        elif seconds > SECONDS:
            fault = f"took {seconds:.1f} s"
        elif grown > MEMORY_MIB:
            fault = f"memory has grown by {grown} MiB"
        yield {"end": end, "fault": fault, "seconds": seconds, "grown": grown}
        if grown > MEMORY_MIB:
            return


def fuzz(seed: int, count: int) -> Outcome:
    """Tries the cases in a process of its own, which a decoder may crash or hang."""
    outcome = Outcome(seed)
    command = [sys.executable, "-m", "tests.chaos.edges.images", str(seed), str(count)]
    last = {"case": -1, "name": "start"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 + count * 0.1)
        lines, ended = done.stdout, f"exit {done.returncode}: {done.stderr[-300:]}" if done.returncode else ""
    except subprocess.TimeoutExpired as expired:
        lines, ended = (expired.stdout or b"").decode(), "hangs"
    for line in filter(None, lines.splitlines()):
        report = json.loads(line)
        if "case" in report:
            last = report
            continue
        outcome.cases += 1
        outcome.ends[report["end"]] += 1
        outcome.seconds = max(outcome.seconds, report["seconds"])
        outcome.grown_mib = max(outcome.grown_mib, report["grown"])
        if report["fault"]:
            outcome.faults.append(f"case({seed}, {last['case']}) {last['name']}: {report['fault']}")
    if ended:
        outcome.faults.append(f"case({seed}, {last['case']}) {last['name']}: {ended}")
    return outcome


if __name__ == "__main__":
    for report in run(int(sys.argv[1]), int(sys.argv[2])):
        print(json.dumps(report), flush=True)  # noqa: T201
