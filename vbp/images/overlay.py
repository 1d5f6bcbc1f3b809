"""Draw a mask on the picture that it explains, in the styles of `vbp.choices.OverlayStyle`.

``heat`` is easiest to read, ``reference`` draws like the reference project devansh20la/VisualBackprop, ``red`` like the
authors' Lua code.

Shapes: H, W = height and width in pixels, C = 3 colour channels, L = 256 mask levels, G = 256 greys.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vbp.choices import OverlayStyle, choices_of
from vbp.networks.preprocessing import IMAGENET, Preprocessing


def overlay(
    style: OverlayStyle,
    pixels_HWC: NDArray[np.uint8],
    mask_HW: NDArray[np.float32],
    preprocessing: Preprocessing = IMAGENET,
) -> NDArray[np.uint8]:
    """Draws the mask in the given style.

    Args:
        style: how to draw.
        pixels_HWC: uint8 RGB.
        mask_HW: float in [0, 1], of the same height and width.
        preprocessing: the network's preprocessing; ``reference`` needs it.

    Returns:
        uint8 RGB of the same shape.

    Raises:
        ValueError: the style is unknown, sizes differ, or a mask value is outside [0, 1].
    """
    if style not in choices_of(OverlayStyle):
        raise ValueError(f"overlay style (={style!r}) must be one of {', '.join(choices_of(OverlayStyle))}")
    if style == "reference":
        return reference(pixels_HWC, mask_HW, preprocessing)
    return {"heat": heat, "red": red}[style](pixels_HWC, mask_HW)


def heat(pixels_HWC: NDArray[np.uint8], mask_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draws a perceptually uniform colour scale over the dimmed grey picture, so that every colour is from the mask.

    Most of a mask is dark (its mean is about 0.01), so colour and opacity follow its square root: at 0 only the
    picture is visible, from 0.44 (root 2/3) only the colour.

    Raises:
        ValueError: as `overlay` does.
    """
    _check(pixels_HWC, mask_HW)
    levels_HW = (255 * np.sqrt(mask_HW) + 0.5).astype(np.uint16)
    grey_HW = np.asarray(Image.fromarray(pixels_HWC).convert("L"))
    drawn_HWC: NDArray[np.uint8] = np.take(heat_colours(), levels_HW << 8 | grey_HW, axis=0)
    return drawn_HWC


def reference(
    pixels_HWC: NDArray[np.uint8], mask_HW: NDArray[np.float32], preprocessing: Preprocessing = IMAGENET
) -> NDArray[np.uint8]:
    """Draws as the reference project does: a dark, red picture.

    Ten times the mask is added to red in the network's normalised values, which are then scaled from the smallest to
    the largest over all channels. A picture without contrast becomes black.

    Raises:
        ValueError: as `overlay` does.
    """
    _check(pixels_HWC, mask_HW)
    mean_C, std_C = np.array([preprocessing.rgb_mean, preprocessing.rgb_std], np.float32)
    values_HWC = (pixels_HWC.astype(np.float32) / 255 - mean_C) / std_C
    values_HWC[..., 0] += 10 * mask_HW
    low, high = values_HWC.min(), values_HWC.max()
    spread = high - low if high > low else np.float32(1)
    drawn_HWC: NDArray[np.uint8] = np.floor(255 * ((values_HWC - low) / spread) + 0.5).astype(np.uint8)
    return drawn_HWC


def red(pixels_HWC: NDArray[np.uint8], mask_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draws as the authors' Lua code does: the mask is added to red, subtracted from green and blue, and clamped.

    Raises:
        ValueError: as `overlay` does.
    """
    _check(pixels_HWC, mask_HW)
    shift_HW1 = 255 * mask_HW[..., np.newaxis]
    shifted_HWC = pixels_HWC + shift_HW1 * np.array([1, -1, -1], np.float32)
    drawn_HWC: NDArray[np.uint8] = np.floor(np.clip(shifted_HWC, 0, 255) + 0.5).astype(np.uint8)
    return drawn_HWC


def _check(pixels_HWC: NDArray[np.uint8], mask_HW: NDArray[np.float32]) -> None:
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
        raise ValueError(f"picture of shape {pixels_HWC.shape} and {pixels_HWC.dtype} must be (H, W, 3) uint8")
    if not (mask_HW.min(initial=0) >= 0 and mask_HW.max(initial=0) <= 1):
        raise ValueError(f"mask values {mask_HW.min()} .. {mask_HW.max()} must lie in [0, 1]; normalise it first")
    if mask_HW.shape != pixels_HWC.shape[:2]:
        raise ValueError(
            f"mask of shape {mask_HW.shape} must have the picture's height and width {pixels_HWC.shape[:2]}; "
            "place() brings a mask to the size of the original"
        )


_DIMMED = 0.6
"""Factor of the picture's brightness under the colours."""


@cache
def heat_colours() -> NDArray[np.uint8]:
    """The colour of every mask level on every grey, RGB at 256 * level + grey."""
    import matplotlib

    root_L1 = np.arange(256)[:, np.newaxis] / 255
    # The scale starts at 0.2, since its lowest fifth is as dark as the picture under it.
    colours_L1C = 255 * matplotlib.colormaps["inferno"](0.2 + 0.8 * root_L1)[..., :3]
    opacity_L11 = np.minimum(1, 1.5 * root_L1)[..., np.newaxis]
    greys_G1 = _DIMMED * np.arange(256)[:, np.newaxis]
    drawn_LGC = opacity_L11 * colours_L1C + (1 - opacity_L11) * greys_G1
    table: NDArray[np.uint8] = np.floor(drawn_LGC + 0.5).astype(np.uint8).reshape(-1, 3)
    return table
