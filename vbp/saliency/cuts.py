"""Where a network is cut into stages, and the paths between two cuts: of any kind of graph, without torch.

A stage is an activation output that every path to the last stage crosses, with a convolution between it and the stage
below. If a block ends in an addition or concatenation without an activation after it, that output is the stage. All
other operations are geometry. An activation inside a branch is no stage and does not prevent one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Generic

from vbp.errors import UsageError
from vbp.saliency.pixels import MapOf, Node, Step


@dataclass(frozen=True)
class Strand(Generic[Step]):
    """Part of the paths between two cuts: steps in forward order that begin where other strands end."""

    sources: tuple[int, ...]
    """Numbers of the strands that are joined where this one begins, from 1; 0 is the point where the branches split."""
    steps: tuple[Step, ...] = ()


def stages_of(maps: Mapping[Node, MapOf[Node, Step]]) -> Iterator[tuple[Node, list[list[Strand[Step]]]]]:
    """The stages from the input upwards: each with the strands of every segment between it and the stage below.

    Args:
        maps: the trunk in order of execution, from the network's input on.
    """
    readers = _readers(maps)
    strands: list[list[Strand[Step]]] = []
    convolved = False
    for segment in _segments(list(maps), readers):
        top = segment[-1]
        strands.append(_strands(segment, maps))
        convolved = convolved or any(maps[node].kind == "convolution" for node in segment[1:])
        if convolved and _is_stage(top, maps, readers):
            yield top, strands
            strands, convolved = [], False


def chosen(names: Sequence[str], asked: Collection[str], is_last: Callable[[], Sequence[bool]]) -> list[bool]:
    """Which stages are asked for.

    Args:
        names: of the stages, from the input upwards.
        asked: `all`; `last`, the last of each resolution; or names.
        is_last: says of each stage whether it is the last of its resolution.

    Raises:
        UsageError: nothing is asked for, or there is no stage with such a name.
    """
    if missing := [name for name in asked if name not in (*names, "all", "last")]:
        raise UsageError(f"stages: {missing[0]!r} is none of all, last, {_listed(names, missing[0])}.")
    if not asked:
        raise UsageError(f"stages: give at least one of all, last, {_listed(names)}.")
    resizing = is_last() if "last" in asked else [False] * len(names)
    return ["all" in asked or name in asked or last for name, last in zip(names, resizing, strict=True)]


def is_partial(asked: Collection[str]) -> bool:
    """Whether a stage is named, so that a network may be explained up to it alone."""
    return not {"all", "last"}.issuperset(asked)


def _listed(names: Sequence[str], wanted: str = "") -> str:
    """At most twelve of the names: those similar to `wanted`, or the first ones."""
    if len(names) <= 12:
        return ", ".join(names)
    shown = get_close_matches(wanted, names, 12, 0.4) or names[:12]
    return f"{', '.join(shown)} ({len(names)} in all)"


def reached(starts: Iterable[Node], follow_from: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """All nodes to which `follow_from` leads, step by step, and the starts."""
    waiting = list(starts)
    found: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += follow_from(node)
    return found


def _readers(maps: Mapping[Node, MapOf[Node, Step]]) -> dict[Node, list[Node]]:
    """For each map, the maps that are computed from it."""
    readers: dict[Node, list[Node]] = {node: [] for node in maps}
    for node, value in maps.items():
        for source in value.sources:
            readers[source].append(node)
    return readers


def _segments(nodes: list[Node], readers: Mapping[Node, list[Node]]) -> Iterator[list[Node]]:
    """The trunk between every two neighbouring cut nodes, both included.

    In order of execution, every path crosses a node if no earlier node is read after it. Ends of the trunk count as
    read after everything: if there are several heads, only the trunk that they share has stages.
    """
    position = {node: number for number, node in enumerate(nodes)}
    farthest, last_cut = 0, 0
    for number, node in enumerate(nodes):
        if number and farthest <= number:
            yield nodes[last_cut : number + 1]
            last_cut = number
        farthest = max([farthest, *(position[reader] for reader in readers[node])] if readers[node] else [len(nodes)])


def _is_stage(node: Node, maps: Mapping[Node, MapOf[Node, Step]], readers: Mapping[Node, list[Node]]) -> bool:
    """Whether a cut node is an activation, or a join that no activation follows."""
    if not maps[node].joins:
        return maps[node].kind == "activation"
    while len(readers[node]) == 1:
        (node,) = readers[node]
        if maps[node].kind != "other" or maps[node].step is not None:
            return maps[node].kind != "activation"
    return True


def _strands(segment: list[Node], maps: Mapping[Node, MapOf[Node, Step]]) -> list[Strand[Step]]:
    """The paths between the two ends of a segment; none if they lead pixel by pixel."""
    strands: list[Strand[Step]] = []
    strand_of = {segment[0]: 0}
    for node in segment[1:]:
        step = maps[node].step
        sources = tuple(strand_of[source] for source in maps[node].sources)
        if step is None and len(set(sources)) == 1:
            strand_of[node] = sources[0]
        else:
            strands.append(Strand(sources, () if step is None else (step,)))
            strand_of[node] = len(strands)
    return _merged(strands)


def _merged(strands: list[Strand[Step]]) -> list[Strand[Step]]:
    """The same paths in fewer strands: a strand that is the only continuation of another is joined to it."""
    readers = Counter(source for strand in strands for source in strand.sources)
    merged: list[Strand[Step]] = []
    place = {0: 0}
    for number, strand in enumerate(strands, 1):
        sources = tuple(place[source] for source in strand.sources)
        if len(sources) == 1 and sources[0] and readers[strand.sources[0]] == 1:
            lower = merged[sources[0] - 1]
            merged[sources[0] - 1] = Strand(lower.sources, lower.steps + strand.steps)
            place[number] = sources[0]
        else:
            merged.append(Strand(sources, strand.steps))
            place[number] = len(merged)
    return merged
