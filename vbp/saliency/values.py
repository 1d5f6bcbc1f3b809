"""What the operations of a network give, seen from the pixels of its input.

A value computed from the input is one of three things: a `Map`, whose rows and columns are still those of the image;
a `Vector`, which has no pixels left, as behind global pooling or flattening; or `Unknown`, where pixels were moved or
mixed by an operation that is not followed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn
from torch.fx import Node

from vbp.saliency import operations
from vbp.saliency.geometry import Geometry


@dataclass(frozen=True)
class Map:
    """A tensor with pixels."""

    rank: int = 4
    """How many axes the tensor has, and which of them are its rows and columns."""
    rows: int = 2
    columns: int = 3
    signed: bool = True
    """Whether values may be negative."""
    several: bool = False
    """It is a tuple of such tensors."""
    kind: Literal["other", "convolution", "activation", "addition", "concatenation", "product"] = "other"
    """The operation that made it; the last three join several maps, and a difference counts as a product."""
    sources: tuple[Node, ...] = ()
    """The maps that it was made of."""
    step: Geometry | None = None
    """How its pixels lie over those of its sources; None: pixel by pixel."""

    @property
    def joins(self) -> bool:
        """Whether it was made of several maps by adding, concatenating or multiplying them."""
        return self.kind in ("addition", "concatenation", "product")

    @property
    def spatial(self) -> tuple[int, int]:
        """The axes of rows and columns."""
        return self.rows, self.columns


@dataclass(frozen=True)
class Vector:
    """A tensor without pixels."""


@dataclass(frozen=True)
class Unknown:
    """A tensor with pixels that cannot be followed."""

    reason: str


Value = Map | Vector | Unknown


@dataclass(frozen=True)
class Call:
    """An operation on values that are computed from the input."""

    node: Node
    model: nn.Module
    values: dict[Node, Value]
    """What the operations before it gave."""

    @property
    def operation(self) -> Any:
        """The module type, function or method name that it calls."""
        return operations.operation_of(self.node, self.model)

    @property
    def sources(self) -> tuple[Node, ...]:
        """The maps that it reads."""
        return tuple(node for node in self.node.all_input_nodes if isinstance(self.values.get(node), Map))

    @property
    def map(self) -> Map:
        """The first of them."""
        return self.maps[0]

    @property
    def maps(self) -> list[Map]:
        """What `sources` hold."""
        return [value for node in self.sources if isinstance(value := self.values[node], Map)]

    def terms(self, kind: str) -> tuple[Node, ...]:
        """The maps that it reads; a sum of sums, or a concatenation of such, is one whatever its brackets."""
        terms: list[Node] = []
        for node, one in zip(self.sources, self.maps, strict=True):
            terms += one.sources if one.kind == kind and len(node.users) == 1 else (node,)
        return tuple(terms)

    def arguments(self, *names: str) -> dict[str, Any]:
        """Its arguments, with these names in order; a module's are its attributes."""
        return operations.arguments(self.node, self.model, *names)

    def axes(self, name: str) -> list[int]:
        """The arguments from the second on as axes, counted from the front."""
        given = self.node.kwargs.get(name, self.node.args[1:])
        return [axis % self.map.rank for axis in flat(given)]

    def result(self, **changes: Any) -> Map:
        """The first map with these changes, made by this call."""
        return replace(self.map, **{"kind": "other", "step": None, **changes, "sources": self.sources})

    def unknown(self, what: str) -> Unknown:
        """Its result where its pixels cannot be followed; `what` continues "the network has an operation"."""
        name = operations.name_of(self.node)
        if self.node.op == "call_module":
            name += f" ({type(operations.module_of(self.node, self.model)).__name__})"
        return Unknown(f"{type(self.model).__name__} has an operation {what}: {name}.")


def flat(values: Any) -> list[Any]:
    """The arguments of an operation that takes them one by one or as one sequence."""
    if not isinstance(values, tuple | list):
        return [values]
    return list(values[0]) if len(values) == 1 and isinstance(values[0], tuple | list) else list(values)
