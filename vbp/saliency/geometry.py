"""Geometry: which pixels of the map below each pixel of a map comes from, and the all-ones deconvolution back.

Shapes: N images, 1 channel, H rows, W columns; a size is (rows, columns).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, product
from math import floor
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vbp.errors import ModelError
from vbp.saliency.cuts import Strand

Size = tuple[int, int]


class Geometry(Protocol):
    """An operation, or several, between two maps."""

    def output_size(self, size: Size) -> Size:
        """The size of the upper map for a lower map of `size`; 0 or less in a direction means too small."""

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """Lead a mask from the upper to the lower map, which has `size`."""


@dataclass(frozen=True)
class Window:
    """The sliding window of one convolution, pooling or padding layer; every field holds (rows, columns)."""

    kernel: Size
    stride: Size = (1, 1)
    before: Size = (0, 0)
    """Padding above and to the left, negative if the layer crops. It alone decides where a window lies."""
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
        every kernel, stride, padding and dilation, equal for each image of a batch, and measured faster on a CPU
        than both ``conv_transpose2d`` (90x at 8x1x224x224, kernel 3) and average pooling (8x).

        Args:
            map_N1HW: the layer's output side, any float dtype.
            size: size of the layer's input. Rows and columns that no window reaches stay 0 (as output padding
                does in ``conv_transpose2d``); values in the padding are cropped.

        Returns:
            (N, 1, *size), same dtype.
        """
        for axis in (1, 0):
            map_N1HW = spread(map_N1HW, axis, *self.taps(axis), size[axis])
        return map_N1HW

    def taps(self, axis: int) -> tuple[list[int], int]:
        """See `offsets`, and the stride along the axis."""
        return self.offsets(axis), self.stride[axis]

    def offsets(self, axis: int) -> list[int]:
        """Positions along one axis of the pixels in the window of output 0."""
        return [tap * self.dilation[axis] - self.before[axis] for tap in range(self.kernel[axis])]


def spread(source: Tensor, axis: int, offsets: Iterable[int], stride: int, length: int) -> Tensor:
    """Along one axis, add every value to the positions of its window; those outside the target are cropped."""
    if list(offsets) == [0] and stride == 1 and source.shape[axis + 2] == length:
        return source
    shape = list(source.shape)
    shape[axis + 2] = length
    target = source.new_zeros(shape)
    for offset in offsets:
        outputs, inputs = _places(offset, stride, source.shape[axis + 2], length)
        _part(target, axis, inputs).add_(_part(source, axis, outputs))
    return target


