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
from torch.fx.node import map_arg

from vbp.saliency import operations
from vbp.saliency.cuts import reached
from vbp.saliency.geometry import Resampling, Transposed, Window
from vbp.saliency.operations import is_constant
from vbp.saliency.pixels import Unknown, Vector, first_lost, refused
from vbp.saliency.shapes import Sizes
from vbp.saliency.values import Call, Map, Value, flat
from vbp.saliency.views import Shape, cut_in, images_in, laid_in, rows_in

_MIXING_IMAGES = "that mixes the images of a batch"


def follow(graph: Graph, model: nn.Module, sizes: Sizes) -> tuple[dict[Node, Map], Unknown | None]:
    """Every map of the network, in order of execution; the first is its input.

    And why it cannot be followed further, if convolutions or attention follow on what cannot be followed; else None.

    Args:
        graph: the forward pass of the network.
        model: has the layers that the graph calls.
        sizes: the sizes of all values; notes which of them the maps' geometry depends on.
    """
    values: dict[Node, Value] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and not values:
            values[node] = Map()
        elif node.op.startswith("call"):
            inputs = [values[source] for source in operations.data_of(node) if source in values]
            if inputs:
                values[node] = _value(Call(node, model, values, sizes), inputs)
    lost = {node: value for node, value in values.items() if isinstance(value, Unknown)}
    mixed = [value for node, value in lost.items() if operations.operation_of(node, model) in operations.MIXING]
    maps = {node: value for node, value in values.items() if isinstance(value, Map)}
    above = reached([graph.output_node()], lambda node: () if node in maps else operations.data_of(node))
    attended = [
        value
        for node, value in lost.items()
        if node in above and operations.operation_of(node, model) in operations.ATTENTIONS
    ]
    return maps, refused(mixed, attended)


def _value(call: Call, inputs: list[Value]) -> Value:
    unknowns = [value for value in inputs if isinstance(value, Unknown)]
    rule = next((rule for known, rule in _RULES if call.operation in known), None)
    if unknowns:
        value: Value = _lost_further(call, first_lost(unknowns))
    elif not call.sources:
        value = _without_pixels(call, inputs)
    elif call.operation in operations.ON_IMAGES and (odd := _odd_axes(call)):
        value = call.unknown(odd)
    else:
        value = rule(call) if rule else call.unknown("that tracing does not know")
    if isinstance(value, Map) and not _has_its_images(call, value):
        value = call.unknown(_MIXING_IMAGES)
    elif isinstance(value, Map) and not _has_its_size(call, value):
        value = call.unknown("that gives another size than its settings say")
    return value


def _without_pixels(call: Call, inputs: list[Value]) -> Value:
    """What is computed from vectors alone: another one, unless pixels that lie in it are laid out for a convolution."""
    lost = next((one.lost for one in inputs if isinstance(one, Vector) and one.lost), "")
    if not lost or call.operation not in operations.MIXING | operations.LINEAR:
        return Vector(lost)
    # asked only here: behind the maps, torch imports its compiler to compute sizes without data
    below = call.sizes.of(call.node.all_input_nodes[0]) or ()
    if call.operation in operations.LINEAR:
        return Vector("" if len(below) == 2 else lost)
    return Vector(lost) if below[-2:] == (1, 1) else Unknown(lost)


def _odd_axes(call: Call) -> str:
    """Why an operation on images does not suit the axes of its map; empty: it does."""
    if call.map.spatial != (call.map.rank - 2, call.map.rank - 1):
        return "on an image whose last axes are not rows and columns"
    if call.operation not in operations.MIXING or (call.map.rank, call.map.images) == (4, 0):
        return ""
    if (call.map.rank, call.map.images, call.map.is_shared) != (4, 1, True):
        return "on a tensor whose axes are not images, channels, rows and columns"
    groups = call.arguments("input", "weight", "bias", "stride", "padding", "dilation", "groups").get("groups", 1)
    # each image has groups of its own, as in CondConv, whose weights depend on the image
    return "" if isinstance(groups, int) and groups % call.sizes.images == 0 else _MIXING_IMAGES


def _lost_further(call: Call, unknown: Unknown) -> Value:
    if _pools(call):
        return Vector(unknown.reason)
    attends = call.operation in operations.ATTENTIONS
    return unknown.attended_by(operations.name_of(call.node)) if attends else unknown


def _pools(call: Call) -> bool:
    """Whether an operation on pixels that were moved leaves none of them, as a sum weighted by attention does.

    That its result has the same size for all images is not enough: a crop, or a map that is resized, has that, too.
    """
    sizes = [call.sizes.is_fixed(node) for node in operations.data_of(call.node) if call.sizes.of(node) is not None]
    above = call.sizes.of(call.node)
    if above is None or all(sizes) or not call.sizes.is_fixed(call.node):
        return False
    return call.operation in operations.CONTRACTIONS or all(length == 1 for length in above[2:])


