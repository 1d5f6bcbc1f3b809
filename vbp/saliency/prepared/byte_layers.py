"""Layers of a network that take and return maps of bytes, for CPUs.

Maps after a ReLU are stored as bytes: 0 is 0, and 255 is the largest value that occurred in calibration. A convolution
takes bytes, adds products in 32-bit integers, and returns bytes, or float32 if the next operation does not take
integers.

Weights have 7 bits, because without VNNI a processor adds two products in 16 bits, which 8-bit weights would overflow.
So sums are exact on every processor; when a sum is rounded to a byte, two processors may differ by one step.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from vbp.saliency.prepared.chains import folded
from vbp.saliency.prepared.layouts import BySize

WEIGHT_MAX = 63
"""Largest weight of 7 bits with sign: 255 * 63 * 2 fits into 16 bits."""
BYTE_MAX = 255
MIDDLE = 128
"""The byte that means 0 in maps with negative values."""


class Step(NamedTuple):
    """The numbers that bytes mean: ``scale * (byte - zero)``."""

    scale: float
    zero: int

    @classmethod
    def over(cls, least: float, largest: float) -> Step:
        """The step with which bytes cover the range of a map, from its smallest to its largest value."""
        if least >= 0:
            return cls(max(largest, _TINY) / BYTE_MAX, 0)
        return cls(max(-least, largest) / (BYTE_MAX - MIDDLE), MIDDLE)


_TINY = 1e-30
"""Scale of a map that was 0 in every image."""


@cache
def can_quantise(device: str) -> bool:
    """Whether torch can multiply 8-bit integers here. It has no public function that says so, so it is tried once.

    Args:
        device: only cpu can.
    """
    step, zeros = Step(1.0, 0), torch.zeros(1, 4, 2, 2, dtype=torch.uint8, device="cpu")
    try:
        QuantisedConvolution(nn.Conv2d(4, 4, 1, device="cpu"), None, "relu", step, None)(zeros)
    except (AttributeError, RuntimeError):
        return False
    return device == "cpu"


@cache
def can_add() -> bool:
    """Whether torch can add within a convolution of 8-bit integers; tried once, too."""
    step, zeros = Step(1.0, 0), torch.zeros(1, 4, 2, 2, dtype=torch.uint8, device="cpu")
    try:
        QuantisedAddition(nn.Conv2d(4, 4, 1, device="cpu"), None, step, step, step)(zeros, zeros)
    except (AttributeError, RuntimeError):
        return False
    return True


class QuantisedConvolution(nn.Module):
    """Convolution, batch norm and ReLU in one, on bytes.

    Args:
        convolution: a convolution with zero padding, given in numbers.
        norm: batch norm of its output, or None.
        activation: `relu` or `none`.
        source: step of the input.
        output: step of the output; None: the output is float32.
    """

    def __init__(
        self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, activation: str, source: Step, output: Step | None
    ):
        super().__init__()
        self._convolve = _Convolve(*_quantised(convolution, norm), source, output, activation)

    @override
    def forward(self, bytes_NCHW: Tensor) -> Tensor:
        """The next map."""
        return self._convolve(bytes_NCHW)


class QuantisedAddition(nn.Module):
    """Convolution, batch norm, the addition of another map, and ReLU in one, on bytes; rounded once, at the end.

    Args:
        convolution: a convolution with zero padding, given in numbers.
        norm: batch norm of its output, or None.
        source: step of the input.
        added: step of the other map.
        output: step of the output.

    Attributes:
        overwrites: whether the other map may be changed, because nothing reads it afterwards.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, source: Step, added: Step, output: Step):
        super().__init__()
        self.overwrites = False
        self._convolve = _Convolve(*_quantised(convolution, norm), source, output, "relu")
        self._added = added

    @override
    def forward(self, bytes_NCHW: Tensor, added_NCHW: Tensor) -> Tensor:
        """The next map."""
        added_NCHW = added_NCHW.contiguous(memory_format=torch.channels_last)
        return self._convolve.onto(bytes_NCHW, added_NCHW if self.overwrites else added_NCHW.clone(), self._added)


