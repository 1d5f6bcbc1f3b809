"""Section ``decoders``: JPEG decoded on the device by the libraries that are there, and how far pixels differ.

TorchCodec and nvImageCodec are no dependencies; one that is absent is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vbp.evidence.gpucheck.scope import Found, Scope
from vbp.evidence.inputs import DIFFERENT, photographs, saved
from vbp.evidence.timing import Figure
from vbp.images.decode import decode_upright

Decode = Callable[[Sequence[bytes]], Sequence[Any]]
"""Files -> pixels on the device, uint8, (3, H, W) or (H, W, 3)."""


def decoders(scope: Scope) -> Iterator[Found]:
    """Pillow on one core, then each library: rate of a batch, and difference from Pillow's pixels."""
    files = [saved(photo, "JPEG") for photo in photographs(2 if scope.is_dry else DIFFERENT)]
    expected = [decode_upright(file) for file in files]
    pillow = scope.rates(lambda: [decode_upright(file) for file in files], len(files))
    yield Figure("decoders", "Pillow, one core", pillow, "images/s")
    for name, make in _LIBRARIES.items():
        yield from scope.attempted(name, _library(scope, name, make, files, expected))


def _library(
    scope: Scope,
    name: str,
    make: Callable[[str], Decode],
    files: Sequence[bytes],
    expected: Sequence[NDArray[np.uint8]],
) -> Iterator[Figure | str]:
    try:
        decoded = make(scope.device)
    except ImportError as error:
        yield f"left out: {error}"
        return
    found = [_array(image) for image in decoded(files)]
    rates = scope.rates(lambda: decoded(files), len(files))
    yield Figure("decoders", f"{name}, batches of {len(files)}", rates, "images/s", detail=apart(found, expected))


def apart(found: Sequence[NDArray[np.uint8]], expected: Sequence[NDArray[np.uint8]]) -> str:
    """How far pixels differ, in grey levels."""
    gaps = [np.abs(one.astype(int) - other) for one, other in zip(found, expected, strict=True)]
    mean = float(np.mean([gap.mean() for gap in gaps]))
    return f"pixels differ by {mean:.2f} levels on average, at most {max(int(gap.max()) for gap in gaps)}"


def _array(image: Any) -> NDArray[np.uint8]:
    """As (H, W, 3) on the CPU."""
    array: NDArray[np.uint8] = image.cpu().numpy() if hasattr(image, "numpy") else np.asarray(image.cpu())
    return np.moveaxis(array, 0, 2) if array.shape[0] == 3 else array


def _torchvision(device: str) -> Decode:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decoded(files: Sequence[bytes]) -> Sequence[Any]:
        raw = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        images: Sequence[Any] = decode_jpeg(raw, ImageReadMode.RGB, device=device)
        return images

    return decoded


def _torchcodec(device: str) -> Decode:
    from torchcodec.decoders import decode_jpeg

    def decoded(files: Sequence[bytes]) -> Sequence[Any]:
        images: Sequence[Any] = decode_jpeg(list(files), device=device)
        return images

    return decoded


def _nvimagecodec(options: str, device: str) -> Decode:
    from nvidia import nvimgcodec

    decoder = nvimgcodec.Decoder(options=options)

    def decoded(files: Sequence[bytes]) -> Sequence[Any]:
        images: Sequence[Any] = decoder.decode(list(files))
        return images

    return decoded


_LIBRARIES: Mapping[str, Callable[[str], Decode]] = {
    "torchvision": _torchvision,
    "TorchCodec": _torchcodec,
    "nvImageCodec": lambda device: _nvimagecodec("", device),
    "nvImageCodec, fancy upsampling": lambda device: _nvimagecodec(":fancy_upsampling=1", device),
}
