"""The part ``codecs``: vbp and other libraries decode and encode, on one core and on all; do their results agree?

Shapes: H rows, W columns, C = 3 colours (RGB).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vbp.evidence.inputs import photographs, saved
from vbp.evidence.timing import Case, Figure, Findings, Rate, Setup, clocked, measure, over
from vbp.explainer import Explainer
from vbp.images.decode import decode, decode_upright
from vbp.images.encode import encode_jpeg, encode_mask
from vbp.images.overlay import overlay

SIZE = 224
QUALITY = 90
TOLERANCE = 1
"""Grey levels by which decoded pixels may differ, whoever decoded them."""

Decoder = Callable[[bytes], NDArray[np.uint8]]
Encoder = Callable[[Any], bytes]


@dataclass(frozen=True)
class Library:
    """What one library does: decoders by image format, encoders by what is encoded."""

    name: str
    decoders: Mapping[str, Decoder]
    encoders: Mapping[str, Encoder]


def codecs(setup: Setup, photos: int = 64) -> Findings:
    """Measure `photos` images with every library that is installed."""
    notes: list[str] = []
    libraries = [*_libraries(notes)]
    images = [*photographs(photos)]
    files = {name: [saved(image, name) for image in images] for name in ("JPEG", "PNG", "WEBP")}
    drawn = _drawn(files["JPEG"])
    pieces = [*_pieces(libraries, files, drawn)]
    cores = len(os.sched_getaffinity(0))
    with _one_thread_each():
        cases = [piece.case(count) for count in sorted({1, cores}) for piece in pieces]
        rates = measure(cases, setup.rounds, setup.report)
        figures = [*_against_fastest(rates, pieces), *_differences(libraries, files["JPEG"]), *_sizes(libraries, drawn)]
    return Findings([*rates.values()], figures, notes)


@dataclass(frozen=True)
class _Piece:
    """One thing to do to each of many items."""

    what: str
    library: str
    work: Callable[[Any], Any]
    items: Sequence[Any]

    def name(self, cores: int) -> str:
        return f"{self.what} by {self.library}, {cores} core{'s' if cores > 1 else ''}"

    def case(self, cores: int) -> Case:
        def whole() -> None:
            with ThreadPoolExecutor(cores) as pool:
                list(pool.map(self.work, self.items))

        return Case("codecs", self.name(cores), clocked(whole, len(self.items)))


def _pieces(
    libraries: Sequence[Library], files: Mapping[str, list[bytes]], drawn: Mapping[str, list[Any]]
) -> Iterator[_Piece]:
    yield _Piece("decode JPEG 500x375 to 224", "vbp", partial(decode, size=SIZE), files["JPEG"])
    for name, data in files.items():
        for library in libraries:
            if name in library.decoders:
                yield _Piece(f"decode {name} 500x375", library.name, library.decoders[name], data)
    yield _Piece("draw overlay", "vbp", lambda pair: overlay("heat", *pair), drawn["picture and mask"])
    for name in ("mask PNG", "overlay JPEG"):
        for library in libraries:
            if name in library.encoders:
                yield _Piece(f"encode {name}", library.name, library.encoders[name], drawn[name])


def _drawn(files: Sequence[bytes]) -> dict[str, list[Any]]:
    """Pictures as the network sees them, the masks of a network that was trained on such, and what is drawn of both."""
    pictures = [decode(data, size=SIZE).pixels_HWC for data in files]
    explainer = Explainer("vgg16", "demo", device="cpu", precision="float32", classify=False)
    masks = [mask_HW for picture in pictures for mask_HW in explainer(picture[None]).mask_BHW]
    pairs = [*zip(pictures, masks, strict=True)]
    return {"picture and mask": pairs, "mask PNG": masks, "overlay JPEG": [overlay("heat", *pair) for pair in pairs]}


def _against_fastest(rates: Mapping[str, Rate], pieces: Sequence[_Piece]) -> Iterator[Figure]:
    """Vbp's rate over that of the best other library, on one core."""
    for what in ("decode JPEG 500x375", "encode mask PNG", "encode overlay JPEG"):
        named = {piece.library: rates[piece.name(1)] for piece in pieces if piece.what == what}
        ours = named.pop("vbp")
        best = max(named, key=lambda library: named[library].median)
        yield Figure("codecs", f"{what}: vbp over {best}, the fastest other", over(ours, named[best]))


def _differences(libraries: Sequence[Library], files: Sequence[bytes]) -> Iterator[Figure]:
    ours = [decode_upright(data).astype(np.int16) for data in files]
    for library in libraries[1:]:
        if "JPEG" in library.decoders:
            decoded = map(library.decoders["JPEG"], files)
            most = max(int(np.abs(one - other).max()) for one, other in zip(ours, decoded, strict=True))
            name = f"greatest difference of JPEG pixels, {library.name} from vbp"
            yield Figure("codecs", name, [most], "grey levels", TOLERANCE, at_most=True)


