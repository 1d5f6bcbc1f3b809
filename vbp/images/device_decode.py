"""JPEGs decoded and brought into the network's frame on a device, in batches; what it cannot read is left to Pillow.

Resizing is in float32, since CUDA resizes no uint8; that gives the pixels of `vbp.images.fit` within one grey level, or
two where bicubic overshoots. A decoder on a GPU may also interpolate colours in another way.

Shapes: C = 3 colours (RGB), H rows, W columns.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vbp.choices import Fit, Interpolation
from vbp.images.decode import LARGEST_ON_DEVICE
from vbp.images.fit import Placement, placed
from vbp.networks.preprocessing import IMAGENET, Preprocessing

Decoder = Callable[[Sequence[bytes]], Sequence[Tensor]]
"""JPEG files -> their pixels on the device, uint8 (C, H, W); a RuntimeError if one of them cannot be read."""


def torchcodec(device: str) -> Decoder:
    """TorchCodec's decoder of JPEGs: nvJPEG on CUDA, libjpeg-turbo on the CPU."""
    from torchcodec.decoders import decode_jpeg

    def decoded(files: Sequence[bytes]) -> Sequence[Tensor]:
        pixels: Sequence[Tensor] = decode_jpeg(list(files), device=device)
        return pixels

    return decoded


def why_not(device: str) -> str | None:
    """Why TorchCodec decodes no JPEG on this machine's device; None if it does. It is tried on a small one."""
    if find_spec("torchcodec") is None:
        return "it is not installed"
    small = io.BytesIO()
    Image.new("RGB", (16, 16)).save(small, "JPEG")
    try:
        torchcodec(device)([small.getvalue()])
    except Exception as error:  # a wheel for another torch, without CUDA, or without its libraries
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


class DeviceDecode:
    """Decodes files that `vbp.images.decode.left_to_device` leaves to a device. Calls of several threads take turns.

    Args:
        decoder: decodes on the device.
        size: side of the network's frame.
        fit: as for `vbp.images.decode.decode`, but not ``original``.
        preprocessing: the network's preprocessing; here only its resizing.
    """

    def __init__(
        self, decoder: Decoder, size: int = 224, fit: Fit = "crop", preprocessing: Preprocessing = IMAGENET
    ) -> None:
        self._decoder, self._size, self._fit, self._preprocessing = decoder, size, fit, preprocessing
        self._turn = Lock()

    def __call__(self, files: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8] | None]:
        """The pixels of each file in the network's frame, uint8 (size, size, C); None if the decoder cannot read it.

        Args:
            files: whole files.
            sizes: width and height of each, as its header says.
        """
        found: list[NDArray[np.uint8] | None] = []
        with self._turn, torch.inference_mode():
            for group in _groups(sizes):
                found += self._together(files[group], sizes[group])
        return found

    def _together(self, files: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8] | None]:
        try:
            pixels = self._decoder(files)
            if any((each.shape[2], each.shape[1]) != size for each, size in zip(pixels, sizes, strict=True)):
                raise RuntimeError("the decoder sees another size than the header says")
            framed_NHWC = torch.stack([self._framed(*pair) for pair in zip(pixels, sizes, strict=True)])
            return [*framed_NHWC.cpu().numpy()]
        except RuntimeError:
            if len(files) == 1:
                return [None]
        return [self._together([file], [size])[0] for file, size in zip(files, sizes, strict=True)]

    def _framed(self, pixels_CHW: Tensor, size: tuple[int, int]) -> Tensor:
        """One image in the frame, uint8 (H, W, C)."""
        place = placed(*size, self._size, self._fit, self._preprocessing)
        resized_HWC = _resized(pixels_CHW, place, self._preprocessing.interpolation).permute(1, 2, 0)
        left, top = place.left, place.top
        if self._fit != "pad":
            return resized_HWC[top : top + place.size, left : left + place.size]
        colour_C = torch.tensor(self._preprocessing.mean_colour, dtype=torch.uint8, device=pixels_CHW.device)
        padded_HWC = colour_C.repeat(place.size, place.size, 1)
        padded_HWC[-top : place.down - top, -left : place.across - left] = resized_HWC
        return padded_HWC


def _groups(sizes: Sequence[tuple[int, int]]) -> Iterator[slice]:
    """Neighbours that are decoded together: as many as have the pixels of the largest single image."""
    first, pixels = 0, 0
    for number, (width, height) in enumerate(sizes):
        if number > first and pixels + width * height > LARGEST_ON_DEVICE:
            yield slice(first, number)
            first, pixels = number, 0
        pixels += width * height
    if sizes:
        yield slice(first, len(sizes))


def _resized(pixels_CHW: Tensor, place: Placement, how: Interpolation) -> Tensor:
    """Rows first, then columns, with whole levels in between, as Pillow and torch do it on uint8."""
    levels_1CHW = pixels_CHW.unsqueeze(0)
    for size in ((levels_1CHW.shape[2], place.across), (place.down, place.across)):
        if levels_1CHW.shape[2:] != size:
            wide_1CHW = torch.nn.functional.interpolate(levels_1CHW.float(), size=size, mode=how, antialias=True)
            levels_1CHW = wide_1CHW.add_(0.5).floor_().clamp_(0, 255)
    return levels_1CHW.squeeze(0).to(torch.uint8)