class _Convolve:
    """OneDNN's convolution on bytes.

    Args:
        steps: the weights, int8 (K, C, k, k).
        scales: value of one step of each output channel, (K,).
        bias: float32, or None.
        geometry: stride, padding, dilation and groups.
        source: step of the input.
        output: step of the output; None: the output is float32.
        activation: relu or none.
    """

    def __init__(
        self,
        steps: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        geometry: tuple[Any, ...],
        source: Step,
        output: Step | None,
        activation: str,
    ):
        self._to_lay_out = (steps, scales, *source, *geometry)
        self._weight_for = BySize(self._laid_out)
        self._source = source
        self._scales = scales, torch.zeros(len(steps), dtype=torch.int32)
        to = (1.0, 0, torch.float32) if output is None else (*output, torch.uint8)
        self._settings = (bias, *geometry, *to)
        self._activation = (activation, [None], "")

    def __call__(self, bytes_NCHW: Tensor) -> Tensor:
        """The next map."""
        operands = self._operands(bytes_NCHW)
        output: Tensor = torch.ops.onednn.qconv_pointwise(*operands, *self._settings, *self._activation)
        return output

    def onto(self, bytes_NCHW: Tensor, added_NKHW: Tensor, added: Step) -> Tensor:
        """The next map: the other one, with this convolution added to it where it lies."""
        operands, addition = self._operands(bytes_NCHW), (*added, "sum", None)
        # it also returns a copy, which nobody needs
        torch.ops.onednn.qconv2d_pointwise.binary(*operands, added_NKHW, *self._settings, *addition, *self._activation)
        return added_NKHW

    def _operands(self, bytes_NCHW: Tensor) -> tuple[Any, ...]:
        return (bytes_NCHW, *self._source, self._weight_for(bytes_NCHW.shape), *self._scales)

    def _laid_out(self, size: Size) -> Tensor:
        weight: Tensor = torch.ops.onednn.qconv_prepack(*self._to_lay_out, list(size))
        return weight


def _quantised(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor, Tensor | None, Any]:
    """Steps, scales, bias and geometry of a convolution and the batch norm after it."""
    weight, bias = folded(convolution, norm)
    padding: Any = convolution.padding
    geometry = (list(convolution.stride), list(padding), list(convolution.dilation), convolution.groups)
    return (*quantised_weight(weight), bias, geometry)


def quantised_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as int8 within 7 bits, and the value of one step of each output channel."""
    scales = (weight.abs().amax((1, 2, 3)) / WEIGHT_MAX).clamp(min=_TINY)
    steps = (weight / scales.view(-1, 1, 1, 1)).round().clamp(-WEIGHT_MAX, WEIGHT_MAX)
    return steps.to(torch.int8), scales


class ByteMean(nn.Module):
    """The average over channels of a map of bytes, float32 (N, 1, H, W); exact for the integers.

    It is a convolution with ones, and faster than ATen's mean of float32.

    Args:
        channels: number of the map's channels.
        scale: value of one step of the map.
    """

    def __init__(self, channels: int, scale: float):
        super().__init__()
        ones = torch.ones(1, channels, 1, 1, dtype=torch.int8)
        geometry = ([1, 1], [0, 0], [1, 1], 1)
        self._convolve = _Convolve(ones, torch.tensor([1 / channels]), None, geometry, Step(scale, 0), None, "none")

    @override
    def forward(self, bytes_NCHW: Tensor) -> Tensor:
        """The average."""
        return self._convolve(bytes_NCHW)


class BytePooling(nn.Module):
    """Max pooling of bytes with padding 0; ATen's own refuses channels_last maps of more than 127 pixels.

    Args:
        kernel: rows and columns.
        stride: rows and columns.
        padding: rows and columns, on both sides.
    """

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]):
        super().__init__()
        self._kernel, self._stride, self._padding = kernel, stride, padding

    @override
    def forward(self, bytes_NCHW: Tensor) -> Tensor:
        """The maxima."""
        for axis in (2, 3):
            bytes_NCHW = self._along(axis, bytes_NCHW)
        return bytes_NCHW

    def _along(self, axis: int, bytes_NCHW: Tensor) -> Tensor:
        kernel, stride, padding = (pair[axis - 2] for pair in (self._kernel, self._stride, self._padding))
        if padding:
            around = (0, 0, padding, padding) if axis == 2 else (padding, padding)
            bytes_NCHW = F.pad(bytes_NCHW, around)
        count = (bytes_NCHW.shape[axis] - kernel) // stride + 1
        stop = (count - 1) * stride + 1
        slices = [_slice(bytes_NCHW, axis, first, first + stop, stride) for first in range(kernel)]
        largest = slices[0]
        for shifted in slices[1:]:
            largest = torch.maximum(largest, shifted)
        return largest


def _slice(tensor: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
    index = [slice(None)] * axis + [slice(start, stop, step)]
    return tensor[tuple(index)]


class ToBytes(nn.Module):
    """Float32 to bytes: the nearest step, limited to the first and last one.

    Args:
        step: step of the bytes.
    """

    def __init__(self, step: Step):
        super().__init__()
        self._step = step

    @override
    def forward(self, map_NCHW: Tensor) -> Tensor:
        """The bytes, channels_last."""
        scale, zero = self._step
        steps = (map_NCHW / scale).round_().add_(zero).clamp_(0, BYTE_MAX)
        return steps.to(torch.uint8).contiguous(memory_format=torch.channels_last)


class FromBytes(nn.Module):
    """Bytes to float32.

    Args:
        step: step of the bytes.
    """

    def __init__(self, step: Step):
        super().__init__()
        self._step = step

    @override
    def forward(self, bytes_NCHW: Tensor) -> Tensor:
        """The map."""
        scale, zero = self._step
        steps_NCHW = bytes_NCHW.float()
        return (steps_NCHW.sub_(zero) if zero else steps_NCHW).mul_(scale)
