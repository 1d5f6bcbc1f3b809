"""Follows the pixels of the input through every operation of a traced network.

A value computed from the input is one of three things: a `Map`, whose rows and columns are still those of the image;
a `Vector`, which has no pixels left, as behind global pooling or flattening; or `Unknown`, where pixels were moved or
mixed by an operation that is not followed. A vector that is multiplied into a map, as in squeeze-and-excitation, is
a gate: it leaves every pixel where it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn
from torch.fx import Graph, Node

from vbp.errors import ModelError
from vbp.saliency import operations
from vbp.saliency.geometry import Resampling, Step, Window
from vbp.saliency.operations import arguments, is_constant, operation_of


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
    step: Step | None = None
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


def follow(graph: Graph, model: nn.Module) -> dict[Node, Map]:
    """Every map of the network, in order of execution; the first is its input.

    Raises:
        ModelError: a convolution follows an operation that cannot be followed.
    """
    values: dict[Node, Value] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and not values:
            values[node] = Map()
        elif node.op.startswith("call") and not operations.asks_metadata(node):
            inputs = [values[source] for source in node.all_input_nodes if source in values]
            if inputs:
                values[node] = _value(_Call(node, model, values), inputs)
    return {node: value for node, value in values.items() if isinstance(value, Map)}


@dataclass(frozen=True)
class _Call:
    """An operation that reads at least one map."""

    node: Node
    model: nn.Module
    values: dict[Node, Value]

    @property
    def operation(self) -> Any:
        return operation_of(self.node, self.model)

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
        return [value for node in self.sources if isinstance(value := self.values[node], Map)]

    def terms(self, kind: str) -> tuple[Node, ...]:
        """The maps that it reads; a sum of sums, or a concatenation of such, is one whatever its brackets."""
        terms: list[Node] = []
        for node, one in zip(self.sources, self.maps, strict=True):
            terms += one.sources if one.kind == kind and len(node.users) == 1 else (node,)
        return tuple(terms)

    def arguments(self, *names: str) -> dict[str, Any]:
        return arguments(self.node, self.model, *names)

    def axes(self, name: str) -> list[int]:
        """The arguments from the second on as axes, counted from the front."""
        given = self.node.kwargs.get(name, self.node.args[1:])
        return [axis % self.map.rank for axis in _flat(given)]

    def result(self, **changes: Any) -> Map:
        """The first map with these changes, made by this call."""
        return replace(self.map, **{"kind": "other", "step": None, **changes, "sources": self.sources})

    def unknown(self, what: str) -> Unknown:
        name = operations.name_of(self.node)
        if self.node.op == "call_module":
            name += f" ({type(operations.module_of(self.node, self.model)).__name__})"
        return Unknown(f"{type(self.model).__name__} has an operation {what}: {name}.")


def _value(call: _Call, inputs: list[Value]) -> Value:
    unknown = next((value for value in inputs if isinstance(value, Unknown)), None)
    rule = next((rule for known, rule in _RULES if call.operation in known), None)
    if unknown:
        value: Value = unknown
    elif not call.sources:
        value = Vector()
    else:
        value = rule(call) if rule else call.unknown("that tracing does not know")
    if isinstance(value, Unknown) and call.operation in operations.CONVOLUTIONS:
        raise ModelError(value.reason)
    return value


def _activation(call: _Call) -> Value:
    return call.result(kind="activation", signed=operations.SIGNED_BY_ACTIVATION[call.operation])


def _unchanged(call: _Call) -> Value:
    return call.result()


def _normalisation(call: _Call) -> Value:
    return call.result(signed=True)


def _window(call: _Call) -> Value:
    if call.map.spatial != (call.map.rank - 2, call.map.rank - 1):
        return call.unknown("on an image whose last axes are not rows and columns")
    window = operations.window_of(call.node, call.model)
    if window is None:
        kernel = call.arguments("input", "kernel_size").get("kernel_size")
        return Vector() if _is_whole_size(kernel, call.values) else call.unknown("whose size is computed")
    if call.operation in operations.CONVOLUTIONS:
        return call.result(kind="convolution", signed=True, step=window)
    pads = call.operation in operations.PADDINGS
    several = operations.gives_indices(call.node, call.model)
    return call.result(signed=call.map.signed or pads, several=several, step=window)


def _adaptive_pooling(call: _Call) -> Value:
    size = operations.adaptive_size(call.node, call.model)
    if size == (1, 1):
        return Vector()
    if size is None:
        return call.unknown("whose size is computed")
    return call.result(step=Resampling("adaptive", size))


def _upsampling(call: _Call) -> Value:
    resampling = operations.resampling_of(call.node, call.model)
    if resampling is None:
        return call.unknown("that resizes to a computed size or in a mode other than nearest and bilinear")
    return call.result(step=resampling)


def _linear(call: _Call) -> Value:
    """Behind a permutation that puts the channels last, a linear layer is a 1x1 convolution."""
    if call.map.rank - 1 in call.map.spatial:
        return call.unknown("that mixes the pixels of a row")
    return call.result(kind="convolution", signed=True)


def _arithmetic(call: _Call) -> Value:
    if len(call.sources) == 1:
        return call.result(signed=True)
    # Tensors of unequal rank are aligned at their last axes.
    if len({(one.rows - one.rank, one.columns - one.rank) for one in call.maps}) > 1:
        return call.unknown("that joins rows with other axes")
    largest = max(call.maps, key=lambda one: one.rank)
    placed = replace(largest, signed=True, several=False, step=None)
    if call.operation not in operations.ADDITIONS:
        return replace(placed, kind="product", sources=call.sources)
    signed = any(one.signed for one in call.maps)
    return replace(placed, kind="addition", signed=signed, sources=call.terms("addition"))


def _concatenation(call: _Call) -> Value:
    axis = call.arguments("tensors", "dim").get("dim", 0)
    if axis % call.map.rank in call.map.spatial or len({one.spatial for one in call.maps}) > 1:
        return call.unknown("that sets maps side by side")
    if len(call.sources) == 1:
        return call.result()
    signed = any(one.signed for one in call.maps)
    return replace(call.result(kind="concatenation", signed=signed), sources=call.terms("concatenation"))


def _reduction(call: _Call) -> Value:
    """A mean, sum or maximum: over all pixels, or over other axes."""
    settings = call.arguments("input", "dim", "keepdim")
    axes = settings.get("dim")
    if isinstance(axes, Node):
        return _arithmetic(call)  # the larger of two maps
    reduced = range(call.map.rank) if axes is None else {axis % call.map.rank for axis in _flat(axes)}
    if set(call.map.spatial) <= set(reduced):
        return Vector()
    if set(call.map.spatial) & set(reduced):
        return call.unknown("that reduces rows without columns")
    kept = [axis for axis in range(call.map.rank) if axis not in reduced or settings.get("keepdim")]
    several = call.operation in operations.MAXIMA
    return _rearranged(call, kept, signed=call.map.signed, several=several)


def _flattening(call: _Call) -> Value:
    start = call.arguments("input", "start_dim").get("start_dim", 1 if call.operation is nn.Flatten else 0)
    return Vector() if start % call.map.rank <= 1 else call.unknown("that moves pixels")


def _reshaping(call: _Call) -> Value:
    """A view keeps the pixels if it names the map's own rows and columns, side by side at the same end."""
    lengths = _flat(call.node.kwargs.get("shape", call.node.args[1:]))
    rank = len(lengths)
    named = {_side(length, call.values): place for place, length in enumerate(lengths)}
    rows, columns = named.get("rows"), named.get("columns")
    if rows is not None and columns == rows + 1 and call.map.columns == call.map.rows + 1:
        both_last = call.map.columns == call.map.rank - 1 and columns == rank - 1
        if both_last or rows == call.map.rows:
            return call.result(rank=rank, rows=rows, columns=columns)
    return call.unknown("that moves pixels") if rank > 2 else Vector()


