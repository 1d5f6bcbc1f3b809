"""A forward pass with its convolutions in 8-bit integers, for CPUs.

Maps behind a ReLU are kept as bytes: 0 is 0, and 255 the largest value that calibration has seen. A convolution takes
bytes, adds up products in 32-bit integers, and gives bytes again, or float32 where what follows is not done in
integers. What is no convolution, max pooling or average stays in float32.

Weights have 7 bits: without VNNI a processor adds two products in 16 bits, which 8-bit weights overflow. So no sum is
wrong on any processor; where a sum is rounded to a byte, two processors may differ by one step.
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
from vbp.saliency.prepared.chains import chain_of, folded, is_convolution, modules_of, nodes_until
from vbp.saliency.prepared.layouts import BySize

WEIGHT_MAX = 63
"""Of 7 bits with sign: 255 * 63 * 2 fits 16 bits."""
BYTE_MAX = 255
MIDDLE = 128
"""Stands for 0 in maps with negative values."""


class Step(NamedTuple):
    """How bytes stand for numbers: ``scale * (byte - zero)``."""

    scale: float
    zero: int

    @classmethod
    def over(cls, least: float, largest: float) -> Step:
        """That which reaches from the least to the largest value of a map."""
        if least >= 0:
            return cls(max(largest, _TINY) / BYTE_MAX, 0)
        return cls(max(-least, largest) / (BYTE_MAX - MIDDLE), MIDDLE)


_TINY = 1e-30
"""Of a map that was 0 in every image."""


@dataclass(frozen=True)
class Scales:
    """What calibration found: plain data, from which every machine makes the same weights."""

    ranges: Mapping[str, tuple[float, float]]
    """Least and largest value of a map, by the graph's name of what gives it."""
    floats: tuple[str, ...] = ()
    """Convolutions that stay in float32, by the graph's name."""

    def leaving(self, floats: Sequence[str]) -> Scales:
        """The same with these convolutions in float32."""
        return replace(self, floats=tuple(floats))

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"ranges": {name: list(ends) for name, ends in self.ranges.items()}, "floats": list(self.floats)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What `as_json` gave."""
        ranges = {str(name): (float(least), float(largest)) for name, (least, largest) in value["ranges"].items()}
        return cls(ranges, tuple(value["floats"]))


def quantised(forward: ForwardPass, scales: Scales) -> ForwardPass:
    """The same pass in integers as far as the last tap, where it can be; to be run without gradients.

    Args:
        forward: a float32 pass on the CPU; it stays as it is.
        scales: of this network.

    Raises:
        UsageError: the scales are of another network, or this torch has no quantised convolutions.
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
    """The convolutions that can be done in integers, each with its batch norm and ReLU, from the input upwards."""
    model = forward.model
    nodes = nodes_until(last_tap(forward.graph))
    convolutions = [node for node in nodes if is_convolution(node, model) and not _has_changed(node, model)]
    return [chain_of(node, model) for node in convolutions]


def _has_changed(reader: Node, model: nn.Module) -> bool:
    """Whether an operation in place changes a node's input before the node reads it."""
    return any(user < reader and _is_in_place(user, model) for user in reader.all_input_nodes[0].users)


