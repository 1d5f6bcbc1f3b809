"""Frame: the place of the network's frame in the original image, and how to put a mask back there.

Shapes: H, W = height and width of the mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_TINY = 1e-6
"""The largest rounding error of a whole number of cells."""


@dataclass(frozen=True)
class Frame:
    """The network's frame in pixels of the upright original, measured from its upper left corner.

    The values are edges, not centres: a whole image is ``Frame(0, 0, width, height)``. Padding lies outside the image,
    so ``left`` and ``top`` may be negative and ``right`` and ``bottom`` may exceed the image.
    """

    left: float
    top: float
    right: float
    bottom: float


def point_in_image(x: int, y: int, mask_size: tuple[int, int], frame: Frame) -> tuple[float, float]:
    """Where the centre of a mask's pixel lies in the upright original.

    Args:
        x: column of the mask's pixel.
        y: its row.
        mask_size: width and height of the mask, in pixels.
        frame: the part of the original that the mask covers.

    Returns:
        x and y in pixels of the original, measured from its upper left corner as `Frame` is: the centre of the first
        pixel is (0.5, 0.5). A point on padding lies outside the image.
    """
    width, height = mask_size
    return (
        frame.left + (x + 0.5) * (frame.right - frame.left) / width,
        frame.top + (y + 0.5) * (frame.bottom - frame.top) / height,
    )


def place(mask_HW: NDArray[np.float32], frame: Frame, width: int, height: int) -> NDArray[np.float32]:
    """Puts a mask from the network's frame back onto the original image.

    It is bilinear if the mask grows, with antialiasing if it shrinks. Pixels outside the frame become zero; parts of
    the mask outside the image (padding) are cut off. A pixel belongs to the frame if its centre does.

    Args:
        mask_HW: float32 in [0, 1], covering the frame.
        frame: where that frame lies in the upright original.
        width: of the upright original, in pixels.
        height: of the upright original, in pixels.

    Returns:
        float32 in [0, 1], (height, width).

    Raises:
        ValueError: the mask is not two-dimensional, or the frame is empty.
    """
    if mask_HW.ndim != 2 or 0 in mask_HW.shape:
        raise ValueError(f"mask of shape {mask_HW.shape} must be (H, W) and not empty; place one mask at a time")
    if not (frame.left < frame.right and frame.top < frame.bottom):
        raise ValueError(f"{frame} is empty: left must be below right, and top below bottom")
    x = _Span.of(frame.left, frame.right, mask_HW.shape[1], width)
    y = _Span.of(frame.top, frame.bottom, mask_HW.shape[0], height)
    placed = np.zeros((height, width), np.float32)
    if x.pixels and y.pixels:
        shown_HW = mask_HW[y.cells, x.cells].astype(np.float32, copy=False)
        bordered_HW = np.pad(shown_HW, (y.border, x.border), mode="edge")
        inside = Image.fromarray(bordered_HW).resize(
            (len(x.pixels), len(y.pixels)), Image.Resampling.BILINEAR, box=(x.start, y.start, x.stop, y.stop)
        )
        placed[y.pixels.start : y.pixels.stop, x.pixels.start : x.pixels.stop] = np.asarray(inside).clip(0, 1)
    return placed


@dataclass(frozen=True)
class _Span:
    """Along one axis: the image's `pixels` show the stretch start..stop of the mask's `cells`, bordered."""

    pixels: range
    cells: slice
    border: tuple[int, int]
    start: float
    stop: float

    @classmethod
    def of(cls, low: float, high: float, cells: int, length: int) -> _Span:
        """The frame's edges `low` and `high` in an image of `length` pixels, covered by as many mask `cells`."""
        scale = cells / (high - low)
        pixels = range(max(0, math.ceil(low - 0.5)), min(length, math.ceil(high - 0.5)))
        # Cells that lie only on padding are left out.
        first = max(0, math.floor(-low * scale + _TINY))
        last = min(cells, math.ceil((length - low) * scale - _TINY))
        # A pixel whose centre is in the frame may extend half a pixel beyond it, so the outermost cell is extended.
        border = math.ceil(scale / 2)
        start, stop = (
            min(max((edge - low) * scale - first + border, 0), last - first + 2 * border)
            for edge in (pixels.start, pixels.stop)
        )
        return cls(pixels, slice(first, last), (border, border), start, stop)