def _side(length: Any, values: dict[Node, Value]) -> str | None:
    """`rows` or `columns` if an argument is the number of these in a map, as asked from its shape."""
    if not isinstance(length, Node) or len(length.args) < 2:
        return None
    asked, axis = length.args[:2]
    if length.target is operator.getitem and isinstance(asked, Node) and asked.target in ("size", getattr):
        asked = asked.args[0]
    elif length.target != "size":
        return None
    value = values.get(asked) if isinstance(asked, Node) else None
    if not isinstance(value, Map) or not isinstance(axis, int):
        return None
    return {value.rows: "rows", value.columns: "columns"}.get(axis % value.rank)


def _is_whole_size(size: Any, values: dict[Node, Value]) -> bool:
    """Whether a size is that of a whole map, as in pooling by a kernel of ``x.shape[2:]``."""
    if isinstance(size, Node) and size.target is operator.getitem and isinstance(size.args[1], slice):
        return operations.asks_metadata(size.args[0]) if isinstance(size.args[0], Node) else False
    return {_side(length, values) for length in _flat(size)} == {"rows", "columns"}


def _permutation(call: _Call) -> Value:
    return _rearranged(call, call.axes("dims"))


def _transposition(call: _Call) -> Value:
    given = [*call.node.args[1:], *(call.node.kwargs[name] for name in ("dim0", "dim1") if name in call.node.kwargs)]
    one, other = (axis % call.map.rank for axis in _flat(given))
    order = list(range(call.map.rank))
    order[one], order[other] = other, one
    return _rearranged(call, order)


