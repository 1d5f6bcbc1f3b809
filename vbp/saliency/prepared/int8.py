"""A forward pass with its convolutions in 8-bit integers, for CPUs; see `byte_layers` for the arithmetic.

Convolutions, max pooling, averages, and the additions that end residual blocks take bytes. Other operations stay in
float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from torch.fx import GraphModule, Node

from vbp.errors import UsageError
from vbp.saliency.forward import ForwardPass, channel_mean, last_tap, positive_mean
from vbp.saliency.operations import module_of, window_of
from vbp.saliency.prepared.byte_layers import (
    ByteMean,
    BytePooling,
    FromBytes,
    QuantisedAddition,
    QuantisedConvolution,
    Step,
    ToBytes,
    can_add,
)
from vbp.saliency.prepared.chains import modules_of, nodes_until
from vbp.saliency.prepared.quantisable import Addition, quantisable_additions, quantisable_chains, reads_unchanged


@dataclass(frozen=True)
class Scales:
    """The results of calibration: plain data, from which every machine computes the same weights."""

    ranges: Mapping[str, tuple[float, float]]
    """Smallest and largest value of each map, by the name of its node in the graph."""
    floats: tuple[str, ...] = ()
    """Names in the graph of convolutions that stay in float32."""
    additions: tuple[str, ...] = ()
    """Names in the graph of additions in integers; the scales of older runs have none, and go on without."""

    def leaving(self, floats: Sequence[str]) -> Scales:
        """The same with these convolutions in float32."""
        return replace(self, floats=tuple(floats))

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        ranges = {name: list(ends) for name, ends in self.ranges.items()}
        return {"ranges": ranges, "floats": list(self.floats), "additions": list(self.additions)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Scales from the result of `as_json`."""
        ranges = {str(name): (float(least), float(largest)) for name, (least, largest) in value["ranges"].items()}
        return cls(ranges, tuple(value["floats"]), tuple(value.get("additions", ())))


def quantised(forward: ForwardPass, scales: Scales) -> ForwardPass:
    """The same pass as far as the last tap, in integers where possible; to be run without gradients.

    Args:
        forward: a float32 pass on the CPU; it is not changed.
        scales: the scales of this network.

    Raises:
        UsageError: the scales belong to another network, or this torch has no quantised convolutions, or none that
            add where the scales tell it to.
    """
    if scales.additions and not can_add():
        raise UsageError(
            f"precision 'int8': torch {torch.__version__} cannot add within a convolution of integers here, and these "
            "scales were calibrated where it can; run it there, or calibrate again."
        )
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
        forward = ForwardPass(module, self._graph)
        chains = quantisable_chains(forward)
        self._chains = {chain[0]: chain for chain in chains if chain[0].name not in scales.floats}
        self._poolings = {node for node in self._nodes if self._is_pooling(node) and reads_unchanged(node, module)}
        additions = quantisable_additions(forward).items()
        self._additions = {node: each for node, each in additions if node.name in scales.additions and self._pays(each)}
        self._summed = {each.chain[0] for each in self._additions.values()}
        """Convolutions that are computed together with an addition."""
        self._bytes: dict[Node, _Bytes] = {}
        """Maps in bytes, by the node of the same map in float32."""
        self._names: dict[Node, str] = {}
        """Names of the replaced nodes."""
        self._sums: list[tuple[Node, QuantisedAddition]] = []
        """Additions in integers, and their layers."""

    def run(self) -> None:
        """Rewrite the graph."""
        for node in self._nodes:
            source = node.args[0] if node.args else None
            found = self._bytes.get(source) if isinstance(source, Node) else None
            if node in self._chains and node not in self._summed:
                self._convolution(self._chains[node])
            elif node in self._additions:
                self._addition(self._additions[node])
            elif found and found.channels and node in self._poolings:
                self._pooling(node, found)
            elif found and found.channels and node.target in (channel_mean, positive_mean):
                self._replace(node, self._before(node, ByteMean(found.channels, found.step.scale), found.node))
        for copy in reversed(self._bytes):
            if not copy.users:
                self._graph.erase_node(copy)
        for node, layer in self._sums:
            *source, added = node.all_input_nodes  # one node, if it is added to its own convolution
            layer.overwrites = bool(source) and max(added.users) is node

    def _convolution(self, chain: list[Node]) -> None:
        convolution, norm, activation = modules_of(chain, self._module)
        source = self._in_bytes(chain[0])
        last = chain[-1]
        step = self._step_of(last) if self._goes_on_in_bytes(last, activation) else None
        layer = QuantisedConvolution(convolution, norm, activation, source.step, step)
        new = self._before(last, layer, source.node)
        if step is None:
            self._replace(last, new)
        else:
            self._replace_by_bytes(last, _Bytes(new, step, convolution.out_channels))
        for node in reversed(chain[:-1]):
            self._graph.erase_node(node)

    def _goes_on_in_bytes(self, last: Node, activation: str) -> bool:
        """Whether the output of a chain is wanted in bytes."""
        if activation == "none":
            return all(user in self._additions and self._additions[user].other is last for user in last.users)
        return last is not self._nodes[-1] and any(map(self._takes_bytes, last.users))

    def _pays(self, addition: Addition) -> bool:
        """Whether the sum is wanted in bytes; if a convolution reads it, its range is known."""
        known = addition.relu.name in self._ranges
        return known and addition.chain[0] in self._chains and self._goes_on_in_bytes(addition.relu, "relu")

    def _addition(self, addition: Addition) -> None:
        """The addition in integers if its other map is in bytes; else the convolution alone."""
        chain, relu = addition.chain, addition.relu
        source, added = self._in_bytes(chain[0]), self._bytes.get(addition.other)
        if added is None:
            self._convolution(chain)
            return
        convolution, norm, _ = modules_of(chain, self._module)
        step = self._step_of(relu)
        layer = QuantisedAddition(convolution, norm, source.step, added.step, step)
        new = self._before(relu, layer, source.node, added.node)
        self._sums.append((new, layer))
        self._replace_by_bytes(relu, _Bytes(new, step, convolution.out_channels))
        for node in reversed((*chain, addition.node)):
            self._graph.erase_node(node)

    def _pooling(self, node: Node, source: _Bytes) -> None:
        window: Any = window_of(node, self._module)
        new = self._before(node, BytePooling(window.kernel, window.stride, window.before), source.node)
        self._replace_by_bytes(node, source._replace(node=new))

    def _takes_bytes(self, node: Node) -> bool:
        return node in self._chains or node in self._poolings

    def _is_pooling(self, node: Node) -> bool:
        if node.op != "call_module" or type(module_of(node, self._module)) is not nn.MaxPool2d:
            return False
        module: Any = module_of(node, self._module)
        window: Any = window_of(node, self._module)
        return window.dilation == (1, 1) and not (module.ceil_mode or module.return_indices or window.kernel == (1, 1))

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

    def _before(self, place: Node, layer: nn.Module, *sources: Node) -> Node:
        """A new node that calls `layer`, put before the node `place`."""
        name = f"int8_{len(list(self._module.children()))}"
        self._module.add_submodule(name, layer)
        with self._graph.inserting_before(place):
            return self._graph.call_module(name, sources)

    def _replace(self, old: Node, new: Node) -> None:
        self._names[new] = old.name
        old.replace_all_uses_with(new)
        self._graph.erase_node(old)

    def _replace_by_bytes(self, old: Node, new: _Bytes) -> None:
        copy = self._before(old, FromBytes(new.step), new.node)
        self._bytes[copy] = new
        self._replace(old, copy)
