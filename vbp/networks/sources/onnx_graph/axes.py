"""Operators that move, join, cut or reduce axes, and those on sizes, which are lists here; the images stay apart."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from vbp.networks.sources.onnx_graph.building import Building, Call, Rule, numbers_in

ON_SIZES: Mapping[str, Callable[..., Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.floordiv,
}  # fmt: skip
"""Operators that compute with sizes as well."""


def on_sizes(building: Building, call: Call) -> list[Any]:
    """Numbers, and nodes that compute them when the network runs."""
    one, other = map(numbers_in, call.given)
    count = max(len(one), len(other))
    pairs = zip(*(each * count if len(each) == 1 else each for each in (one, other)), strict=True)
    function = ON_SIZES[call.kind]
    return [
        building.built.call(function, *pair) if any(isinstance(each, Node) for each in pair) else function(*pair)
        for pair in pairs
    ]


def _reduction(building: Building, call: Call, function: Callable[..., Any]) -> Any:
    axes, keeps = call.numbers(1, "axes"), bool(call.settings.get("keepdims", 1))
    if call.settings.get("noop_with_empty_axes", 0) and not axes:
        return call.given[0]
    rank = building.rank(call)
    axes = building.axes(call, axes or range(rank), rank)
    if axes[0] == 0 and keeps and building.shapes[call.inputs[0]][0] == 1:
        axes = axes[1:]  # made for one image
    building.refuse_images(call, axes)
    return building.built.call(function, call.given[0], tuple(axes), keepdim=keeps)


def _concat(building: Building, call: Call) -> Any:
    axis = call.settings.get("axis", 1)
    if all(isinstance(value, Tensor) for value in call.given):
        return torch.cat(list(call.given), axis)
    if any(isinstance(value, list) for value in call.given):
        return [number for value in call.given for number in numbers_in(value)]
    building.refuse_images(call, building.axes(call, [axis]))
    if any(isinstance(value, Tensor) for value in call.given):
        raise building.unknown(f"Concat ({call.name}) of a map and a tensor of the file, as for coordinates")
    return building.built.call(torch.cat, list(call.given), axis)


def _split(building: Building, call: Call) -> Any:
    (axis,) = building.axes(call, [call.settings.get("axis", 0)])
    building.refuse_images(call, [axis])
    sizes, count = call.numbers(1, "split"), call.settings.get("num_outputs", len(call.results))
    if sizes is None:
        length = (building.shapes.get(call.inputs[0]) or [])[axis]
        if length is None:
            raise building.unknown(f"Split ({call.name}) of an axis whose length the file does not tell")
        each = -(-length // count)
        sizes = [each] * (count - 1) + [length - each * (count - 1)]
    parts = building.built.call(torch.split, call.given[0], sizes, axis)
    return tuple(building.built.call(operator.getitem, parts, number) for number in range(len(sizes)))


def _flatten(building: Building, call: Call) -> Any:
    if building.axes(call, [call.settings.get("axis", 1)]) != [1]:
        raise building.unknown("Flatten of another axis than 1")
    return building.built.call(torch.flatten, call.given[0], 1)


def _reshape(building: Building, call: Call) -> Any:
    """A reshape that keeps the images apart, however many there were when the file was made."""
    source, sizes = call.given[0], call.numbers(1, "shape") or []
    if isinstance(source, list):
        return source
    if call.settings.get("allowzero", 0) and 0 in sizes:
        raise building.unknown(f"Reshape ({call.name}) to nothing")
    if isinstance(source, Tensor):
        return source.reshape([source.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])
    before = building.shapes.get(call.inputs[0]) or []
    if not _keeps_images(sizes, before):
        raise building.unknown(f"Reshape ({call.name}) that mixes images")
    if len(sizes) == 2 and sizes[1] in (-1, _product(before[1:])):
        return building.built.call(torch.flatten, source, 1)
    kept = {0} | {axis for axis, size in enumerate(sizes) if size == 0}
    after = [building.built.method("size", source, axis) if axis in kept else sizes[axis] for axis in range(len(sizes))]
    if len(sizes) > 3 and None not in before[-2:] and before[-2:] == sizes[-2:]:  # as channels are shuffled
        after[-2:] = (building.built.method("size", source, len(before) + axis) for axis in (-2, -1))
    return building.built.method("reshape", source, *after)


def _transpose(building: Building, call: Call) -> Any:
    order = call.settings.get("perm") or list(reversed(range(building.rank(call))))
    if isinstance(call.given[0], Tensor):
        return call.given[0].permute(*order)
    building.refuse_images(call, [] if order[0] == 0 else [0])
    return building.built.call(torch.permute, call.given[0], tuple(order))


def _squeeze(building: Building, call: Call) -> Any:
    made, axes = call.given[0], call.numbers(1, "axes")
    if isinstance(made, list):
        return made
    if isinstance(made, Tensor):
        return made.squeeze() if axes is None else made.squeeze(tuple(axes))
    if axes is None:
        lengths = building.shapes.get(call.inputs[0], [None] * 2)
        if None in lengths[1:]:
            raise building.unknown(f"Squeeze ({call.name}) of axes whose lengths the file does not tell")
        axes = [axis for axis, length in enumerate(lengths) if length == 1]
    axes = building.axes(call, axes)
    if call.results[0] in building.last:  # nothing counts its axes, so it may keep that of its images
        axes = [axis for axis in axes if axis != 0]
    building.refuse_images(call, axes)
    for axis in reversed(axes):
        made = building.built.call(torch.squeeze, made, axis)
    return made


def _unsqueeze(building: Building, call: Call) -> Any:
    made, axes = call.given[0], call.numbers(1, "axes") or []
    if isinstance(made, list):
        return made
    rank = building.rank(call) + len(axes) if any(axis < 0 for axis in axes) else None
    for axis in building.axes(call, axes, rank):
        if isinstance(made, Tensor):
            made = made.unsqueeze(axis)
        else:
            building.refuse_images(call, [axis])
            made = building.built.call(torch.unsqueeze, made, axis)
    return made


def _shape(building: Building, call: Call) -> Any:
    source, chosen = call.given[0], slice(call.settings.get("start", 0), call.settings.get("end"))
    if isinstance(source, list):
        return [len(source)][chosen]
    if isinstance(source, Tensor):
        return list(source.shape)[chosen]
    return [building.built.method("size", source, axis) for axis in range(building.rank(call))[chosen]]


def _gather(building: Building, call: Call) -> Any:
    source, places, axis = call.given[0], call.given[1], call.settings.get("axis", 0)
    if isinstance(source, list):
        return [source[number] for number in numbers_in(places)]
    if not isinstance(source, Tensor) or not isinstance(places, Tensor) or places.ndim > 1:
        raise building.unknown("Gather of maps")
    found = source.movedim(axis, 0)[places.long()]
    return found.movedim(0, axis) if places.ndim else found


def _slice(building: Building, call: Call) -> Any:
    """Of sizes, or of maps, whose images stay."""
    source, starts, ends = call.given[0], call.numbers(1, "starts") or [], call.numbers(2, "ends") or []
    axes = call.numbers(3, "axes") or list(range(len(starts)))
    steps = numbers_in(call.at(4)) if call.at(4) is not None else [1] * len(starts)
    is_computed = any(isinstance(number, Node) for number in (*starts, *ends))
    if any(step < 1 for step in steps) or (is_computed and not isinstance(source, Node)):
        raise building.unknown(f"Slice ({call.name}) backwards, or of numbers at computed places")
    parts = [slice(start, end, step) for start, end, step in zip(starts, ends, steps, strict=True)]
    if isinstance(source, list):
        return source[parts[0]]
    rank = len(source.shape) if isinstance(source, Tensor) else building.rank(call)
    index = [slice(None)] * rank
    for axis, part in zip(axes, parts, strict=True):
        index[axis] = part
    if isinstance(source, Tensor):
        return source[tuple(index)]
    building.refuse_images(call, [] if index[0] == slice(None) else [0])
    return building.built.call(operator.getitem, source, tuple(index))


def _depth_to_space(building: Building, call: Call) -> Any:
    """ONNX counts the pixels of a square before the channels unless it says CRD, PyTorch behind them."""
    side, image = call.settings.get("blocksize"), call.given[0]
    if call.settings.text("mode", "DCR") == "DCR":
        image = building.built.call(torch.channel_shuffle, image, side * side)
    return building.built.call(F.pixel_shuffle, image, side)


def _space_to_depth(building: Building, call: Call) -> Any:
    channels = (building.shapes.get(call.inputs[0]) or [None] * 4)[1]
    if channels is None:
        raise building.unknown(f"SpaceToDepth ({call.name}) of a map whose channels the file does not tell")
    image = building.built.call(F.pixel_unshuffle, call.given[0], call.settings.get("blocksize"))
    return building.built.call(torch.channel_shuffle, image, channels)


def _pad(building: Building, call: Call) -> Any:
    pads, filler = call.numbers(1, "pads") or [], call.at(2)
    value = call.settings.get("value", 0.0 if filler is None else float(filler))
    half = len(pads) // 2
    if call.at(3) is not None or half != 4 or any(pads[:2] + pads[half : half + 2]):
        raise building.unknown("Pad of other axes than rows and columns")
    mode = call.settings.text("mode", "constant")
    sides = (pads[3], pads[7], pads[2], pads[6])
    if mode == "constant":
        return building.built.call(F.pad, call.given[0], sides, "constant", value)
    kinds = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}
    return building.built.call(F.pad, call.given[0], sides, kinds[mode])


def _keeps_images(sizes: Sequence[Any], before: Sequence[int | None]) -> bool:
    """Whether the first axis of a reshape is that of its input; another number of pixels is told when it runs."""
    first, rest = sizes[0], sizes[1:]
    if isinstance(first, Node):
        return bool(first.target == "size" and first.args[1] == 0)
    if first == 0:
        return True
    if first > 0 and before and before[0] is not None:
        return bool(first == before[0])
    whole, inner = _product(rest), _product(before[1:])
    return bool(rest) and -1 not in rest and (whole is None or inner is None or whole == inner)


def _product(lengths: Sequence[Any]) -> int | None:
    """None where one is not known."""
    known = bool(lengths) and all(isinstance(length, int) and length > 0 for length in lengths)
    return math.prod(lengths) if known else None


RULES: Mapping[str, Rule] = {
    "Concat": _concat,
    "Split": _split,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Pad": _pad,
    "ReduceMean": partial(_reduction, function=torch.mean),
    "ReduceSum": partial(_reduction, function=torch.sum),
    "ReduceMax": partial(_reduction, function=torch.amax),
}
