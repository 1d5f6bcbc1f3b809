"""Find the stages of a CNN by following its data from the input through every layer (torch.fx).

The order of definition has no effect; shared layers, in-place layers, ``F.relu`` and ``nn.ReLU`` are all supported.

`vbp.saliency.cuts` says what a stage is. A gate (multiplication by a globally pooled path, as in
squeeze-and-excitation) is no stage, and its pooled path is no path.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from torch import nn
from torch.fx import Graph, Node

from vbp.errors import ImageError, ModelError
from vbp.saliency.cuts import Strand, chosen, reached, stages_of
from vbp.saliency.dataflow import follow
from vbp.saliency.geometry import Branches, Geometry, Stage, map_sizes
from vbp.saliency.graph import graph_of
from vbp.saliency.operations import CONVOLUTIONS, MIXING, changed_by, data_of, name_of, operation_of
from vbp.saliency.pixels import say_what_lies_below
from vbp.saliency.shapes import ImageShape, Shapes, Sizes, larger
from vbp.saliency.sizes import Choice
from vbp.saliency.values import Map

COMMON = (3, 1, 4)
"""Channels of most images."""


@dataclass(frozen=True)
class Trace:
    """The stages of a network, and its forward pass."""

    stages: tuple[Stage, ...]
    """The stages from the input upwards."""
    taps: tuple[str, ...]
    """Name of the graph node whose output is the stage's map, for each stage."""
    graph: Graph
    """The whole forward pass, with in-place operations as steps of the data flow."""
    layouts: Mapping[str, tuple[int, int, int]]
    """The axes of images, rows and columns of those maps that are not (N, C, H, W), by name of the node."""
    choices: tuple[Choice, ...] = ()
    """What the network decided by the size of the images when it was traced."""
    sized: bool = False
    """Whether the stages hold for images of the traced size alone, because the network computes with it."""
    partial: bool = False
    """Whether a network was accepted of which the first stages alone can be followed."""

    def at(self, model: nn.Module, shape: ImageShape) -> Trace:
        """The trace for images of this shape: this one, this one with other geometry, or a new one.

        Raises:
            ImageError: the network does not take images of this size.
        """
        if not self.sized:
            return self
        shapes = Shapes(model, shape)
        try:
            if all(shapes.number(choice.node) == choice.value for choice in self.choices):
                return _traced(model, self.graph, self.choices, shape, self.partial)
            return trace(model, shape, self.partial)
        except ModelError as error:
            size = f"{shape[2]}x{shape[3]}"
            raise ImageError(f"{_name(model)} cannot be explained for an image of {size} pixels: {error}") from error

    def chosen(self, stages: str | Collection[str]) -> Trace:
        """The trace with the chosen stages; the others become part of the geometry.

        Args:
            stages: `all`; `last`, the last of each resolution; a name; or several of these.

        Raises:
            UsageError: nothing is chosen, or there is no stage with such a name.
        """
        asked = [stages] if isinstance(stages, str) else stages
        kept = chosen([one.name for one in self.stages], asked, lambda: [*map(_resizes, self.stages[1:]), True])
        return self if all(kept) else self._only(kept)

    def _only(self, kept: Sequence[bool]) -> Trace:
        stages: list[Stage] = []
        taps: list[str] = []
        steps: tuple[Geometry, ...] = ()
        for keep, stage, tap in zip(kept, self.stages, self.taps, strict=True):
            steps += stage.steps
            if keep:
                stages.append(replace(stage, steps=steps))
                taps.append(tap)
                steps = ()
        return replace(self, stages=tuple(stages), taps=tuple(taps))


def _resizes(stage: Stage) -> bool:
    """Whether a stage has another resolution than the stage below, by its geometry for two sizes."""
    (rows, columns), (more_rows, more_columns) = (map_sizes([stage], (side, side))[0] for side in (512, 1024))
    return (more_rows - rows, more_columns - columns) != (512, 512)


def trace(model: nn.Module, shape: ImageShape | None = None, partial: bool = False) -> Trace:
    """Find the stages of `model`.

    Args:
        model: a network of one image input. It is not modified.
        shape: of the images, for a network that computes with their size; default: two of 224x224 pixels.
        partial: accept a network of which only the first stages can be followed, as those before attention.

    Raises:
        ModelError: the network cannot be explained; says why in one sentence.
    """
    shape = shape or (2, channels_of(model), 224, 224)
    graph, choices = graph_of(model, shape)
    _untangle_in_place(graph, model)
    return _traced(model, graph, choices, shape, partial)