def _is_in_place(node: Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(module_of(node, model), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") or name in _IN_PLACE or bool(node.kwargs.get("inplace"))


_IN_PLACE = frozenset(("iadd", "isub", "imul", "itruediv"))


@cache
def can_quantise(device: str) -> bool:
    """Whether this torch multiplies 8-bit integers here. It has no public name for that: so it is tried once.

    Args:
        device: cpu or another, which cannot.
    """
    try:
        layer = QuantisedConvolution(nn.Conv2d(4, 4, 1, device="cpu"), None, True, Step(1.0, 0), None)
        layer(torch.zeros(1, 4, 2, 2, dtype=torch.uint8, device="cpu"))
    except (AttributeError, RuntimeError):
        return False
    return device == "cpu"


class QuantisedConvolution(nn.Module):
    """Convolution, batch norm and ReLU in one, of bytes.

    Args:
        convolution: with zero padding, given in numbers.
        norm: of its output.
        relu: whether a ReLU follows.
        source: of the input.
        output: of the output, with a ReLU; None: it is float32.
    """

    def __init__(
        self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, relu: bool, source: Step, output: Step | None
    ):
        super().__init__()
        weight, bias = folded(convolution, norm)
        steps, scales = quantised_weight(weight)
        padding: Any = convolution.padding
        geometry = (list(convolution.stride), list(padding), list(convolution.dilation), convolution.groups)
        self._convolve = _Convolve(steps, scales, bias, source, geometry, output, "relu" if relu else "none")

    @override
    def forward(self, bytes_NCHW: Tensor) -> Tensor:
        """The next map."""
        return self._convolve(bytes_NCHW)


class _Convolve:
    """OneDNN's convolution of bytes.

    Args:
        steps: the weights, int8 (K, C, k, k).
        scales: what a step of each output channel is worth, (K,).
        bias: of float32, or None.
        source: of the input.
        geometry: stride, padding, dilation and groups.
        output: of the output; None: it is float32.
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
    """Weights as int8 within 7 bits, and what a step of each output channel is worth."""
    scales = (weight.abs().amax((1, 2, 3)) / WEIGHT_MAX).clamp(min=_TINY)
    steps = (weight / scales.view(-1, 1, 1, 1)).round().clamp(-WEIGHT_MAX, WEIGHT_MAX)
    return steps.to(torch.int8), scales


class ByteMean(nn.Module):
    """The average over channels of a map of bytes, float32 (N, 1, H, W): that of the integers, exactly.

    It is a convolution with ones, and faster than ATen's mean of float32.

    Args:
        channels: of the map.
        scale: what a step of it is worth.
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
    """Max pooling of bytes, whose padding is 0; ATen's own refuses maps of more than 255 of them.

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
        kernel, stride, padding = (each[axis - 2] for each in (self._kernel, self._stride, self._padding))
        if padding:
            around = (0, 0, padding, padding) if axis == 2 else (padding, padding)
            bytes_NCHW = F.pad(bytes_NCHW, around)
        count = (bytes_NCHW.shape[axis] - kernel) // stride + 1
        stop = (count - 1) * stride + 1
        slices = [_slice(bytes_NCHW, axis, first, first + stop, stride) for first in range(kernel)]
        largest = slices[0]
        for each in slices[1:]:
            largest = torch.maximum(largest, each)
        return largest


def _slice(tensor: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
    index = [slice(None)] * axis + [slice(start, stop, step)]
    return tensor[tuple(index)]


class ToBytes(nn.Module):
    """Float32 as bytes: the nearest step, or the first or last one.

    Args:
        step: of the bytes.
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
    """Bytes whose zero is 0 as float32.

    Args:
        scale: what a step is worth.
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
    """0 where they were made of float32, which is there as well."""


class _Rewriting:
    """Puts integers into a graph, from the input upwards.

    Of a map in bytes there is a float32 copy as well, for readers of floats; where none is left, it goes again.
    """

    def __init__(self, module: GraphModule, scales: Scales):
        self._module, self._graph, self._ranges = module, module.graph, scales.ranges
        self._nodes = nodes_until(last_tap(self._graph))
        chains = quantisable(ForwardPass(module, self._graph))
        self._chains = {chain[0]: chain for chain in chains if chain[0].name not in scales.floats}
        self._bytes: dict[Node, _Bytes] = {}
        """By the same map in float32."""
        self._names: dict[Node, str] = {}
        """Of the nodes for which new ones stand."""

    def run(self) -> None:
        """Rewrite it."""
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
        convolution, norm, relu = modules_of(chain, self._module)
        source = self._in_bytes(chain[0])
        last = chain[-1]
        within = relu and last is not self._nodes[-1] and any(map(self._takes_bytes, last.users))
        step = self._step_of(last) if within else None
        layer = QuantisedConvolution(convolution, norm, relu, source.step, step)
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
        """The input of `reader` in bytes, made of float32 where there are none yet."""
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
        """A new node that does the layer's work, before another."""
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