def _has_its_images(call: Call, value: Map) -> bool:
    """Whether an operation gives as many images as it gets; true where that is not known."""
    above = call.sizes.of(call.node)
    if above is None or value.several:
        return True
    count = above[value.images]
    return count % call.sizes.images == 0 if value.is_shared else count == call.sizes.images


def _has_its_size(call: Call, value: Map) -> bool:
    """Whether an operation gives the size that its geometry says; true where that is not known."""
    below, above = call.sizes.of(call.sources[0]), call.sizes.of(call.node)
    if below is None or above is None or value.several or value.joins:
        return True
    size = below[call.map.rows], below[call.map.columns]
    return (value.step.output_size(size) if value.step else size) == (above[value.rows], above[value.columns])


def _activation(call: Call) -> Value:
    return call.result(kind="activation", signed=operations.SIGNED_BY_ACTIVATION[call.operation])


def _unchanged(call: Call) -> Value:
    return call.result()


def _normalisation(call: Call) -> Value:
    return call.result(signed=True)


def _window(call: Call) -> Value:
    if _is_whole_size(call.node.kwargs.get("kernel_size", (*call.node.args, None, None)[1]), call):
        return Vector()
    window = operations.window_of(call.node, call.model, call.sizes)
    if window is None:
        return call.unknown("whose size is computed")
    if call.operation in operations.TRANSPOSED:
        return call.result(kind="convolution", signed=True, step=Transposed(window))
    if call.operation in operations.CONVOLUTIONS:
        return call.result(kind="convolution", signed=True, step=window)
    pads = call.operation in operations.PADDINGS
    several = operations.gives_indices(call.node, call.model)
    return call.result(signed=call.map.signed or pads, several=several, step=window)


def _adaptive_pooling(call: Call) -> Value:
    size = operations.adaptive_size(call.node, call.model, call.sizes)
    if size == (1, 1):
        return Vector()
    if size is None:
        return call.unknown("whose size is computed")
    return call.result(step=Resampling("adaptive", size))


def _upsampling(call: Call) -> Value:
    resampling = operations.resampling_of(call.node, call.model, call.sizes)
    if resampling is None:
        return call.unknown("that resizes to a computed size or in a mode other than nearest and bilinear")
    return call.result(step=resampling)


def _pixel_shuffle(call: Call) -> Value:
    """Every pixel becomes a square of pixels, filled from its channels."""
    factor = float(_factor(call, "upscale_factor"))
    return call.result(step=Resampling("nearest", scale=(factor, factor)))


def _pixel_unshuffle(call: Call) -> Value:
    factor = _factor(call, "downscale_factor")
    return call.result(step=Window((factor, factor), (factor, factor)))


def _factor(call: Call, name: str) -> int:
    return int(call.arguments("input", name)[name])


def _linear(call: Call) -> Value:
    """After a permutation that puts the channels last, a linear layer is a 1x1 convolution."""
    if call.map.rank - 1 in call.map.places:
        return call.unknown("that mixes the pixels of a row")
    return call.result(kind="convolution", signed=True)


def _arithmetic(call: Call) -> Value:
    if len(call.sources) == 1:
        return call.result(signed=True)
    # Tensors of unequal rank are aligned at their last axes.
    if len({(one.is_shared, *(axis - one.rank for axis in one.places)) for one in call.maps}) > 1:
        return call.unknown("that joins rows with other axes")
    largest = max(call.maps, key=lambda one: one.rank)
    placed = replace(largest, signed=True, several=False, step=None, statistic=None)
    statistics = {one.statistic for one in call.maps if one.statistic}
    others = {
        call.origin(node) for node, one in zip(call.sources, call.maps, strict=True) if one.statistic is None
    }  # fmt: skip
    if len(statistics) == 1 and others <= statistics:
        # a norm of the network's own: a map and its mean or variance over the channels
        return replace(placed, kind="other", sources=call.sources, statistic=None if others else statistics.pop())
    if call.operation not in operations.ADDITIONS:
        return replace(placed, kind="product", sources=call.sources)
    signed = any(one.signed for one in call.maps)
    return replace(placed, kind="addition", signed=signed, sources=call.terms("addition"))


def _concatenation(call: Call) -> Value:
    axis = call.arguments("tensors", "dim").get("dim", 0)
    if axis % call.map.rank in call.map.places or len({one.places for one in call.maps}) > 1:
        return call.unknown("that sets maps side by side")
    return _joined(call, call.map)


def _stacking(call: Call) -> Value:
    if len({(one.rank, *one.places) for one in call.maps}) > 1:
        return call.unknown("that sets maps side by side")
    return _joined(call, _with_axis(call, call.arguments("tensors", "dim").get("dim", 0)))


