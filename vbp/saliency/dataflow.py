"""Follow the pixels of the input through every operation of a traced network, with one rule per kind of operation.

A vector that is combined with a map, such as the gate of squeeze-and-excitation, leaves every pixel in its place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from vbp.errors import ModelError
from vbp.saliency import operations
from vbp.saliency.geometry import Resampling, Window
from vbp.saliency.operations import is_constant
from vbp.saliency.values import Call, Map, Unknown, Value, Vector, flat


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
                values[node] = _value(Call(node, model, values), inputs)
    return {node: value for node, value in values.items() if isinstance(value, Map)}


def _value(call: Call, inputs: list[Value]) -> Value:
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


def _activation(call: Call) -> Value:
    return call.result(kind="activation", signed=operations.SIGNED_BY_ACTIVATION[call.operation])


def _unchanged(call: Call) -> Value:
    return call.result()


def _normalisation(call: Call) -> Value:
    return call.result(signed=True)


def _window(call: Call) -> Value:
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


def _adaptive_pooling(call: Call) -> Value:
    size = operations.adaptive_size(call.node, call.model)
    if size == (1, 1):
        return Vector()
    if size is None:
        return call.unknown("whose size is computed")
    return call.result(step=Resampling("adaptive", size))


def _upsampling(call: Call) -> Value:
    resampling = operations.resampling_of(call.node, call.model)
    if resampling is None:
        return call.unknown("that resizes to a computed size or in a mode other than nearest and bilinear")
    return call.result(step=resampling)


def _linear(call: Call) -> Value:
    """After a permutation that puts the channels last, a linear layer is a 1x1 convolution."""
    if call.map.rank - 1 in call.map.spatial:
        return call.unknown("that mixes the pixels of a row")
    return call.result(kind="convolution", signed=True)


def _arithmetic(call: Call) -> Value:
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


def _concatenation(call: Call) -> Value:
    axis = call.arguments("tensors", "dim").get("dim", 0)
    if axis % call.map.rank in call.map.spatial or len({one.spatial for one in call.maps}) > 1:
        return call.unknown("that sets maps side by side")
    if len(call.sources) == 1:
        return call.result()
    signed = any(one.signed for one in call.maps)
    return replace(call.result(kind="concatenation", signed=signed), sources=call.terms("concatenation"))


def _reduction(call: Call) -> Value:
    """A mean, sum or maximum: over all pixels, or over other axes."""
    settings = call.arguments("input", "dim", "keepdim")
    axes = settings.get("dim")
    if isinstance(axes, Node):
        return _arithmetic(call)  # the larger of two maps
    reduced = range(call.map.rank) if axes is None else {axis % call.map.rank for axis in flat(axes)}
    if set(call.map.spatial) <= set(reduced):
        return Vector()
    if set(call.map.spatial) & set(reduced):
        return call.unknown("that reduces rows without columns")
    kept = [axis for axis in range(call.map.rank) if axis not in reduced or settings.get("keepdim")]
    several = call.operation in operations.MAXIMA
    return _rearranged(call, kept, signed=call.map.signed, several=several)


def _flattening(call: Call) -> Value:
    start = call.arguments("input", "start_dim").get("start_dim", 1 if call.operation is nn.Flatten else 0)
    return Vector() if start % call.map.rank <= 1 else call.unknown("that moves pixels")


def _reshaping(call: Call) -> Value:
    """A view keeps the pixels if it names the map's own rows and columns, side by side at the same end."""
    lengths = flat(call.node.kwargs.get("shape", call.node.args[1:]))
    rank = len(lengths)
    named = {_side(length, call.values): place for place, length in enumerate(lengths)}
    rows, columns = named.get("rows"), named.get("columns")
    if rows is not None and columns == rows + 1 and call.map.columns == call.map.rows + 1:
        both_last = call.map.columns == call.map.rank - 1 and columns == rank - 1
        if both_last or rows == call.map.rows:
            return call.result(rank=rank, rows=rows, columns=columns)
    return call.unknown("that moves pixels") if rank > 2 else Vector()


def _side(length: Any, values: dict[Node, Value]) -> str | None:
    """`rows` or `columns` if an argument is that length of a map, read from its shape; else None."""
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
    """Whether a size is the size of a whole map, as in pooling with a kernel of ``x.shape[2:]``."""
    if isinstance(size, Node) and size.target is operator.getitem and isinstance(size.args[1], slice):
        return operations.asks_metadata(size.args[0]) if isinstance(size.args[0], Node) else False
    return {_side(length, values) for length in flat(size)} == {"rows", "columns"}


def _permutation(call: Call) -> Value:
    return _rearranged(call, call.axes("dims"))


def _transposition(call: Call) -> Value:
    given = [*call.node.args[1:], *(call.node.kwargs[name] for name in ("dim0", "dim1") if name in call.node.kwargs)]
    one, other = (axis % call.map.rank for axis in flat(given))
    order = list(range(call.map.rank))
    order[one], order[other] = other, one
    return _rearranged(call, order)


def _rearranged(call: Call, order: list[int], **changes: Any) -> Map:
    """The map with its axes in this order; axes that are not named are dropped, and -1 adds an axis."""
    rows, columns = order.index(call.map.rows), order.index(call.map.columns)
    return call.result(rank=len(order), rows=rows, columns=columns, **changes)


def _split(call: Call) -> Value:
    axis = call.arguments("input", "size", "dim").get("dim", 0)
    return call.unknown("that cuts maps") if axis % call.map.rank in call.map.spatial else call.result(several=True)


def _unsqueezing(call: Call) -> Value:
    axis = call.arguments("input", "dim")["dim"] % (call.map.rank + 1)
    order = list(range(call.map.rank))
    return _rearranged(call, [*order[:axis], -1, *order[axis:]])


def _expansion(call: Call) -> Value:
    """A vector that is expanded over a map's pixels is equal at all of them; only the map's shape is read."""
    is_vector = isinstance(call.values.get(call.node.args[0]), Vector)  # type: ignore[arg-type]
    return Vector() if is_vector else call.unknown("that tracing does not know")


def _indexing(call: Call) -> Value:
    index = call.node.args[1]
    if isinstance(index, str):
        return call.unknown("that takes the images out of a dictionary (give a module that is called with images)")
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


def _attribute(call: Call) -> Value:
    """The values of a maximum, which PyTorch returns together with the indices."""
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


_RULES: tuple[tuple[Any, Callable[[Call], Value]], ...] = (
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
    (operations.EXPANSIONS, _expansion),
    ((operator.getitem,), _indexing),
    ((getattr,), _attribute),
)