def channels_of(model: nn.Module) -> int:
    """How many channels the network wants: as many as its first convolution, if that takes the images themselves.

    Raises:
        ModelError: the network cannot be traced.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    first = next((layer.in_channels for layer in modules if isinstance(layer, nn.Conv2d)), 3)
    if first in COMMON:
        return first
    return next((channels for channels in (first, *COMMON) if _takes(model, (2, channels, 224, 224))), first)


def _takes(model: nn.Module, shape: ImageShape) -> bool:
    """Whether the shapes of a network's first convolution fit for images of this shape."""
    graph, _ = graph_of(model, shape)
    shapes = Shapes(model, shape)
    convolutions = (node for node in graph.nodes if node.op.startswith("call") and operation_of(node, model) in MIXING)
    return any(shapes.size(node) is not None for node in islice(convolutions, 1))


def _traced(model: nn.Module, graph: Graph, choices: tuple[Choice, ...], shape: ImageShape, partial: bool) -> Trace:
    sizes = Sizes(Shapes(model, shape), Shapes(model, larger(shape)))
    maps, refusal = follow(graph, model, sizes)
    stages, tapped = _stages(_trunk(graph, maps))
    for stage, one in zip(stages, tapped.values(), strict=True):
        if one.is_shared:
            raise ModelError(
                f"{_name(model)} lays the images of a batch into one axis with other values, and has a stage there, "
                f"which cannot be averaged image by image: {stage.name}."
            )
    if refusal and stages and not partial:
        raise ModelError(say_what_lies_below(refusal, stages[-1].name))
    if refusal and not stages and not refusal.is_attended:
        raise ModelError(refusal.reason)
    if not stages:
        has_convolution = any(operation_of(node, model) in CONVOLUTIONS for node in graph.nodes)
        missing = "no activation behind a 2-d convolution" if has_convolution else "no 2-d convolution"
        raise ModelError(f"{_name(model)} has {missing}, so VisualBackProp has no map to start from.")
    layouts = {name: one.places for name, one in tapped.items() if (one.rank, *one.places) != (4, 0, 2, 3)}
    return Trace(tuple(stages), tuple(tapped), graph, layouts, choices, bool(choices or sizes.used), partial)


def _untangle_in_place(graph: Graph, model: nn.Module) -> None:
    """Let later readers of a tensor that is changed in place read the output of the changing operation."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if (changed := changed_by(node, model)) is None:
            continue
        for reader in list(changed.users):
            if order[reader] > order[node]:
                reader.replace_input_with(changed, node)


def _stages(maps: Mapping[Node, Map]) -> tuple[list[Stage], dict[str, Map]]:
    """The stages from the input upwards, and their maps by the names of the nodes that compute them."""
    stages: list[Stage] = []
    tapped: dict[str, Map] = {}
    for top, segments in stages_of(maps):
        steps = tuple(step for strands in segments for step in _steps(strands))
        stages.append(Stage(name_of(top), steps, maps[top].signed))
        tapped[top.name] = maps[top]
    return stages, tapped


def _trunk(graph: Graph, maps: Mapping[Node, Map]) -> dict[Node, Map]:
    """The maps on the paths from the input to the last map on which all heads depend.

    A head is a map from which output is computed, but no map that leads to further output.
    """
    outputs = [node for node in graph.nodes if node.op == "output"]
    behind = reached(outputs, lambda node: () if node in maps else data_of(node))
    below = {end: reached([end], lambda node: maps[node].sources) for end in behind if end in maps}
    heads = [end for end in below if not any(end in nodes for other, nodes in below.items() if other is not end)]
    shared = set.intersection(*(below[head] for head in heads)) if heads else set()
    trunk = reached([node for node in maps if node in shared][-1:], lambda node: maps[node].sources)
    return {node: value for node, value in maps.items() if node in trunk}


def _steps(strands: list[Strand[Geometry]]) -> tuple[Geometry, ...]:
    """The geometry of a segment: nothing, a chain of steps, or branches."""
    if len(strands) > 1:
        return (Branches(tuple(strands)),)
    return strands[0].steps if strands else ()


def _name(model: nn.Module) -> str:
    return type(model).__name__