def _joined(call: Call, like: Map) -> Map:
    if len(call.sources) == 1:
        return like if like is not call.map else call.result()
    signed = any(one.signed for one in call.maps)
    terms = call.terms("concatenation")
    return replace(like, kind="concatenation", signed=signed, several=False, step=None, statistic=None, sources=terms)


def _reduction(call: Call) -> Value:
    """A mean, norm, maximum or the like: over all pixels, or over other axes."""
    settings = call.arguments("input", *operations.REDUCTIONS[call.operation])
    axes = settings.get("dim")
    if isinstance(axes, Node):
        return _arithmetic(call)  # the larger of two maps
    reduced = range(call.map.rank) if axes is None else {axis % call.map.rank for axis in flat(axes)}
    if set(call.map.spatial) <= set(reduced):
        return Vector()
    if call.map.images in reduced:
        return call.unknown(_MIXING_IMAGES)
    if set(call.map.spatial) & set(reduced):
        return call.unknown("that reduces rows without columns")
    kept = [axis for axis in range(call.map.rank) if axis not in reduced or settings.get("keepdim")]
    several = call.operation in operations.PAIRS
    # a sum over branches that were stacked is no statistic of the channels
    statistic = call.origin(call.sources[0]) if call.map.rank == 4 else None
    return _rearranged(call, kept, signed=call.map.signed, several=several, statistic=statistic)


def _flattening(call: Call) -> Value:
    settings = call.arguments("input", "start_dim", "end_dim")
    first = settings.get("start_dim", 1 if call.operation is nn.Flatten else 0) % call.map.rank
    last = settings.get("end_dim", -1) % call.map.rank
    merged = set(range(first, last + 1))
    if call.map.images in merged and len(merged) > 1:
        return call.unknown(_MIXING_IMAGES)
    if merged >= set(range(1, call.map.rank)):
        return _row(call)
    if merged & set(call.map.spatial) and len(merged) > 1:
        return call.unknown("that moves pixels")
    order = [axis for axis in range(call.map.rank) if axis not in merged or axis == first]
    return _rearranged(call, order)


def _row(call: Call) -> Vector:
    """All values of an image side by side: few layers lay them out again."""
    return Vector(call.unknown("that moves pixels").reason)


def _reshaping(call: Call) -> Value:
    """A view keeps the pixels if rows and columns stay side by side, with as many values before them as before."""
    lengths = flat(call.node.kwargs.get("shape", call.node.args[1:]))
    below, above = call.sizes.of(call.sources[0]), call.sizes.of(call.node)
    if below is None or above is None:
        return call.unknown("that moves pixels, or whose size depends on the data")
    images = images_in(above, below, call.map, call.sizes.images)
    place = rows_in(above, below, call.map)
    if place is None and len(above) > 2:
        return _in_squares(call, above, below, images)
    if images is None:
        return call.unknown(_MIXING_IMAGES)
    if place is None:
        return _row(call)
    sides = [_side(length, call.values) for length in lengths[place : place + 2]]
    if sides == ["columns", "rows"]:
        return call.unknown("that moves pixels")
    if sides != ["rows", "columns"]:
        call.sizes.used.add(call.node)
    axis, is_shared = images
    return call.result(rank=len(above), images=axis, is_shared=is_shared, rows=place, columns=place + 1)


def _in_squares(call: Call, above: Shape, below: Shape, images: tuple[int, bool] | None) -> Value:
    """A view that takes squares of pixels apart, or puts them together, as `pixel_unshuffle` and `pixel_shuffle` do."""
    placed = {"rank": len(above), "images": images[0], "is_shared": images[1]} if images else {}
    if placed and (cut := cut_in(above, below, call.map)):
        rows, window = cut
        call.sizes.used.add(call.node)
        return call.result(**placed, rows=rows, columns=rows + 2, step=window, is_cut=True)
    if placed and (laid := laid_in(above, below, call.map)):
        rows, resampling = laid
        call.sizes.used.add(call.node)
        return call.result(**placed, rows=rows, columns=rows + 1, step=resampling)
    return call.unknown("that moves pixels")


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


def _is_whole_size(size: Any, call: Call) -> bool:
    """Whether a computed size is that of the whole map, as in pooling with a kernel of ``x.shape[2:]``."""
    if is_constant(size):
        return False
    if isinstance(size, Node) and size.target is operator.getitem and isinstance(size.args[1], slice):
        shape = size.args[0]
        return isinstance(shape, Node) and operations.asks_metadata(shape) and shape.args[0] is call.sources[0]
    own = {"rows", "columns"} == {_side(length, {call.sources[0]: call.map}) for length in flat(size)}
    below = call.sizes.of(call.sources[0])
    lengths = map_arg(flat(size), call.sizes) if not own else []
    return own or (below is not None and tuple(lengths) == (below[call.map.rows], below[call.map.columns]))


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
    images, rows, columns = (order.index(axis) for axis in call.map.places)
    return call.result(rank=len(order), images=images, rows=rows, columns=columns, **changes)