def _sizes(libraries: Sequence[Library], drawn: Mapping[str, list[Any]]) -> Iterator[Figure]:
    for what in ("mask PNG", "overlay JPEG"):
        for library in libraries:
            if what in library.encoders:
                sizes = [len(library.encoders[what](item)) for item in drawn[what]]
                yield Figure("codecs", f"{what} by {library.name}, mean size", [1e-3 * float(np.mean(sizes))], "kB")


def _libraries(notes: list[str]) -> Iterator[Library]:
    """The libraries, vbp first; a note for each that is not installed."""
    yield Library(
        "vbp",
        dict.fromkeys(("JPEG", "PNG", "WEBP"), decode_upright),
        {"mask PNG": lambda mask_HW: encode_mask(mask_HW, "png8"), "overlay JPEG": encode_jpeg},
    )
    for name, make in (
        ("Pillow", _pillow),
        ("torchvision", _torchvision),
        ("simplejpeg", _simplejpeg),
        ("OpenCV", _opencv),
        ("imagecodecs", _imagecodecs),
    ):
        try:
            yield make()
        except ImportError as error:
            notes.append(f"{name} is left out: {error}. pip install 'visualbackprop[bench]' brings it.")


def _pillow() -> Library:
    """As it comes."""

    def decoded(data: bytes) -> NDArray[np.uint8]:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def encoded(pixels: NDArray[np.uint8], image_format: str, **settings: Any) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, image_format, **settings)
        return buffer.getvalue()

    return Library(
        "Pillow",
        dict.fromkeys(("JPEG", "PNG", "WEBP"), decoded),
        {
            "mask PNG": lambda mask_HW: encoded(_grey(mask_HW), "PNG"),
            "overlay JPEG": partial(encoded, image_format="JPEG", quality=QUALITY, subsampling="4:4:4"),
        },
    )


def _torchvision() -> Library:
    """Its JPEGs have halved colour, which cannot be changed."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.io import encode_jpeg as torch_jpeg
    from torchvision.io import encode_png as torch_png

    def decoded(data: bytes) -> NDArray[np.uint8]:
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels_HWC: NDArray[np.uint8] = decode_image(raw, ImageReadMode.RGB).permute(1, 2, 0).numpy()
        return pixels_HWC

    def encoded(pixels_HWC: NDArray[np.uint8]) -> bytes:
        pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()
        return bytes(torch_jpeg(pixels_CHW, QUALITY).numpy())

    return Library(
        "torchvision",
        dict.fromkeys(("JPEG", "PNG", "WEBP"), decoded),
        {
            "mask PNG": lambda mask_HW: bytes(torch_png(torch.from_numpy(_grey(mask_HW))[None], 1).numpy()),
            "overlay JPEG": encoded,
        },
    )


def _simplejpeg() -> Library:
    import simplejpeg

    return Library(
        "simplejpeg",
        {"JPEG": simplejpeg.decode_jpeg},
        {"overlay JPEG": partial(simplejpeg.encode_jpeg, quality=QUALITY, colorsubsampling="444")},
    )


def _opencv() -> Library:
    import cv2

    full_colour = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    settings = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, *full_colour]

    def decoded(data: bytes) -> NDArray[np.uint8]:
        return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)

    def jpeg(pixels_HWC: NDArray[np.uint8]) -> bytes:
        return bytes(cv2.imencode(".jpg", cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2BGR), settings)[1])

    return Library(
        "OpenCV",
        dict.fromkeys(("JPEG", "PNG", "WEBP"), decoded),
        {"mask PNG": lambda mask_HW: bytes(cv2.imencode(".png", _grey(mask_HW))[1]), "overlay JPEG": jpeg},
    )


def _imagecodecs() -> Library:
    import imagecodecs

    return Library(
        "imagecodecs",
        {"JPEG": imagecodecs.jpeg8_decode, "PNG": imagecodecs.png_decode, "WEBP": imagecodecs.webp_decode},
        {
            "mask PNG": lambda mask_HW: bytes(imagecodecs.png_encode(_grey(mask_HW), level=1)),
            "overlay JPEG": lambda pixels_HWC: bytes(
                imagecodecs.jpeg8_encode(pixels_HWC, level=QUALITY, subsampling="444")
            ),
        },
    )


def _grey(mask_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    levels_HW: NDArray[np.uint8] = np.floor(255 * mask_HW + 0.5).astype(np.uint8)
    return levels_HW


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """One thread in each library, and no warnings: torchvision warns of its decoders' removal at every call."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        import cv2

        cv2.setNumThreads(1)
    except ImportError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
