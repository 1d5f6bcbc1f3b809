"""Follow the pixels of the input through every operator of an ONNX graph, with one rule per kind of operator.

The rules are those of `vbp.saliency.dataflow`. One is new: exporters write an activation such as SiLU or GELU as
several operators. All that is computed from one map pixel by pixel is again one map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from vbp.attach import operators
from vbp.attach.geometry import Pair, Resampling, Transposed, Window, resizing_weights, same_padding
from vbp.attach.graph import Graph, Length, described, has_subgraphs
from vbp.attach.values import Call, Map, Reshaped, Value, is_of_onnx
from vbp.saliency.cuts import reached
from vbp.saliency.pixels import Unknown, Vector, first_lost, refused

_MIXING_IMAGES = "that mixes the images of a batch, or lays them into one axis with other values"
Shape = tuple[Length, ...]


def follow(graph: Graph, image: str, start: Map) -> tuple[dict[str, Map], Unknown | None]:
    """Every map of the graph, in order of execution; the first is its input.

    And why it cannot be followed further, if convolutions or attention follow on what cannot be followed; else None.

    Args:
        graph: of the network.
        image: name of its input.
        start: which axes of the input are rows and columns.
    """
    values: dict[str, Value] = {image: start}  # a result that is left out has no name, and nothing reads it
    mixed: list[Unknown] = []
    weighed: dict[str, Unknown] = {}
    for node in graph.nodes:
        inputs = [values[name] for name in operators.data_of(node) if name in values]
        if not (inputs or has_subgraphs(node)):
            continue
        call = Call(node, graph, values)
        value = _value(call, inputs)
        alike = 1 if node.op_type != "Split" else len(node.output)
        values.update(dict.fromkeys(node.output[:alike], value))
        values.update(dict.fromkeys(node.output[alike:], call.unknown("whose second result is used")))
        if isinstance(value, Unknown) and node.op_type in operators.CONVOLUTIONS:
            mixed.append(value)
        elif isinstance(value, Unknown) and node.op_type in operators.ATTENTIONS:
            weighed[node.output[0]] = value
    maps = {name: value for name, value in values.items() if isinstance(value, Map)}
    above = behind(graph, maps)
    return maps, refused(mixed, [value for name, value in weighed.items() if name in above])


def behind(graph: Graph, maps: dict[str, Map]) -> set[str]:
    """The tensors from which the outputs are computed, down to the last maps among them."""

    def below(name: str) -> Sequence[str]:
        return () if name in maps or name not in graph.producers else operators.data_of(graph.producers[name])

    return reached(graph.outputs, below)


def _value(call: Call, inputs: list[Value]) -> Value:
    operator = call.node.op_type
    unknowns = [value for value in inputs if isinstance(value, Unknown)]
    rule = next((rule for known, rule in _RULES if operator in known), None)
    if unknowns:
        value: Value = _lost_further(call, unknowns)
    elif has_subgraphs(call.node):
        value = call.unknown("with graphs of its own")
    elif not is_of_onnx(call.node):
        value = call.unknown("that ONNX does not define")
    elif not call.sources:
        value = _without_pixels(call, inputs)
    else:
        value = rule(call) if rule else call.unknown("that cannot be followed")
    if isinstance(value, Map) and not _has_its_images(call, value):
        value = call.unknown(_MIXING_IMAGES)
    return value


def _without_pixels(call: Call, inputs: list[Value]) -> Value:
    """What is computed from vectors alone: another one, unless pixels that lie in it are laid out for a convolution."""
    lost = next((one.lost for one in inputs if isinstance(one, Vector) and one.lost), "")
    below = call.graph.shape(call.node.input[0]) if call.node.input else None
    if call.node.op_type in operators.CONVOLUTIONS and lost and (below is None or below[2:] != (1, 1)):
        return Unknown(lost)
    sums_all_up = call.node.op_type in operators.PRODUCTS and below is not None and len(below) == 2
    return Vector("" if sums_all_up else lost)


def _has_its_images(call: Call, value: Map) -> bool:
    """Whether an operator gives as many images as it gets; true where that is not known."""
    shapes = [call.graph.shape(name) for name in (*value.sources[:1], call.node.output[0])]
    lengths = {shape[value.images] for shape in shapes if shape is not None}
    return sum(isinstance(length, int) for length in lengths) < 2


def _activation(call: Call) -> Value:
    return call.result(kind="activation", signed=operators.SIGNED_BY_ACTIVATION[call.node.op_type])


def _clip(call: Call) -> Value:
    least = call.constant(1, "min")
    return call.result(kind="activation", signed=not least or least[0] < 0)


def _quantisation(call: Call) -> Value:
    """A zero point at the lowest integer cuts negative values off, as a ReLU does, in whose place it may stand."""
    name = call.node.input[2] if call.is_given(2) else ""
    zero = call.graph.constant(name) if name else np.zeros((), np.uint8)
    if zero is None or zero.dtype.kind not in "iu" or (zero != np.iinfo(zero.dtype).min).any():
        return call.result()
    return call.result(signed=False, kind="activation" if call.map.signed else "other")


def _unchanged(call: Call) -> Value:
    return call.result()


def _normalisation(call: Call) -> Value:
    return call.result(signed=True)


def _convolution(call: Call) -> Value:
    window = _window_of_weights(call)
    return window if isinstance(window, Unknown) else call.result(kind="convolution", signed=True, step=window)


def _transposed_convolution(call: Call) -> Value:
    if call.settings.get("output_shape") or call.settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return call.unknown("that pads by the size of its result")
    window = _window_of_weights(call)
    if isinstance(window, Unknown):
        return window
    return call.result(kind="convolution", signed=True, step=Transposed(window))


def _integer_convolution(call: Call) -> Value:
    return call.unknown("that computes in integers alone (quantise in the format QDQ, which keeps the float maps)")


def _pooling(call: Call) -> Value:
    window = _window(call, call.settings["kernel_shape"])
    return window if isinstance(window, Unknown) else call.result(signed=call.map.signed, step=window)


def _window_of_weights(call: Call) -> Window | Unknown:
    if call.values.keys() & set(call.node.input[1:2]):
        return call.unknown("that computes its weights from the image")
    return _window(call, call.settings.get("kernel_shape") or (call.graph.shape(call.node.input[1]) or ())[2:])


def _window(call: Call, kernel: Any) -> Window | Unknown:
    if len(kernel) != 2 or (call.map.rank, *call.map.places) != (4, 0, 2, 3):
        return call.unknown("on a tensor whose last two axes are not the image's rows and columns")
    stride, dilation = _pair(call, "strides"), _pair(call, "dilations")
    window = Window(call.below, (int(kernel[0]), int(kernel[1])), stride, dilation=dilation)
    padding = _padding_of(call, window)
    if padding is None:
        return call.unknown("that pads by an image size which the graph leaves open")
    (top, bottom), (left, right) = padding
    return replace(window, before=(top, left), after=(bottom, right))


def _padding_of(call: Call, window: Window) -> tuple[Pair, Pair] | None:
    """Above and below, and left and right; None if it depends on a size that is not known."""
    how = call.settings.get("auto_pad", b"NOTSET")
    if how == b"VALID":
        return (0, 0), (0, 0)
    if how == b"NOTSET":
        top, left, bottom, right = call.settings.get("pads") or (0, 0, 0, 0)
        return (top, bottom), (left, right)
    rows, columns = (
        same_padding(window.below.size[axis], window.reach(axis), window.stride[axis], upper=how == b"SAME_UPPER")
        for axis in (0, 1)
    )
    return None if rows is None or columns is None else (rows, columns)


def _pair(call: Call, name: str) -> Pair:
    rows, columns = call.settings.get(name) or (1, 1)
    return rows, columns


def _pixels_of_channels(call: Call) -> Value:
    """Every pixel becomes a square of pixels, filled from its channels."""
    window = _squares(call)
    return window if isinstance(window, Unknown) else call.result(step=Transposed(window))


def _channels_of_pixels(call: Call) -> Value:
    """Every square of pixels becomes one pixel."""
    window = _squares(call)
    return window if isinstance(window, Unknown) else call.result(step=window)


def _squares(call: Call) -> Window | Unknown:
    side = call.settings["blocksize"]
    window = _window(call, (side, side))
    return window if isinstance(window, Unknown) else replace(window, stride=(side, side))


def _padding(call: Call) -> Value:
    pads = call.constant(1, "pads")
    axes = call.constant(3) if call.is_given(3) else list(range(call.map.rank))
    if pads is None or axes is None:
        return call.unknown("that pads by computed amounts")
    places = [axis % call.map.rank for axis in axes]
    by_axis = dict(zip(places, zip(pads[: len(places)], pads[len(places) :], strict=True), strict=True))
    if any(by_axis.get(call.map.images, ())):
        return call.unknown("that adds or drops images")
    (top, bottom), (left, right) = (by_axis.get(axis, (0, 0)) for axis in call.map.spatial)
    window = Window(call.below, (1, 1), before=(top, left), after=(bottom, right))
    return call.result(signed=True, step=_unless_empty(window))


def _slicing(call: Call) -> Value:
    starts, stops = call.constant(1, "starts"), call.constant(2, "ends")
    axes = call.constant(3, "axes") if call.is_given(3) else list(range(call.map.rank))
    strides = call.constant(4) if call.is_given(4) else [1] * len(axes or ())
    if axes is None or strides is None:
        return call.unknown("that cuts computed axes")
    window = Window(call.below, (1, 1))
    for place, axis in enumerate(axis % call.map.rank for axis in axes):
        if axis == call.map.images and not _is_whole(starts, stops, strides, place):
            return call.unknown("that picks images")
        if axis not in call.map.spatial:
            continue
        if starts is None or stops is None:
            return call.unknown("that cuts at computed pixels")
        cut = _cropped(window, call.map.spatial.index(axis), starts[place], stops[place], strides[place])
        if cut is None:
            return call.unknown("that picks pixels")
        window = cut
    return call.result(step=_unless_empty(window))


def _is_whole(starts: Any, stops: Any, strides: Any, place: int) -> bool:
    """Whether a slice takes all of an axis."""
    if starts is None or stops is None:
        return False
    return (starts[place], strides[place]) == (0, 1) and int(stops[place]) >= np.iinfo(np.int32).max


def _cropped(window: Window, axis: int, start: int, stop: int, stride: int) -> Window | None:
    """`window` with a slice of one axis as negative padding; None for a slice that has no such form."""
    length = window.below.size[axis]
    if start < 0 and length is not None:
        start += length
    if stop >= 0 and length is not None:
        stop = min(stop - length, 0)
    if start < 0 or stride < 1 or 0 < stop < np.iinfo(np.int32).max:
        return None
    return replace(
        window,
        stride=_with(window.stride, axis, stride),
        before=_with(window.before, axis, -start),
        after=_with(window.after, axis, min(stop, 0)),
    )


def _with(pair: Pair, axis: int, value: int) -> Pair:
    return (value, pair[1]) if axis == 0 else (pair[0], value)


def _unless_empty(window: Window) -> Window | None:
    return window if (window.stride, window.before, window.after) != ((1, 1), (0, 0), (0, 0)) else None


def _resizing(call: Call) -> Value:
    above = call.graph.shape(call.node.output[0])
    lengths = [above[axis] if above else None for axis in call.map.spatial]
    scales = _scales(call)
    weights = []
    for axis, length, below in zip(call.map.spatial, lengths, call.below.size, strict=True):
        if not isinstance(length, int) or below is None:
            return call.unknown("that resizes to a size which the graph leaves open")
        one = resizing_weights(below, length, call.settings, scales.get(axis, length / below))
        if one is None:
            return call.unknown("that resizes in a mode other than nearest and linear")
        weights.append(one)
    return call.result(step=Resampling(call.below, *weights) if call.below.size != tuple(lengths) else None)


def _scales(call: Call) -> dict[int, float]:
    """What a resize multiplies lengths with, by axis; none if it is told the lengths themselves."""
    scales = call.constant(1 if call.node.op_type == "Upsample" else 2)
    axes = call.settings.get("axes") or range(call.map.rank)
    return {axis % call.map.rank: scale for axis, scale in zip(axes, scales or (), strict=False)}


def _linear(call: Call) -> Value:
    """After a transposition that puts the channels last, a product of matrices is a 1x1 convolution."""
    if len(call.sources) > 1:
        return call.unknown("that multiplies maps as matrices, such as attention")
    if call.map.rank - 1 in call.map.places or call.node.input[0] != call.sources[0]:
        return call.unknown("that mixes the pixels of a row")
    return call.result(kind="convolution", signed=True)


def _arithmetic(call: Call) -> Value:
    operator = call.node.op_type
    if len(call.sources) == 1:
        return call.result(**_against_constant(call))
    # Tensors of unequal rank are aligned at their last axes.
    if len({tuple(axis - one.rank for axis in one.places) for one in call.maps}) > 1:
        return call.unknown("that joins rows with other axes")
    largest = max(call.maps, key=lambda one: one.rank)
    signed = operator not in operators.ADDITIONS or any(one.signed for one in call.maps)
    placed = replace(largest, signed=signed, step=None)
    if pixelwise := _of_one_map(call):
        return replace(placed, kind=pixelwise[1], sources=(pixelwise[0],))
    if operator not in operators.ADDITIONS:
        return replace(placed, kind="product", sources=call.sources)
    return replace(placed, kind="addition", sources=call.terms("addition"))


def _against_constant(call: Call) -> dict[str, Any]:
    """A bound is an activation, as `Clip` is; everything else is but arithmetic."""
    if call.node.op_type not in ("Max", "Min"):
        return {"signed": True}
    bounds = [bound for name in call.node.input if (bound := call.graph.constant(name)) is not None]
    positive = call.node.op_type == "Max" and any(bound.min() >= 0 for bound in bounds)
    return {"kind": "activation", "signed": call.map.signed and not positive} if bounds else {"signed": True}


def _of_one_map(call: Call) -> tuple[str, Any] | None:
    """The one map from which all that a node joins is computed pixel by pixel, and the kind of the whole; else None."""
    chains = [_pixelwise(name, call.values) for name in call.sources]
    common = next((name for name in chains[0] if all(name in chain for chain in chains)), None)
    if common is None:
        return None
    passed = {name for chain in chains for name in chain[: chain.index(common)]}
    bends = [_map(name, call.values).kind == "activation" for name in passed]
    return common, "activation" if any(bends) or call.node.op_type in ("Max", "Min") else "other"


def _pixelwise(name: str, values: dict[str, Value]) -> list[str]:
    """The map, and the maps from which it was computed one after the other, pixel by pixel, downwards."""
    chain = [name]
    while (one := _map(name, values)).step is None and one.kind != "convolution" and len(one.sources) == 1:
        (name,) = one.sources
        chain.append(name)
    return chain


def _map(name: str, values: dict[str, Value]) -> Map:
    value = values[name]
    assert isinstance(value, Map)
    return value


def _concatenation(call: Call) -> Value:
    axis = call.settings["axis"]
    if axis % call.map.rank in call.map.places or len({one.places for one in call.maps}) > 1:
        return call.unknown("that sets maps side by side")
    if len(call.sources) == 1:
        return call.result(signed=True)
    signed = any(one.signed for one in call.maps)
    if pixelwise := _of_one_map(call):
        return replace(call.result(kind=pixelwise[1], signed=signed), sources=(pixelwise[0],))
    return replace(call.result(kind="concatenation", signed=signed), sources=call.terms("concatenation"))


def _reduction(call: Call) -> Value:
    """A mean, sum or maximum: over all pixels, or over other axes."""
    if call.is_given(1) and call.constant(1) is None:
        return call.unknown("over computed axes")
    axes, kept = call.constant(1, "axes"), call.settings.get("keepdims", 1)
    if not axes and call.settings.get("noop_with_empty_axes", 0):
        return call.result()
    reduced = set(range(call.map.rank)) if not axes else {axis % call.map.rank for axis in axes}
    if set(call.map.spatial) <= reduced:
        return Vector()
    if set(call.map.spatial) & reduced:
        return call.unknown("that reduces rows without columns")
    if call.map.images in reduced:
        return call.unknown(_MIXING_IMAGES)
    return _rearranged(call, [axis for axis in range(call.map.rank) if axis not in reduced or kept])


def _rearranged(call: Call, order: list[int]) -> Value:
    """The map with its axes in this order; axes that are not named are dropped, and -1 adds an axis."""
    images, rows, columns = (order.index(axis) for axis in call.map.places)
    if images != 0:
        return call.unknown("that moves the images to another axis than the first")
    return call.result(rank=len(order), rows=rows, columns=columns)


def _transposition(call: Call) -> Value:
    return _rearranged(call, list(call.settings.get("perm") or reversed(range(call.map.rank))))


def _global_pooling(call: Call) -> Value:
    return Vector()


def _flattening(call: Call) -> Value:
    if call.settings.get("axis", 1) % call.map.rank != 1:
        return call.unknown(_MIXING_IMAGES)
    return _row(call)


def _row(call: Call) -> Vector:
    """All values of an image side by side: few operators lay them out again."""
    return Vector(call.unknown("that moves pixels").reason)


def _softmax(call: Call) -> Value:
    axis = call.settings.get("axis", -1 if call.graph.opset >= 13 else 1) % call.map.rank
    weighed = {axis} if call.graph.opset >= 13 else set(range(axis, call.map.rank))
    if weighed & set(call.map.places):
        return call.unknown("that weighs pixels against each other")
    return call.result(signed=call.node.op_type == "LogSoftmax")


def _reshaping(call: Call) -> Value:
    """A reshape keeps the pixels if rows and columns stay side by side at the end, or all axes up to them stay."""
    before, after = call.graph.shape(call.sources[0]), call.graph.shape(call.node.output[0])
    if before is None or after is None:
        return call.unknown("that reshapes in a way which the graph leaves open")
    rows, columns, rank = call.map.rows, call.map.columns, len(after)
    if not _keep_images(before, after):
        return call.unknown(_MIXING_IMAGES)
    if columns != rows + 1 or rank < 3:
        return _row(call) if rank < 3 else call.unknown("that moves pixels")
    if columns == call.map.rank - 1 and _are_equal(before[-2:], after[-2:]):
        return call.result(rank=rank, rows=rank - 2, columns=rank - 1)
    if columns < rank and _are_equal(before[: columns + 1], after[: columns + 1]):
        return call.result(rank=rank)
    if _are_one(after[2:]) and columns == call.map.rank - 1:
        return _row(call)  # (N, C H W, 1, 1)
    return Reshaped(call.unknown("that moves pixels").reason, call.sources[0])


def _keep_images(before: Shape, after: Shape) -> bool:
    """Whether the first axis of a reshape is still that of the images: it, or all the rest, is as long as before."""
    if before[0] == after[0] is not None:
        return True
    rest, other = _product(before[1:]), _product(after[1:])
    return rest == other is not None


def _product(lengths: Shape) -> tuple[int, list[str]] | None:
    """The product of lengths, with the names of those that are told when the graph runs; None: some have no name."""
    if None in lengths:
        return None
    names = sorted(length for length in lengths if isinstance(length, str))
    return prod(length for length in lengths if isinstance(length, int)), names


def _lost_further(call: Call, unknowns: list[Unknown]) -> Value:
    """What is computed from one map in another shape, and no other, is followed further; all else stays unknown."""
    reshaped = [one for one in unknowns if isinstance(one, Reshaped)]
    if len(reshaped) == len(unknowns) and len({one.source for one in reshaped}) == 1 and not call.sources:
        return _reshaped(call, reshaped[0])
    lost = first_lost(unknowns)
    if call.node.op_type in operators.ATTENTIONS:
        return lost.attended_by(described(call.node))
    return Unknown(lost.reason)


def _reshaped(call: Call, found: Reshaped) -> Value:
    """Arithmetic and norms keep every value in its place, so a reshape to the map's own shape brings the map back."""
    if call.node.op_type in operators.KEEPING_PLACES:
        return found
    before, after = call.graph.shape(found.source), call.graph.shape(call.node.output[0])
    if call.node.op_type == "Reshape" and before and after and len(before) == len(after):
        one = _map(found.source, call.values)
        is_image = one.places == (0, one.rank - 2, one.rank - 1)
        if is_image and _are_equal(before[-2:], after[-2:]) and _keep_images(before, after):
            return replace(one, kind="other", step=None, signed=True, sources=(found.source,))
    if call.node.op_type in operators.ATTENTIONS:
        return found.attended_by(described(call.node))
    return Unknown(found.reason)


