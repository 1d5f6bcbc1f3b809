"""A forward pass with its convolutions in 8-bit integers, for CPUs.

Maps after a ReLU are stored as bytes: 0 is 0, and 255 is the largest value that occurred in calibration. A convolution
takes bytes, adds products in 32-bit integers, and returns bytes, or float32 if the next operation does not take
integers. Operations other than convolution, max pooling and average stay in float32.

Weights have 7 bits, because without VNNI a processor adds two products in 16 bits, which 8-bit weights would overflow.
So sums are exact on every processor; when a sum is rounded to a byte, two processors may differ by one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, Self

import torch
from torch import Size, Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F
from typing_extensions import override

from vbp.errors import UsageError
from vbp.saliency.forward import ForwardPass, channel_mean, last_tap, positive_mean
from vbp.saliency.operations import module_of, window_of
from vbp.saliency.prepared.chains import RELU, chain_of, folded, has_changed, is_convolution, modules_of, nodes_until
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


@dataclass(frozen=True)
class Scales:
    """The results of calibration: plain data, from which every machine computes the same weights."""

    ranges: Mapping[str, tuple[float, float]]
    """Smallest and largest value of each map, by the name of its node in the graph."""
    floats: tuple[str, ...] = ()
    """Names in the graph of convolutions that stay in float32."""

    def leaving(self, floats: Sequence[str]) -> Scales:
        """The same with these convolutions in float32."""
        return replace(self, floats=tuple(floats))

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"ranges": {name: list(ends) for name, ends in self.ranges.items()}, "floats": list(self.floats)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Scales from the result of `as_json`."""
        ranges = {str(name): (float(least), float(largest)) for name, (least, largest) in value["ranges"].items()}
        return cls(ranges, tuple(value["floats"]))


def quantised(forward: ForwardPass, scales: Scales) -> ForwardPass:
    """The same pass as far as the last tap, in integers where possible; to be run without gradients.

    Args:
        forward: a float32 pass on the CPU; it is not changed.
        scales: the scales of this network.

    Raises:
        UsageError: the scales belong to another network, or this torch has no quantised convolutions.
    """
    module = GraphModule(forward.model, deepcopy(forward.graph))
    try:
        _Rewriting(module, scales).run()
    except (AttributeError, RuntimeError) as error:
        raise UsageError(
            f"precision 'int8': torch {torch.__version__} has no quantised convolutions for this processor ({error}); "
            "use float32 or bfloat16."
        ) from error
    module.graph.lint()
    return ForwardPass(module, module.graph)


def quantisable(forward: ForwardPass) -> list[list[Node]]:
    """The chains whose convolution can be computed in integers, from the input upwards."""
    model = forward.model
    nodes = nodes_until(last_tap(forward.graph))
    convolutions = [node for node in nodes if is_convolution(node, model) and not has_changed(node, model)]
    return [chain_of(node, model, RELU) for node in convolutions]


@cache
def can_quantise(device: str) -> bool:
    """Whether torch can multiply 8-bit integers here. It has no public function that says so, so it is tried once.

    Args:
        device: only cpu can.
    """
    try:
        layer = QuantisedConvolution(nn.Conv2d(4, 4, 1, device="cpu"), None, "relu", Step(1.0, 0), None)
        layer(torch.zeros(1, 4, 2, 2, dtype=torch.uint8, device="cpu"))
    except (AttributeError, RuntimeError):
        return False
    return device == "cpu"


class QuantisedConvolution(nn.Module):
    """Convolution, batch norm and ReLU in one, on bytes.

    Args:
        convolution: a convolution with zero padding, given in numbers.
        norm: batch norm of its output, or None.
        activation: `relu` or `none`.
        source: step of the input.
        output: step of the output, which needs a ReLU; None: the output is float32.
    """

    def __init__(
        self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, activation: str, source: Step, output: Step | None
    ):
        super().__init__()
        weight, bias = folded(convolution, norm)
        steps, scales = quantised_weight(weight)
        padding: Any = convolution.padding
        geometry = (list(convolution.stride), list(padding), list(convolution.dilation), convolution.groups)
        self._convolve = _Convolve(steps, scales, bias, source, geometry, output, activation)

    @override
    def forward(self, bytes_NCHW: Tensor) -> Tensor:
        """The next map."""
        return self._convolve(bytes_NCHW)


