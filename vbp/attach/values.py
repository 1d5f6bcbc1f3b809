"""Values in an ONNX graph, and the nodes that make them; `vbp.saliency.pixels` says what kinds of values there are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import onnx
from onnx import NodeProto

from vbp.attach import operators
from vbp.attach.geometry import Geometry, Place
from vbp.attach.graph import Graph, attributes, described
from vbp.saliency.pixels import Kind, MapOf, Unknown, Vector


@dataclass(frozen=True)
class Map(MapOf[str, Geometry]):
    """A tensor with pixels; maps are named by their tensors."""


@dataclass(frozen=True)
class Reshaped(Unknown):
    """A map in another shape, as for a norm over groups of channels; its pixels are found again in their own shape."""

    source: str
    """The map."""


Value = Map | Vector | Unknown


@dataclass(frozen=True)
class Call:
    """A node that reads values that are computed from the input."""

    node: NodeProto
    graph: Graph
    values: dict[str, Value]
    """The values of the nodes before it, by tensor."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The node's attributes; texts are bytes."""
        return attributes(self.node)

    @property
    def data(self) -> list[str]:
        """The tensors whose values it reads."""
        return operators.data_of(self.node)

    @property
    def sources(self) -> tuple[str, ...]:
        """The maps that it reads."""
        return tuple(name for name in dict.fromkeys(self.data) if isinstance(self.values.get(name), Map))

    @property
    def map(self) -> Map:
        """The first map that it reads."""
        return self.maps[0]

    @property
    def maps(self) -> list[Map]:
        """The maps of `sources`."""
        return [value for name in self.sources if isinstance(value := self.values[name], Map)]

    @property
    def below(self) -> Place:
        """Where the first map lies in the graph."""
        return place_of(self.sources[0], self.map, self.graph)

    def constant(self, position: int, attribute: str = "") -> list[Any] | None:
        """A setting that is an input, or in older opsets an attribute, as a flat list; None if computed or left out."""
        if position < len(self.node.input) and self.node.input[position]:
            value = self.graph.constant(self.node.input[position])
            return None if value is None else value.reshape(-1).tolist()
        value = self.settings.get(attribute)
        return None if value is None else value if isinstance(value, list) else [value]

    def is_given(self, position: int) -> bool:
        """Whether an input that may be left out is there."""
        return position < len(self.node.input) and self.node.input[position] != ""

    def terms(self, kind: Kind) -> tuple[str, ...]:
        """The maps that it reads; nested sums, or nested concatenations, are taken as one."""
        terms: list[str] = []
        for name in self.sources:
            inner = self._behind_unchanged(name)
            one = self.values[inner]
            if isinstance(one, Map) and one.kind == kind and self._is_read_once(inner):
                terms += one.sources
            else:
                terms.append(name)
        return tuple(terms)

    def _behind_unchanged(self, name: str) -> str:
        """The tensor before nodes that change no value, if nothing else reads theirs."""
        while self._is_read_once(name) and (node := self.graph.producers.get(name)):
            if node.op_type not in operators.UNCHANGED:
                break
            name = node.input[0]
        return name

    def _is_read_once(self, name: str) -> bool:
        return len(self.graph.readers[name]) == 1 and name not in self.graph.outputs

    def result(self, **changes: Any) -> Map:
        """The first map with these changes, made by this node."""
        return replace(self.map, **{"kind": "other", "step": None, **changes, "sources": self.sources})

    def unknown(self, what: str) -> Unknown:
        """The result if its pixels cannot be followed; `what` continues "the graph has an operator"."""
        return Unknown(f"the graph has an operator {what}: {described(self.node)}.")


def place_of(tensor: str, found: Map, graph: Graph) -> Place:
    """Where a map lies in the graph."""
    shape = graph.shape(tensor)
    lengths = [shape[axis] if shape else None for axis in found.spatial]
    rows, columns = (length if isinstance(length, int) else None for length in lengths)
    return Place(tensor, *found.spatial, (rows, columns))


def is_of_onnx(node: NodeProto) -> bool:
    """Whether ONNX itself says what the operator does."""
    return node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type)
