"""Values in a network, and the calls that make them; `vbp.saliency.pixels` says what kinds of values there are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.fx import Node

from vbp.saliency import operations
from vbp.saliency.geometry import Geometry
from vbp.saliency.pixels import MapOf, Unknown, Vector
from vbp.saliency.shapes import Sizes


@dataclass(frozen=True)
class Map(MapOf[Node, Geometry]):
    """A tensor with pixels."""

    several: bool = False
    """Whether it is a tuple of such tensors."""
    is_shared: bool = False
    """Whether the images' axis has other values of each image side by side, as in ``x.view(1, b * c, h, w)``."""
    is_cut: bool = False
    """Whether places within a square of pixels lie among its channels, where no layer has mixed them yet."""
    statistic: Node | None = None
    """The map whose mean, norm or variance over the channels it is, or is computed from; None: it is none."""


Value = Map | Vector | Unknown


@dataclass(frozen=True)
class Call:
    """An operation on values that are computed from the input."""

    node: Node
    model: nn.Module
    values: dict[Node, Value]
    """The values of the operations before it."""
    sizes: Sizes
    """The sizes of all operations."""

    @property
    def operation(self) -> Any:
        """The module type, function or method name that it calls."""
        return operations.operation_of(self.node, self.model)

    @property
    def sources(self) -> tuple[Node, ...]:
        """The maps that it reads."""
        return tuple(node for node in operations.data_of(self.node) if isinstance(self.values.get(node), Map))

    @property
    def map(self) -> Map:
        """The first map that it reads."""
        return self.maps[0]

    @property
    def maps(self) -> list[Map]:
        """The maps of `sources`."""
        return [value for node in self.sources if isinstance(value := self.values[node], Map)]

    def terms(self, kind: str) -> tuple[Node, ...]:
        """The maps that it reads; nested sums, or nested concatenations, are taken as one."""
        terms: list[Node] = []
        for node in self.sources:
            inner = self._behind_unchanged(node)
            one = self.values[inner]
            if isinstance(one, Map) and one.kind == kind and len(inner.users) == 1:
                terms += one.sources
            else:
                terms.append(node)
        return tuple(terms)

    def _behind_unchanged(self, node: Node) -> Node:
        """The node before operations that change no value, as dropout in evaluation, if nothing else reads theirs."""
        while len(node.users) == 1 and operations.operation_of(node, self.model) in operations.UNCHANGED:
            (node,) = operations.data_of(node)
        return node

    def arguments(self, *names: str) -> dict[str, Any]:
        """The call's arguments, with these names in order; for a module, its attributes."""
        return operations.arguments(self.node, self.model, self.sizes, *names)

    def axes(self, name: str) -> list[int]:
        """The arguments after the first as axes, counted from the front."""
        given = self.node.kwargs.get(name, self.node.args[1:])
        return [axis % self.map.rank for axis in flat(given)]

    def result(self, **changes: Any) -> Map:
        """The first map with these changes, made by this call."""
        made: dict[str, Any] = {"kind": "other", "step": None, **changes, "sources": self.sources}
        made.setdefault("is_cut", self.map.is_cut and made["kind"] != "convolution")
        pixel_by_pixel = made["kind"] == "other" and made["step"] is None
        return replace(self.map, **{"statistic": self.map.statistic if pixel_by_pixel else None, **made})

    def origin(self, node: Node) -> Node:
        """The map from which one was made pixel by pixel, other than by joining, activating or convolving maps."""
        while True:
            value = self.values[node]
            assert isinstance(value, Map)
            sources = [one for one in value.sources if not self._is_statistic(one)]
            if value.kind != "other" or value.step is not None or len(sources) != 1:
                return node
            (node,) = sources

    def _is_statistic(self, node: Node) -> bool:
        value = self.values[node]
        return isinstance(value, Map) and value.statistic is not None

    def unknown(self, what: str) -> Unknown:
        """The result if its pixels cannot be followed; `what` continues "the network has an operation"."""
        name = operations.name_of(self.node)
        if self.node.op == "call_module":
            name += f" ({type(operations.module_of(self.node, self.model)).__name__})"
        return Unknown(f"{type(self.model).__name__} has an operation {what}: {name}.")


def flat(values: Any) -> list[Any]:
    """The arguments of an operation that takes them one by one or as one sequence."""
    if not isinstance(values, tuple | list):
        return [values]
    return list(values[0]) if len(values) == 1 and isinstance(values[0], tuple | list) else list(values)
