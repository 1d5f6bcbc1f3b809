"""The stages of an ONNX graph: what `vbp.saliency.cuts` finds in its maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from vbp.attach import operators
from vbp.attach.dataflow import behind, follow
from vbp.attach.geometry import Geometry, Place
from vbp.attach.graph import Graph, Length
from vbp.attach.values import Map, place_of
from vbp.errors import ModelError
from vbp.saliency.cuts import Strand, chosen, reached, stages_of
from vbp.saliency.pixels import say_what_lies_below

NCHW, NHWC = Map(), Map(rows=1, columns=2)
CHANNELS = (1, 3, 4)
"""Of most images; they tell the order of the axes."""


@dataclass(frozen=True)
class Stage:
    """One averaged map, and the paths from it down to the map below; for the first stage, down to the input."""

    name: str
    """The tensor that is the stage's map."""
    place: Place
    """Where its values are read, up to a factor: the tensor itself, or one behind it."""
    rank: int
    """Number of axes of that tensor."""
    channels: Length
    """Of a tensor (N, C, H, W), if they are known; else None."""
    is_float32: bool
    """Whether its values are known to be float32."""
    signed: bool
    """Whether it may have negative values, which are set to 0 before averaging."""
    segments: tuple[Sequence[Strand[Geometry]], ...]
    """The paths of every segment between two cuts, from the input upwards."""


@dataclass(frozen=True)
class Network:
    """A graph as VisualBackProp sees it."""

    image: Place
    """Its input."""
    stages: tuple[Stage, ...]
    """From the input upwards."""


def find_stages(graph: Graph, partial: bool = False) -> Network:
    """The image input of a graph, and its stages.

    Args:
        graph: of the network.
        partial: accept a network of which only the first stages can be followed, as those before attention.

    Raises:
        ModelError: the graph cannot be explained; says why in one sentence.
    """
    image = _image(graph)
    shape = graph.shape(image.name) or ()
    is_nhwc = shape[-1:] and shape[-1] in CHANNELS and shape[1] not in CHANNELS
    layouts = (NHWC, NCHW) if is_nhwc else (NCHW, NHWC)
    refusals = []
    for layout in layouts:
        try:
            return Network(place_of(image.name, layout, graph), _stages(graph, image.name, layout, partial))
        except ModelError as error:
            refusals.append(error)
    raise refusals[0]


def _image(graph: Graph) -> onnx.ValueInfoProto:
    names = ", ".join(repr(value.name) for value in graph.inputs)
    if len(graph.inputs) != 1:
        raise ModelError(f"the graph has {len(graph.inputs)} inputs ({names}), and one is needed: a batch of images.")
    image: onnx.ValueInfoProto = graph.inputs[0]
    shape = graph.shape(image.name)
    if shape is None or len(shape) != 4:
        raise ModelError(
            f"the graph's input {image.name!r} has the shape {_told(shape)}, and a batch of images has four axes."
        )
    return image


def _told(shape: Sequence[object] | None) -> str:
    return "unknown" if shape is None else f"({', '.join(map(str, shape))})"


def _stages(graph: Graph, image: str, layout: Map, partial: bool) -> tuple[Stage, ...]:
    followed, refusal = follow(graph, image, layout)
    maps = _trunk(graph, followed)
    found: Iterator[tuple[str, list[list[Strand[Geometry]]]]] = stages_of(maps)
    stages = []
    for name, segments in found:
        value, tap = maps[name], _tap(name, graph)
        is_float32 = graph.element_type(tap) == onnx.TensorProto.FLOAT
        place = place_of(tap, value, graph)
        shape = graph.shape(tap) or ()
        channels = shape[1] if len(shape) == 4 and value.spatial == (2, 3) else None
        stages.append(Stage(name, place, value.rank, channels, is_float32, value.signed, tuple(segments)))
    if refusal and stages and not partial:
        raise ModelError(say_what_lies_below(refusal, stages[-1].name))
    if refusal and not stages and not refusal.is_attended:
        raise ModelError(refusal.reason)
    if not stages:
        convolves = any(node.op_type in operators.CONVOLUTIONS for node in graph.nodes)
        missing = "no activation behind a 2-d convolution" if convolves else "no 2-d convolution"
        raise ModelError(f"the graph has {missing}, so VisualBackProp has no map to start from.")
    return tuple(stages)


def _trunk(graph: Graph, maps: dict[str, Map]) -> dict[str, Map]:
    """The maps on the paths from the input to the last maps from which the graph's outputs are computed."""
    ends = [name for name in behind(graph, maps) if name in maps]
    trunk = reached(ends, lambda name: maps[name].sources)
    return {name: value for name, value in maps.items() if name in trunk}


def _tap(name: str, graph: Graph) -> str:
    """Where a stage's values are read, up to a factor: behind the last operator that may run as one with its own.

    Runtimes compute a quantised convolution with its quantisation, and GELU with its factor of 0.5, as one operator. A
    reader in between would keep them from it, and so change the network's outputs.
    """
    readers = graph.readers.get(name, [])
    kinds = {node.op_type for node in readers}
    if name in graph.outputs or not readers:
        return name
    if kinds == {"QuantizeLinear"} or (len(readers) == 1 and _is_factor(readers[0], name, graph)):
        return _tap(readers[0].output[0], graph)
    return str(readers[0].output[0]) if kinds == {"DequantizeLinear"} else name


def _is_factor(node: onnx.NodeProto, name: str, graph: Graph) -> bool:
    """Whether a node multiplies the tensor by a positive number, or divides it by one."""
    if node.op_type not in ("Mul", "Div") or (node.op_type == "Div" and node.input[0] != name):
        return False
    values = [value for one in node.input if (value := graph.constant(one)) is not None]
    return len(values) == 1 and values[0].size == 1 and bool((values[0] > 0).all())


def only(stages: Sequence[Stage], asked: Sequence[str]) -> tuple[Stage, ...]:
    """The stages that are asked for; the others become part of the geometry.

    Args:
        stages: of the network.
        asked: `all`; `last`, the last of each resolution; or names of stages.

    Raises:
        UsageError: there is no stage with such a name.
    """
    names = [stage.name for stage in stages]
    wanted = chosen(names, asked, lambda: [*(_scales(stage) != (1, 1) for stage in stages[1:]), True])
    kept: list[Stage] = []
    segments: tuple[Sequence[Strand[Geometry]], ...] = ()
    for stage, keep in zip(stages, wanted, strict=True):
        segments += stage.segments
        if keep:
            kept.append(replace(stage, segments=segments))
            segments = ()
    return tuple(kept)


def _scales(stage: Stage) -> tuple[float, float]:
    """How many pixels of the map below lie in a pixel of a stage's map, by rows and columns, along one path."""
    rows, columns = 1.0, 1.0
    for strands in stage.segments:
        number = len(strands)
        while number:
            for step in strands[number - 1].steps:
                rows, columns = rows * step.scale[0], columns * step.scale[1]
            number = strands[number - 1].sources[0]
    return rows, columns