def _places(offset: int, stride: int, count: int, length: int) -> tuple[slice, slice]:
    """Slices of the outputs i whose input position i * stride + offset exists, and of these positions."""
    first = max(0, -(offset // stride))
    stop = min(count, (length - 1 - offset) // stride + 1)
    if first >= stop:
        return slice(0), slice(0)
    return slice(first, stop), slice(first * stride + offset, (stop - 1) * stride + offset + 1, stride)


def _part(map_N1HW: Tensor, axis: int, part: slice) -> Tensor:
    """A view of some rows or columns."""
    if part.step in (None, 1):  # costs half as much as an index, which counts for small maps
        return map_N1HW.narrow(axis + 2, part.start or 0, part.stop - (part.start or 0))
    return map_N1HW[..., part, :] if axis == 0 else map_N1HW[..., part]


@dataclass(frozen=True)
class Transposed:
    """A transposed convolution, by the window of the convolution whose gradient it is."""

    window: Window

    def output_size(self, size: Size) -> Size:
        """The size of the layer's output for an input of `size`, by PyTorch's rules."""
        rows, columns = (self._length(axis, size[axis]) for axis in (0, 1))
        return rows, columns

    def _length(self, axis: int, length: int) -> int:
        window = self.window
        reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        return (length - 1) * window.stride[axis] - window.before[axis] - window.after[axis] + reach

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """Sum what every value was spread to: the convolution with all weights 1, (N, 1, *size), same dtype."""
        for axis in (1, 0):
            shape = list(map_N1HW.shape)
            length, shape[axis + 2] = shape[axis + 2], size[axis]
            target = map_N1HW.new_zeros(shape)
            for offset in self.window.offsets(axis):
                below, above = _places(offset, self.window.stride[axis], size[axis], length)
                _part(target, axis, below).add_(_part(map_N1HW, axis, above))
            map_N1HW = target
        return map_N1HW


@dataclass(frozen=True)
class Pooling(Window):
    """The window of a pooling layer."""

    maximum: bool = False
    """Whether it takes the maximum of its window, not the average."""
    node: str = field(default="", compare=False)
    """The operation's name in the traced graph."""

    def switches(self, map_NCHW: Tensor) -> Tensor:
        """The share of channels with their maximum at each place of the window, float32 (N, T, h, w).

        T counts the window's places row by row. Of equal values the one that PyTorch's pooling finds counts.
        """
        settings = self.kernel, self.stride, self.before, self.dilation, self.ceil_mode
        _, index_NChw = F.max_pool2d(map_NCHW, *settings, return_indices=True)
        columns = map_NCHW.shape[3]
        row_h1 = torch.arange(index_NChw.shape[2], device=index_NChw.device)[:, None] * self.stride[0]
        column_w = torch.arange(index_NChw.shape[3], device=index_NChw.device) * self.stride[1]
        shares = [
            (index_NChw == (row_h1 + row) * columns + column_w + column).mean(1, dtype=torch.float32)
            for row, column in product(self.offsets(0), self.offsets(1))
        ]
        return torch.stack(shares, 1)


@dataclass(frozen=True, eq=False)
class Unpooling:
    """Leads down through max pooling by its switches: every value goes back to the place of the maximum.

    The places of all channels are averaged, as all maps are.
    """

    pooling: Pooling
    switches_NThw: Tensor

    def output_size(self, size: Size) -> Size:
        """As for the pooling."""
        return self.pooling.output_size(size)

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """Give every value to the pixels of its window by their shares: (N, 1, *size), same dtype."""
        target = map_N1HW.new_zeros(*map_N1HW.shape[:2], *size)
        places = product(self.pooling.offsets(0), self.pooling.offsets(1))
        for (row, column), share_Nhw in zip(places, self.switches_NThw.unbind(1), strict=True):
            above_rows, rows = _places(row, self.pooling.stride[0], map_N1HW.shape[2], size[0])
            above_columns, columns = _places(column, self.pooling.stride[1], map_N1HW.shape[3], size[1])
            target[..., rows, columns].add_((map_N1HW * share_Nhw[:, None])[..., above_rows, above_columns])
        return target


@dataclass(frozen=True)
class Merged:
    """Several windows, the lowest first, as one kernel of ones over all that a value was computed from.

    One by one, the windows give a pixel under overlapping windows a value several times; merged, once.
    """

    windows: tuple[Window, ...]

    def output_size(self, size: Size) -> Size:
        """As for the windows one by one."""
        return _climb(self.windows, size)[-1]

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """The transposed convolution with that kernel: (N, 1, *size), same dtype."""
        for axis in (1, 0):
            map_N1HW = spread(map_N1HW, axis, *self.taps(axis), size[axis])
        return map_N1HW

    def taps(self, axis: int) -> tuple[list[int], int]:
        """As for a window."""
        offsets, stride = {0}, 1
        for window in self.windows:
            offsets = {low + stride * high for low, high in product(offsets, window.offsets(axis))}
            stride *= window.stride[axis]
        return sorted(offsets), stride


@dataclass(frozen=True)
class Resampling:
    """A layer whose windows follow from the sizes at its two ends; every field holds (rows, columns)."""

    mode: Literal["adaptive", "nearest", "nearest-exact", "linear"]
    """`adaptive` pooling spreads every value over its window with weight 1, like all pooling. Upsampling leads
    a value back to each pixel with the pixel's weight in the layer's output."""
    size: tuple[int | None, int | None] = (None, None)
    """Size of the output; None: the input's length times `scale`."""
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
        """The weight of each input position in each output position along one axis, computed by the layer itself."""
        inputs = torch.eye(length, dtype=like.dtype, device=like.device)[None]
        size, scale = self.size[axis], self.scale[axis]
        if self.mode == "adaptive":
            return (F.adaptive_avg_pool1d(inputs, length if size is None else size)[0] > 0).to(like.dtype)
        settings = {"size": size} if size is not None else {"scale_factor": scale}
        return F.interpolate(inputs, **settings, mode=self.mode, align_corners=self.align_corners)[0]


@dataclass(frozen=True)
class Branches:
    """All paths between a split and the join above it, in forward order; the last strand ends at the top.

    Every strand leads down with its own geometry; if strands were joined by addition or concatenation, the mask
    is the average of their results.
    """

    strands: tuple[Strand[Geometry], ...]

    def output_size(self, size: Size) -> Size:
        """The size at the join for an input of `size`; (0, 0) if it is too small for one of the strands."""
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
            joined = above.pop(number)
            share = joined / len(strand.sources) if len(strand.sources) > 1 else joined
            share = _descend(share, strand.steps, sizes.pop())
            # Sources that have had the same shares get one sum: a dense block has as many pairs as layers squared.
            sums: dict[int, Tensor] = {}
            for source in strand.sources:
                before = above.get(source)
                if id(before) not in sums:
                    sums[id(before)] = share if before is None else before + share
                above[source] = sums[id(before)]
        return above[0]

    def _ends(self, size: Size) -> list[Size]:
        """The size at the split and at the end of every strand."""
        ends = [size]
        for strand in self.strands:
            ends.append(_climb(strand.steps, ends[strand.sources[0]])[-1])
        return ends


@dataclass(frozen=True)
class Stage:
    """One averaged map, and the geometry from it down to the map below; for the first stage, down to the input."""

    name: str
    """The network's name of the activation, addition or concatenation whose output is averaged."""
    steps: tuple[Geometry, ...]
    """The geometry between the map below and this one, in forward order."""
    signed: bool = False
    """Whether that output may have negative values, which are set to 0 before averaging."""

    def __repr__(self) -> str:
        """The stage's name alone, because the steps of a branching network fill pages."""
        return f"<Stage {self.name}>"

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """Lead this stage's mask down through all steps to the map below, which has `size`."""
        return _descend(map_N1HW, self.steps, size)


def merged_pooling(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """The stages, with each chain of windows that includes a pooling merged into one kernel."""

    def merge(steps: tuple[Geometry, ...]) -> Iterator[Geometry]:
        for _, run in groupby(steps, lambda step: isinstance(step, Window)):
            chain = tuple(run)
            windows = tuple(step for step in chain if isinstance(step, Window))
            holds_pooling = any(isinstance(window, Pooling) for window in windows)
            yield from (Merged(windows),) if holds_pooling else chain

    return tuple(rewritten(stage, merge) for stage in stages)


def unpooled(stages: Iterable[Stage], switches: Mapping[str, Tensor]) -> tuple[Stage, ...]:
    """The stages with max pooling replaced by unpooling; `switches` are by node."""

    def unpool(steps: tuple[Geometry, ...]) -> Iterator[Geometry]:
        for step in steps:
            if isinstance(step, Pooling) and step.node in switches:
                step = Unpooling(step, switches[step.node])
            yield step

    return tuple(rewritten(stage, unpool) for stage in stages)


def max_poolings(stages: Iterable[Stage]) -> dict[str, Pooling]:
    """All max pooling layers on the way down, by node."""
    found: dict[str, Pooling] = {}

    def look(steps: tuple[Geometry, ...]) -> tuple[Geometry, ...]:
        found.update({step.node: step for step in steps if isinstance(step, Pooling) and step.maximum})
        return steps

    for stage in stages:
        rewritten(stage, look)
    return found


def rewritten(stage: Stage, rule: Callable[[tuple[Geometry, ...]], Iterable[Geometry]]) -> Stage:
    """A stage with `rule` applied to every chain of its steps, also within branches."""

    def rewrite(steps: tuple[Geometry, ...]) -> tuple[Geometry, ...]:
        return tuple(rule(tuple(branch(step) for step in steps)))

    def branch(step: Geometry) -> Geometry:
        if not isinstance(step, Branches):
            return step
        return Branches(tuple(replace(strand, steps=rewrite(strand.steps)) for strand in step.strands))

    return replace(stage, steps=rewrite(stage.steps))


def _climb(steps: Sequence[Geometry], size: Size) -> list[Size]:
    """`size`, and the size after each step."""
    sizes = [size]
    for step in steps:
        sizes.append(step.output_size(sizes[-1]))
    return sizes


def _descend(map_N1HW: Tensor, steps: Sequence[Geometry], size: Size) -> Tensor:
    for step, step_size in zip(reversed(steps), reversed(_climb(steps, size)[:-1]), strict=True):
        map_N1HW = step.deconvolve(map_N1HW, step_size)
    return map_N1HW


def map_sizes(stages: Sequence[Stage], input_size: Size) -> list[Size]:
    """The size of every stage's map for an input of `input_size`."""
    sizes: list[Size] = []
    for stage in stages:
        input_size = _climb(stage.steps, input_size)[-1]
        sizes.append(input_size)
    return sizes
