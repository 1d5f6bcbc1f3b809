"""Where the pixels of one map come from in the map below, and the all-ones deconvolution that leads back there.

Shapes: N images, 1 channel, H rows, W columns; a size is (rows, columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vbp.errors import ModelError

Size = tuple[int, int]


class Step(Protocol):
    """Whatever lies on the way between two maps."""

    def output_size(self, size: Size) -> Size:
        """The size above for a map of `size` below; 0 or less in either direction: too small."""

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """Lead a map down to the step's lower side, which has `size`."""


@dataclass(frozen=True)
class Window:
    """The sliding window of one convolution, pooling or padding layer; every field holds (rows, columns)."""

    kernel: Size
    stride: Size = (1, 1)
    before: Size = (0, 0)
    """Padding above and to the left, negative where the layer crops. It alone decides where a window lies."""
    after: Size = (0, 0)
    """Padding below and to the right. It decides only how many windows there are."""
    dilation: Size = (1, 1)
    ceil_mode: bool = False

    def output_size(self, size: Size) -> Size:
        """The size of the layer's output for an input of `size`, by PyTorch's rules (0 or less: too small)."""
        rows, columns = (self._count(axis, size[axis]) for axis in (0, 1))
        return rows, columns

    def _count(self, axis: int, length: int) -> int:
        stride = self.stride[axis]
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        room = length + self.before[axis] + self.after[axis] - reach
        if not self.ceil_mode:
            return room // stride + 1
        count = -(-room // stride) + 1
        # The last window must start inside the input or its left padding, never in the right padding.
        return count - 1 if (count - 1) * stride >= length + self.before[axis] else count

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """Spread every value over its window: the transposed convolution with all weights 1 and bias 0.

        An all-ones kernel is separable, and along one axis it is a sum of `kernel` shifted copies. That is exact for
        every kernel, stride, padding and dilation, the same for each image of a batch, and measured faster on a CPU
        than both ``conv_transpose2d`` (90x at 8x1x224x224, kernel 3) and average pooling (8x).

        Args:
            map_N1HW: the layer's output side, any float dtype.
            size: of the layer's input side. Rows and columns that no window reaches stay 0 (what output padding
                does in ``conv_transpose2d``); what would fall outside, in the padding, is cropped.

        Returns:
            (N, 1, *size), same dtype.
        """
        return self._spread(self._spread(map_N1HW, 1, size[1]), 0, size[0])

    def _spread(self, source: Tensor, axis: int, length: int) -> Tensor:
        kernel, stride = self.kernel[axis], self.stride[axis]
        if kernel == stride == 1 and self.before[axis] == 0 and source.shape[axis + 2] == length:
            return source
        shape = list(source.shape)
        shape[axis + 2] = length
        target = source.new_zeros(shape)
        for tap in range(kernel):
            # Output i lies at input position i * stride + offset under this tap; keep those within the target.
            offset = tap * self.dilation[axis] - self.before[axis]
            first = max(0, -(offset // stride))
            stop = min(source.shape[axis + 2], (length - 1 - offset) // stride + 1)
            if first < stop:
                places = slice(first * stride + offset, (stop - 1) * stride + offset + 1, stride)
                index = (..., places, slice(None)) if axis == 0 else (..., places)
                target[index] += source.narrow(axis + 2, first, stop - first)
        return target


@dataclass(frozen=True)
class Resampling:
    """A layer whose windows follow from the sizes at its two ends; every field holds (rows, columns)."""

    mode: Literal["adaptive", "nearest", "nearest-exact", "linear"]
    """`adaptive` pooling spreads every value over its window with weight 1, as all pooling does. Upsampling leads
    back to each pixel with the weight that the pixel had in the layer's output."""
    size: tuple[int | None, int | None] = (None, None)
    """Of the output; None: the input's length times `scale`."""
    scale: tuple[float, float] = (1.0, 1.0)
    align_corners: bool | None = None

    def output_size(self, size: Size) -> Size:
        """The size of the layer's output for an input of `size`."""
        rows, columns = (
            floor(length * scale) if fixed is None else fixed
            for length, scale, fixed in zip(size, self.scale, self.size, strict=True)
        )
        return rows, columns

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """The transposed layer: (N, 1, *size), same dtype. H and W are the lengths below, h and w those above."""
        rows_Hh, columns_Ww = (self._weights(map_N1HW, axis, size[axis]) for axis in (0, 1))
        # A user's autocast would round the products to 16 bits.
        with torch.autocast(map_N1HW.device.type, enabled=False):
            return rows_Hh @ map_N1HW @ columns_Ww.T

    def _weights(self, like: Tensor, axis: int, length: int) -> Tensor:
        """What each input position along one axis gives to each output position, asked of the layer itself."""
        inputs = torch.eye(length, dtype=like.dtype, device=like.device)[None]
        size, scale = self.size[axis], self.scale[axis]
        if self.mode == "adaptive":
            return (F.adaptive_avg_pool1d(inputs, length if size is None else size)[0] > 0).to(like.dtype)
        settings = {"size": size} if size is not None else {"scale_factor": scale}
        return F.interpolate(inputs, **settings, mode=self.mode, align_corners=self.align_corners)[0]


@dataclass(frozen=True)
class Strand:
    """Part of `Branches`: steps in forward order that begin where other strands end."""

    sources: tuple[int, ...]
    """The strands that are joined to begin this one, counted from 1; 0 is the point where the branches split."""
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Branches:
    """All ways between a split and the join above it, in forward order; the last strand ends at the top.

    Every strand leads down with its own geometry; where strands were joined by addition or concatenation, the mask
    is the average of what they lead down.
    """

    strands: tuple[Strand, ...]

    def output_size(self, size: Size) -> Size:
        """The size at the join for an input of `size`; (0, 0) where it is too small for one of the strands."""
        ends = self._ends(size)
        return ends[-1] if min(map(min, ends)) > 0 else (0, 0)

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """The average over all strands of their deconvolutions: (N, 1, *size), same dtype.

        Raises:
            ModelError: strands of unequal size are joined.
        """
        ends = self._ends(size)
        above: dict[int, Tensor] = {len(self.strands): map_N1HW}
        for number, strand in reversed(list(enumerate(self.strands, 1))):
            sizes = {ends[source] for source in strand.sources}
            if len(sizes) > 1:
                raise ModelError(f"the network joins maps of unequal sizes {sorted(sizes)}, which cannot be explained.")
            share = _descend(above.pop(number) / len(strand.sources), strand.steps, sizes.pop())
            for source in strand.sources:
                above[source] = above[source] + share if source in above else share
        return above[0]

    def _ends(self, size: Size) -> list[Size]:
        """The size at the split and at the end of every strand."""
        ends = [size]
        for strand in self.strands:
            ends.append(_climb(strand.steps, ends[strand.sources[0]])[-1])
        return ends


@dataclass(frozen=True)
class Stage:
    """One averaged map, and the way from it down to the map below (from the first stage: down to the input)."""

    name: str
    """The activation, addition or concatenation whose output is averaged, as the network names it."""
    steps: tuple[Step, ...]
    """What lies between the map below and this one, in forward order."""
    signed: bool = False
    """Whether that output may be negative somewhere; it is clamped at 0 before averaging."""

    def sizes(self, size: Size) -> list[Size]:
        """The sizes that a map below of `size` takes after each step; the last is this map's own."""
        return _climb(self.steps, size)[1:]

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """Lead this stage's mask down through all steps to the map below, which has `size`."""
        return _descend(map_N1HW, self.steps, size)


def _climb(steps: Sequence[Step], size: Size) -> list[Size]:
    """`size` and what it becomes after each step."""
    sizes = [size]
    for step in steps:
        sizes.append(step.output_size(sizes[-1]))
    return sizes


def _descend(map_N1HW: Tensor, steps: Sequence[Step], size: Size) -> Tensor:
    for step, step_size in zip(reversed(steps), reversed(_climb(steps, size)[:-1]), strict=True):
        map_N1HW = step.deconvolve(map_N1HW, step_size)
    return map_N1HW


def map_sizes(stages: Sequence[Stage], input_size: Size) -> list[Size]:
    """The size of every stage's map for an input of `input_size`."""
    sizes: list[Size] = []
    for stage in stages:
        input_size = stage.sizes(input_size)[-1]
        sizes.append(input_size)
    return sizes