class _Convolve:
    """OneDNN's convolution on bytes.

    Args:
        steps: the weights, int8 (K, C, k, k).
        scales: value of one step of each output channel, (K,).
        bias: float32, or None.
        source: step of the input.
        geometry: stride, padding, dilation and groups.
        output: step of the output; None: the output is float32.
        activation: relu or none.
    """

    def __init__(
        self,
        steps: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        source: Step,
        geometry: tuple[Any, ...],
        output: Step | None,
        activation: str,
    ):
        to = (1.0, 0, torch.float32) if output is None else (*output, torch.uint8)
        self._to_lay_out = (steps, scales, *source, *geometry)
        self._weight_for = BySize(self._laid_out)
        self._source = source
        zeros = torch.zeros(len(steps), dtype=torch.int32)
        self._settings = (scales, zeros, bias, *geometry, *to, activation, [None], "")

    def __call__(self, bytes_NCHW: Tensor) -> Tensor:
        """The next map."""
        weight = self._weight_for(bytes_NCHW.shape)
        output: Tensor = torch.ops.onednn.qconv_pointwise(bytes_NCHW, *self._source, weight, *self._settings)
        return output

    def _laid_out(self, size: Size) -> Tensor:
        weight: Tensor = torch.ops.onednn.qconv_prepack(*self._to_lay_out, list(size))
        return weight


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
        self._convolve = _Convolve(ones, torch.tensor([1 / channels]), None, Step(scale, 0), geometry, None, "none")

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
    """Bytes with zero 0 to float32.

    Args:
        scale: value of one step.
    """

    def __init__(self, scale: float):
        super().__init__()
        self._scale = scale

    @override
    def forward(self, bytes_NCHW: Tensor) -> Tensor:
        """The map."""
        return bytes_NCHW.float().mul_(self._scale)


class _Bytes(NamedTuple):
    """A map in bytes."""

    node: Node
    step: Step
    channels: int
    """0 if they were made from float32, which then exists as well."""


class _Rewriting:
    """Rewrites a graph to integers, from the input upwards.

    A map in bytes also gets a float32 copy for nodes that read floats; the copy is removed if nothing reads it.
    """

    def __init__(self, module: GraphModule, scales: Scales):
        self._module, self._graph, self._ranges = module, module.graph, scales.ranges
        self._nodes = nodes_until(last_tap(self._graph))
        chains = quantisable(ForwardPass(module, self._graph))
        self._chains = {chain[0]: chain for chain in chains if chain[0].name not in scales.floats}
        self._bytes: dict[Node, _Bytes] = {}
        """Maps in bytes, by the node of the same map in float32."""
        self._names: dict[Node, str] = {}
        """Names of the replaced nodes."""

    def run(self) -> None:
        """Rewrite the graph."""
        for node in self._nodes:
            source = node.args[0] if node.args else None
            found = self._bytes.get(source) if isinstance(source, Node) else None
            if node in self._chains:
                self._convolution(self._chains[node])
            elif found and found.channels and self._is_pooling(node):
                self._pooling(node, found)
            elif found and found.channels and node.target in (channel_mean, positive_mean):
                self._replace(node, self._before(node, ByteMean(found.channels, found.step.scale), found.node))
        for copy in reversed(self._bytes):
            if not copy.users:
                self._graph.erase_node(copy)

    def _convolution(self, chain: list[Node]) -> None:
        convolution, norm, activation = modules_of(chain, self._module)
        source = self._in_bytes(chain[0])
        last = chain[-1]
        within = activation != "none" and last is not self._nodes[-1] and any(map(self._takes_bytes, last.users))
        step = self._step_of(last) if within else None
        layer = QuantisedConvolution(convolution, norm, activation, source.step, step)
        new = self._before(last, layer, source.node)
        if step is None:
            self._replace(last, new)
        else:
            self._replace_by_bytes(last, _Bytes(new, step, convolution.out_channels))
        for node in reversed(chain[:-1]):
            self._graph.erase_node(node)

    def _pooling(self, node: Node, source: _Bytes) -> None:
        window: Any = window_of(node, self._module)
        new = self._before(node, BytePooling(window.kernel, window.stride, window.before), source.node)
        self._replace_by_bytes(node, source._replace(node=new))

    def _takes_bytes(self, node: Node) -> bool:
        return node in self._chains or (node in self._nodes and self._is_pooling(node))

    def _is_pooling(self, node: Node) -> bool:
        if node.op != "call_module" or type(module_of(node, self._module)) is not nn.MaxPool2d:
            return False
        module: Any = module_of(node, self._module)
        window: Any = window_of(node, self._module)
        return window.dilation == (1, 1) and not (module.ceil_mode or module.return_indices)

    def _in_bytes(self, reader: Node) -> _Bytes:
        """The input of `reader` in bytes, made from float32 if it does not exist yet."""
        source = reader.all_input_nodes[0]
        if source not in self._bytes:
            step = self._step_of(source)
            self._bytes[source] = _Bytes(self._before(reader, ToBytes(step), source), step, 0)
        return self._bytes[source]

    def _step_of(self, node: Node) -> Step:
        name = self._names.get(node, node.name)
        if name not in self._ranges:
            raise UsageError(f"calibration: {name} has no scale; these scales are of another network or torch.")
        return Step.over(*self._ranges[name])

    def _before(self, place: Node, layer: nn.Module, source: Node) -> Node:
        """A new node that calls `layer`, put before the node `place`."""
        name = f"int8_{len(list(self._module.children()))}"
        self._module.add_submodule(name, layer)
        with self._graph.inserting_before(place):
            return self._graph.call_module(name, (source,))

    def _replace(self, old: Node, new: Node) -> None:
        self._names[new] = old.name
        old.replace_all_uses_with(new)
        self._graph.erase_node(old)

    def _replace_by_bytes(self, old: Node, new: _Bytes) -> None:
        copy = self._before(old, FromBytes(new.step.scale), new.node)
        self._bytes[copy] = new
        self._replace(old, copy)
