"""The geometry between two maps of an ONNX graph. Of what lies in the graph itself, only the place is kept.

The upper map's size need not be known: every step names the tensor below it, whose size the graph tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]
"""(rows, columns)."""
TIE = 1e-6
"""Pixels by which a place may miss the middle of two others and still count as in it, in onnxruntime."""


@dataclass(frozen=True)
class Place:
    """A tensor with pixels, and which of its axes are rows and columns."""

    tensor: str
    rows: int
    columns: int
    size: tuple[int | None, int | None] = (None, None)
    """(rows, columns), as far as they are known before the graph runs."""


@dataclass(frozen=True)
class Window:
    """The sliding window of one convolution, pooling, padding or crop."""

    below: Place
    kernel: Pair
    stride: Pair = (1, 1)
    before: Pair = (0, 0)
    """Padding above and to the left, negative if pixels are cut off. It alone decides where a window lies."""
    after: Pair = (0, 0)
    """Padding below and to the right."""
    dilation: Pair = (1, 1)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels below for one above."""
        return self.stride

    def reach(self, axis: int) -> int:
        """The pixels from the first to the last of the window."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1


@dataclass(frozen=True)
class Transposed:
    """A transposed convolution, by the window of the convolution whose gradient it is."""

    window: Window

    @property
    def below(self) -> Place:
        """The tensor that it reads."""
        return self.window.below

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels below for one above."""
        return 1 / self.window.stride[0], 1 / self.window.stride[1]


@dataclass(frozen=True, eq=False)
class Resampling:
    """A layer that resizes: the weight of each pixel below (H or W) in each pixel above (h or w), by axis."""

    below: Place
    rows_Hh: NDArray[np.float32]
    columns_Ww: NDArray[np.float32]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels below for one above."""
        (below_rows, rows), (below_columns, columns) = self.rows_Hh.shape, self.columns_Ww.shape
        return below_rows / rows, below_columns / columns


Geometry = Window | Transposed | Resampling


def same_padding(length: int | None, reach: int, stride: int, *, upper: bool) -> Pair | None:
    """Padding before and after of `auto_pad` SAME; None if it depends on a length that is not known."""
    if length is None and stride > 1:
        return None
    total = reach - 1 if length is None else max((-(-length // stride) - 1) * stride + reach - length, 0)
    less = total // 2
    return (less, total - less) if upper else (total - less, less)


def resizing_weights(below: int, above: int, settings: dict[str, Any], scale: float) -> NDArray[np.float32] | None:
    """Weights of a Resize along one axis, (below, above); None for a mode other than nearest and linear.

    All is computed in float32 and in the order in which onnxruntime does it: where a place lies on the border of two
    pixels, the last bit decides between them.

    Args:
        below: length of its input.
        above: length of its output.
        settings: its attributes, texts as bytes.
        scale: what it multiplies the length with.
    """
    mode = settings.get("mode", b"nearest")
    smooth = mode == b"linear" and settings.get("antialias", 0)
    stretched = settings.get("keep_aspect_ratio_policy", b"stretch") == b"stretch"
    place = _source(np.arange(above, dtype=np.float32), below, above, settings, np.float32(scale))
    if place is None or mode not in (b"nearest", b"linear") or smooth or not stretched:
        return None
    weights = np.zeros((below, above), np.float32)
    column = np.arange(above)
    if mode == b"nearest":
        weights[_nearest(place, settings).astype(int).clip(0, below - 1), column] = 1
        return weights
    place = place.clip(0, below - 1)
    lower = np.floor(place).astype(int)
    part = place - np.floor(place)
    np.add.at(weights, (lower, column), 1 - part)
    np.add.at(weights, ((lower + 1).clip(max=below - 1), column), part)
    return weights


def _source(
    above: NDArray[np.float32], length: int, count: int, settings: dict[str, Any], scale: np.float32
) -> NDArray[np.float32] | None:
    """Where the pixels of the output lie in the input."""
    how = settings.get("coordinate_transformation_mode", b"half_pixel")
    half = np.float32(0.5)
    if how == b"asymmetric":
        return above / scale
    if how == b"align_corners":
        return above * np.float32(length - 1) / np.float32(max(count - 1, 1))
    if how in (b"half_pixel", b"pytorch_half_pixel"):
        return (above + half) / scale - half if how == b"half_pixel" or count > 1 else above * 0
    return None


def _nearest(place: NDArray[np.float32], settings: dict[str, Any]) -> NDArray[np.float32]:
    how = settings.get("nearest_mode", b"round_prefer_floor")
    lower = np.floor(place)
    if how in (b"ceil", b"floor"):
        return np.ceil(place) if how == b"ceil" else lower
    beyond = place - lower - np.float32(0.5)
    return lower + (beyond > TIE if how == b"round_prefer_floor" else beyond > -TIE)