def _are_equal(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return None not in before and before == after


def _are_one(lengths: tuple[Any, ...]) -> bool:
    return set(lengths) == {1}


def _squeezing(call: Call) -> Value:
    axes = call.constant(1, "axes")
    shape = call.graph.shape(call.sources[0])
    if axes is None:
        axes = [axis for axis, length in enumerate(shape or ()) if length == 1]
    dropped = {axis % call.map.rank for axis in axes}
    if dropped & set(call.map.spatial):
        return Vector() if dropped >= set(call.map.spatial) else call.unknown("that drops rows or columns")
    if call.map.images in dropped:
        return call.unknown("that drops the axis of the images")
    return _rearranged(call, [axis for axis in range(call.map.rank) if axis not in dropped])


def _unsqueezing(call: Call) -> Value:
    axes = call.constant(1, "axes")
    if axes is None:
        return call.unknown("that adds computed axes")
    order = list(range(call.map.rank))
    for axis in sorted(axis % (call.map.rank + len(axes)) for axis in axes):
        order.insert(axis, -1)
    return _rearranged(call, order)


def _gathering(call: Call) -> Value:
    axis = call.settings.get("axis", 0) % call.map.rank
    indices = call.graph.shape(call.node.input[1])
    if axis == call.map.images:
        return call.unknown("that picks images")
    if axis in call.map.spatial or call.node.input[0] != call.sources[0] or indices is None or len(indices) > 1:
        return call.unknown("that picks pixels")
    return _rearranged(call, [one for one in range(call.map.rank) if one != axis or indices])


def _split(call: Call) -> Value:
    axis = call.settings.get("axis", 0)
    return call.unknown("that cuts maps") if axis % call.map.rank in call.map.places else call.result()


_RULES: tuple[tuple[Any, Callable[[Call], Value]], ...] = (
    (operators.SIGNED_BY_ACTIVATION, _activation),
    (("Clip",), _clip),
    (("QuantizeLinear",), _quantisation),
    (operators.UNCHANGED, _unchanged),
    (operators.NORMALISATIONS, _normalisation),
    (("Conv",), _convolution),
    (("ConvTranspose",), _transposed_convolution),
    (operators.INTEGER_CONVOLUTIONS, _integer_convolution),
    (operators.POOLINGS, _pooling),
    (("DepthToSpace",), _pixels_of_channels),
    (("SpaceToDepth",), _channels_of_pixels),
    (("Pad",), _padding),
    (("Slice",), _slicing),
    (("Resize", "Upsample"), _resizing),
    (operators.PRODUCTS, _linear),
    (operators.ARITHMETIC, _arithmetic),
    (("Concat",), _concatenation),
    (operators.GLOBAL_POOLINGS, _global_pooling),
    (operators.SOFTMAXES, _softmax),
    (operators.REDUCTIONS, _reduction),
    (("Flatten",), _flattening),
    (("Reshape",), _reshaping),
    (("Transpose",), _transposition),
    (("Squeeze",), _squeezing),
    (("Unsqueeze",), _unsqueezing),
    (("Gather",), _gathering),
    (("Split",), _split),
)