def _split(call: Call) -> Value:
    axis = call.arguments("input", "size", "dim").get("dim", 0)
    return call.unknown("that cuts maps") if axis % call.map.rank in call.map.places else call.result(several=True)


def _unbinding(call: Call) -> Value:
    axis = call.arguments("input", "dim").get("dim", 0) % call.map.rank
    if axis in call.map.places:
        return call.unknown("that cuts maps")
    return _rearranged(call, [other for other in range(call.map.rank) if other != axis], several=True)


def _unsqueezing(call: Call) -> Value:
    return _with_axis(call, call.arguments("input", "dim")["dim"])


def _with_axis(call: Call, axis: int) -> Map:
    """The map with one more axis."""
    axis %= call.map.rank + 1
    order = list(range(call.map.rank))
    return _rearranged(call, [*order[:axis], -1, *order[axis:]])


def _squeezing(call: Call) -> Value:
    axes = call.arguments("input", "dim").get("dim")
    dropped = {axis % call.map.rank for axis in flat(axes)} if axes is not None else set(call.map.spatial)
    if dropped & set(call.map.places):
        return call.unknown("that may drop rows or columns")
    size = call.sizes.of(call.sources[0])
    kept = [axis for axis in range(call.map.rank) if axis not in dropped or (size and size[axis] != 1)]
    return _rearranged(call, kept)


def _expansion(call: Call) -> Value:
    above = call.sizes.of(call.node)
    if above is None or len(above) != call.map.rank:
        return call.unknown("that tracing does not know")
    return call.result()  # `_has_its_size` looks whether pixels stay


def _softmax(call: Call) -> Value:
    axis = call.arguments("input", "dim").get("dim")
    if axis is None or axis % call.map.rank in call.map.places:
        return call.unknown("that weighs pixels against each other")
    return call.result(signed=False)


def _indexing(call: Call) -> Value:
    index = map_arg(call.node.args[1], call.sizes)
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
        if axis == call.map.images and part != slice(None):
            return call.unknown("that picks images")
        if axis in call.map.spatial:
            cut = _cropped(window, axis, part, call)
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


def _cropped(window: Window, axis: int, part: Any, call: Call) -> Window | None:
    """`window` with a slice of one axis as negative padding; None for another kind of index."""
    if not isinstance(part, slice) or not is_constant((part.start, part.stop, part.step)):
        return None
    start, stop, stride = part.start or 0, part.stop, part.step or 1
    if start < 0 or (stop is not None and stop >= 0):
        # where it ends, or begins, depends on the length of the axis
        size = call.sizes.of(call.sources[0])
        if size is None:
            return None
        call.sizes.used.add(call.node)
        start, stop, stride = part.indices(size[axis])
        stop -= size[axis]
    side = call.map.spatial.index(axis)
    return replace(
        window,
        stride=_with(window.stride, side, stride),
        before=_with(window.before, side, -start),
        after=_with(window.after, side, stop or 0),
    )


def _with(pair: tuple[int, int], axis: int, value: int) -> tuple[int, int]:
    return (value, pair[1]) if axis == 0 else (pair[0], value)


_RULES: tuple[tuple[Any, Callable[[Call], Value]], ...] = (
    (operations.SIGNED_BY_ACTIVATION, _activation),
    (operations.UNCHANGED, _unchanged),
    (operations.NORMALISATIONS, _normalisation),
    (operations.CONVOLUTIONS | operations.TRANSPOSED | operations.POOLINGS | operations.PADDINGS, _window),
    (operations.ADAPTIVE_POOLINGS, _adaptive_pooling),
    (operations.UPSAMPLINGS, _upsampling),
    (operations.PIXEL_SHUFFLES, _pixel_shuffle),
    (operations.PIXEL_UNSHUFFLES, _pixel_unshuffle),
    (operations.LINEAR, _linear),
    (operations.ARITHMETIC, _arithmetic),
    (operations.CONCATENATIONS, _concatenation),
    (operations.STACKINGS, _stacking),
    (operations.REDUCTIONS, _reduction),
    (operations.FLATTENINGS, _flattening),
    (operations.RESHAPINGS, _reshaping),
    (operations.PERMUTATIONS, _permutation),
    (operations.TRANSPOSITIONS, _transposition),
    (operations.SPLITS, _split),
    (operations.UNBINDINGS, _unbinding),
    (operations.UNSQUEEZINGS, _unsqueezing),
    (operations.SQUEEZINGS, _squeezing),
    (operations.EXPANSIONS, _expansion),
    (operations.SOFTMAXES, _softmax),
    ((operator.getitem,), _indexing),
    ((getattr,), _attribute),
)
