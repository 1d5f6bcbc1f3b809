"""The arithmetic of `encode_mask` and of overlays for a batch of masks in torch, so that a GPU does it.

Each operation is the one of the NumPy rule, in its order and its type, so the values are equal to the bit. Divisors are
tensors on the device: CUDA multiplies by the rounded reciprocal of a Python number.

Shapes: B images, H rows, W columns, C = 3 colours (RGB).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from vbp.choices import MaskFormat, OverlayStyle
from vbp.images.overlay import heat_colours
from vbp.networks.preprocessing import IMAGENET, Preprocessing


def stored(mask_BHW: Tensor, mask_format: MaskFormat) -> Tensor:
    """Masks in the values that their files hold: uint8 for ``png8``, uint16 for ``png16``, float32 for ``npy``.

    Args:
        mask_BHW: float32 in [0, 1].
        mask_format: as for `vbp.images.encode.encode_mask`.
    """
    if mask_format == "png8":
        return (255 * mask_BHW).add_(0.5).floor_().to(torch.uint8)
    if mask_format == "png16":
        levels_BHW = (65535 * mask_BHW.double()).add_(0.5).floor_().int()
        return levels_BHW.to(torch.int16).view(torch.uint16)  # CUDA has few operations on uint16
    return mask_BHW


def overlays(
    style: OverlayStyle, pixels_BHWC: Tensor, mask_BHW: Tensor, preprocessing: Preprocessing = IMAGENET
) -> Tensor:
    """The masks drawn on their pictures as `vbp.images.overlay.overlay` does it, uint8 (B, H, W, C).

    Args:
        style: how to draw.
        pixels_BHWC: uint8 RGB.
        mask_BHW: float32 in [0, 1], of the same height and width.
        preprocessing: the network's preprocessing; ``reference`` needs it.
    """
    if style == "heat":
        return _heat(pixels_BHWC, mask_BHW)
    if style == "red":
        return _red(pixels_BHWC, mask_BHW)
    return _reference(pixels_BHWC, mask_BHW, preprocessing)


def _heat(pixels_BHWC: Tensor, mask_BHW: Tensor) -> Tensor:
    levels_BHW = (255 * mask_BHW.sqrt()).add_(0.5).int()
    red_BHW, green_BHW, blue_BHW = pixels_BHWC.int().unbind(3)
    grey_BHW = 19595 * red_BHW + 38470 * green_BHW + 7471 * blue_BHW + 32768 >> 16  # as Pillow computes it
    colours = _heat_colours(mask_BHW.device)
    return colours.index_select(0, (levels_BHW << 8 | grey_BHW).flatten()).view(pixels_BHWC.shape)


@cache
def _heat_colours(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(heat_colours()).to(device)


def _red(pixels_BHWC: Tensor, mask_BHW: Tensor) -> Tensor:
    shift_BHW = 255 * mask_BHW
    shift_BHWC = torch.stack([shift_BHW, -shift_BHW, -shift_BHW], 3)
    return shift_BHWC.add_(pixels_BHWC).clamp_(0, 255).add_(0.5).floor_().to(torch.uint8)


def _reference(pixels_BHWC: Tensor, mask_BHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    full, mean_C, std_C = _normalisation(mask_BHW.device, preprocessing)
    values_BHWC = pixels_BHWC.float().div_(full).sub_(mean_C).div_(std_C)
    values_BHWC[..., 0] += 10 * mask_BHW
    low_B111 = values_BHWC.amin((1, 2, 3), keepdim=True)
    spread_B111 = values_BHWC.amax((1, 2, 3), keepdim=True) - low_B111
    unit_BHWC = values_BHWC.sub_(low_B111).div_(spread_B111.where(spread_B111 > 0, 1))
    return unit_BHWC.mul_(255).add_(0.5).floor_().to(torch.uint8)


@cache
def _normalisation(device: torch.device, preprocessing: Preprocessing) -> tuple[Tensor, Tensor, Tensor]:
    """The largest pixel value, mean and standard deviation, on the device."""
    with torch.inference_mode(False):
        values = (255.0, preprocessing.rgb_mean, preprocessing.rgb_std)
        full, mean_C, std_C = (torch.tensor(value, dtype=torch.float32, device=device) for value in values)
        return full, mean_C, std_C


def sums(mask_BHW: Tensor) -> dict[str, Tensor]:
    """What the index's columns of each mask are made of.

    Returns:
        ``total``, the sum of its values, float64; ``above``, the number of those above 0.5, int64; ``peak``, the
        number of its first maximum, counted along rows from 0, int64.
    """
    values_BX = mask_BHW.flatten(1)
    return {
        "total": values_BX.sum(1, dtype=torch.float64),
        "above": (values_BX > 0.5).sum(1),
        "peak": values_BX.argmax(1),
    }
