"""Fit an upright image of any size into the network's frame.

Shapes: H, W = height and width in pixels, C = 3 colour channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vbp.choices import Fit, Interpolation
from vbp.images.frame import Frame
from vbp.networks.preprocessing import IMAGENET, Preprocessing

_STRIP = 8
"""Aspect ratio from which a crop is cut before resizing; else 1 x 5000 pixels would grow to 224 x 1,120,000."""


def resized(width: int, height: int, size: int, fit: Fit) -> tuple[int, int]:
    """Width and height of the whole image once it is resized for `size`, before cropping or padding.

    `crop` rounds the long side down, as torchvision's ``Resize`` does; `pad` rounds the short side to nearest.
    """
    if fit in ("crop", "trained"):
        short = min(width, height)
        return (size, size * height // short) if width == short else (size * width // short, size)
    if fit == "pad":
        long = max(width, height)
        return max(1, round(size * width / long)), max(1, round(size * height / long))
    return (size, size) if fit == "stretch" else (width, height)


def reach(size: int, fit: Fit, preprocessing: Preprocessing) -> int:
    """The side to which `resized` brings an image: `size`, or as the weights were trained."""
    return preprocessing.trained[0] if fit == "trained" and preprocessing.trained else size


@dataclass(frozen=True)
class Placement:
    """Where the network's frame lies in the resized image."""

    across: int
    """Width of the whole image once it is resized, in pixels."""
    down: int
    """Height of the whole image once it is resized, in pixels."""
    left: int
    """Column of the resized image where the frame begins; negative where it is padded."""
    top: int
    """Row of the resized image where the frame begins; negative where it is padded."""
    size: int
    """Side of the frame, in pixels."""
    frame: Frame
    """The frame in the upright original."""

    @property
    def is_of_a_strip(self) -> bool:
        """Whether the resized image would be far larger than the frame."""
        return max(self.across, self.down) > _STRIP * self.size


def placed(width: int, height: int, size: int, fit: Fit, preprocessing: Preprocessing = IMAGENET) -> Placement:
    """Where the frame lies for an upright image of this width and height; `fit` is not ``original``."""
    across, down = resized(width, height, reach(size, fit, preprocessing), fit)
    # torchvision's CenterCrop rounds half to even.
    left, top = round((across - size) / 2), round((down - size) / 2)
    frame = Frame(
        left * width / across, top * height / down, (left + size) * width / across, (top + size) * height / down
    )
    return Placement(across, down, left, top, size, frame)


def fit_frame(
    image: Image.Image, size: int, fit: Fit, width: int, height: int, preprocessing: Preprocessing = IMAGENET
) -> tuple[NDArray[np.uint8], Frame]:
    """Resizes an upright RGB image for the network.

    Args:
        image: mode RGB; of the original's size, or smaller if it was decoded at reduced resolution.
        size: side of the frame in pixels; without effect for `original`.
        fit: ``crop`` short side to `size`, centre cut out; ``pad`` long side to `size`, bars in the mean colour
            of `preprocessing`; ``stretch`` both sides to `size`; ``original`` as it is; ``trained`` short side to what
            `preprocessing` says, centre of `size` cut out.
        width: of the upright original, which `frame` refers to.
        height: of the upright original.
        preprocessing: the network's preprocessing; here only its resizing.

    Returns:
        pixels_HWC uint8 and the frame they show. Resized with antialiasing; bilinear, within one grey level of
        torchvision's ``Resize`` and ``CenterCrop`` on a Pillow image.
    """
    if fit == "original":
        return np.array(image), Frame(0, 0, width, height)
    place = placed(width, height, size, fit, preprocessing)
    how = preprocessing.interpolation
    if place.is_of_a_strip:
        return _resize_part(image, size, place.frame, width, height, how), place.frame
    resized_HWC, left, top = _resize(image, place.across, place.down, how), place.left, place.top
    if fit == "pad":
        pixels_HWC = np.full((size, size, 3), preprocessing.mean_colour, np.uint8)
        pixels_HWC[-top : place.down - top, -left : place.across - left] = resized_HWC
        return pixels_HWC, place.frame
    return np.ascontiguousarray(resized_HWC[top : top + size, left : left + size]), place.frame


def _resize(image: Image.Image, across: int, down: int, how: Interpolation) -> NDArray[np.uint8]:
    if image.size == (across, down):
        return np.array(image)
    # On uint8, channels last, torch is three times faster than Pillow. It is imported here, so that encoding and
    # overlays do not need it.
    import torch

    pixels_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    resized_1CHW = torch.nn.functional.interpolate(pixels_1CHW, size=(down, across), mode=how, antialias=True)
    pixels_HWC: NDArray[np.uint8] = resized_1CHW.squeeze(0).permute(1, 2, 0).numpy()
    return pixels_HWC


def _resize_part(
    image: Image.Image, size: int, frame: Frame, width: int, height: int, how: Interpolation
) -> NDArray[np.uint8]:
    x, y = image.width / width, image.height / height
    box = (frame.left * x, frame.top * y, min(frame.right * x, image.width), min(frame.bottom * y, image.height))
    return np.array(image.resize((size, size), Image.Resampling[how.upper()], box=box))