def _rearranged(call: _Call, order: list[int], **changes: Any) -> Map:
    """The map with its axes in this order, those left out dropped and -1 for a new one."""
    rows, columns = order.index(call.map.rows), order.index(call.map.columns)
    return call.result(rank=len(order), rows=rows, columns=columns, **changes)


def _split(call: _Call) -> Value:
    axis = call.arguments("input", "size", "dim").get("dim", 0)
    return call.unknown("that cuts maps") if axis % call.map.rank in call.map.spatial else call.result(several=True)


def _unsqueezing(call: _Call) -> Value:
    axis = call.arguments("input", "dim")["dim"] % (call.map.rank + 1)
    order = list(range(call.map.rank))
    return _rearranged(call, [*order[:axis], -1, *order[axis:]])


def _indexing(call: _Call) -> Value:
    index = call.node.args[1]
    if call.map.several:
        return call.result(several=False)
    order: list[int] = []
    window = Window((1, 1))
    axis = 0
    for part in _spread_ellipsis(index if isinstance(index, tuple) else (index,), call.map.rank):
        if part is None:
            order.append(-1)
            continue
        if axis in call.map.spatial:
            cut = _cropped(window, call.map.spatial.index(axis), part)
            if cut is None:
                return call.unknown("that picks pixels")
            window = cut
        if isinstance(part, slice):
            order.append(axis)
        elif not isinstance(part, int):
            return call.unknown("that picks by a computed index")
        axis += 1
    step = window if window != Window((1, 1)) else None
    return _rearranged(call, [*order, *range(axis, call.map.rank)], step=step)


def _attribute(call: _Call) -> Value:
    """The values of a maximum, which come with their indices."""
    return call.result(several=False) if call.map.several else call.unknown("that tracing does not know")


def _spread_ellipsis(index: tuple[Any, ...], rank: int) -> Iterator[Any]:
    for part in index:
        if part is Ellipsis:
            yield from [slice(None)] * (rank - sum(other is not None for other in index) + 1)
        else:
            yield part


def _cropped(window: Window, axis: int, part: Any) -> Window | None:
    """`window` with a slice of one axis as negative padding; None for another kind of index."""
    if not isinstance(part, slice) or not is_constant((part.start, part.stop, part.step)):
        return None
    start, stop, stride = part.start or 0, part.stop, part.step or 1
    if start < 0 or (stop is not None and stop >= 0):
        return None
    return replace(
        window,
        stride=_with(window.stride, axis, stride),
        before=_with(window.before, axis, -start),
        after=_with(window.after, axis, stop or 0),
    )


def _with(pair: tuple[int, int], axis: int, value: int) -> tuple[int, int]:
    return (value, pair[1]) if axis == 0 else (pair[0], value)


def _flat(values: Any) -> list[Any]:
    """The arguments of an operation that takes them one by one or as one sequence."""
    if not isinstance(values, tuple | list):
        return [values]
    return list(values[0]) if len(values) == 1 and isinstance(values[0], tuple | list) else list(values)


_RULES: tuple[tuple[Any, Callable[[_Call], Value]], ...] = (
    (operations.SIGNED_BY_ACTIVATION, _activation),
    (operations.UNCHANGED, _unchanged),
    (operations.NORMALISATIONS, _normalisation),
    (operations.CONVOLUTIONS | operations.POOLINGS | operations.PADDINGS, _window),
    (operations.ADAPTIVE_POOLINGS, _adaptive_pooling),
    (operations.UPSAMPLINGS, _upsampling),
    (operations.LINEAR, _linear),
    (operations.ARITHMETIC, _arithmetic),
    (operations.CONCATENATIONS, _concatenation),
    (operations.REDUCTIONS, _reduction),
    (operations.FLATTENINGS, _flattening),
    (operations.RESHAPINGS, _reshaping),
    (operations.PERMUTATIONS, _permutation),
    (operations.TRANSPOSITIONS, _transposition),
    (operations.SPLITS, _split),
    (operations.UNSQUEEZINGS, _unsqueezing),
    ((operator.getitem,), _indexing),
    ((getattr,), _attribute),
)
