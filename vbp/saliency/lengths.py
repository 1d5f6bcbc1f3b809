"""Which lengths of a tensor are the same for images of any size, by the operations that made it.

Comparing two sizes does not tell: with ``min(rows, 64)`` or ``x[:, :, :64]`` all large images have the same length.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.fx import Node

from vbp.saliency import operations
from vbp.saliency.shapes import SAME_SIZE, Shapes

Length = tuple[Node, int]
"""A tensor and one of its axes."""

_BY_CHANNEL = operations.POOLINGS | operations.ADAPTIVE_POOLINGS | operations.UPSAMPLINGS
"""Operations that change the last two axes alone."""


def is_constant(length: Length, model: nn.Module, shapes: Shapes) -> bool:
    """Whether a length is known to be the same for images of any size and number.

    Args:
        length: the axis is counted from the front.
        model: has the layers that the graph calls.
        shapes: the sizes for images of one shape.
    """
    waiting, seen = [length], {length}
    while waiting:
        sources = _sources(*waiting.pop(), model, shapes)
        if sources is None:
            return False
        waiting += [source for source in sources if source not in seen]
        seen.update(sources)
    return True


def _sources(node: Node, axis: int, model: nn.Module, shapes: Shapes) -> Iterable[Length] | None:
    """The lengths that alone decide this one; None: not known, or the size of the images does, too."""
    if node.op == "placeholder":
        return () if axis == 1 else None
    if node.op == "get_attr":
        return ()
    operation, data = operations.operation_of(node, model), operations.data_of(node)
    ranks = {source: len(size) for source in data if (size := shapes.size(source)) is not None}
    rank = len(shapes.size(node) or ())
    if not data or data[0] not in ranks:
        return _of_part(node, axis, model, shapes)
    same = [(data[0], axis)]
    if operation in SAME_SIZE:
        return same
    if operation in operations.MIXING:
        return _of_weights(node, operation, data) if axis == rank - 3 else None
    if operation in operations.LINEAR:
        return () if axis == rank - 1 and node.op == "call_module" else same
    if operation in _BY_CHANNEL:
        return same if axis < rank - 2 else None
    if operation in operations.ARITHMETIC:
        return [(one, axis - rank + ranks[one]) for one in ranks if axis >= rank - ranks[one]]
    if operation in operations.CONCATENATIONS:
        return [(one, axis) for one in ranks]
    if operation in operations.RESHAPINGS:
        return _of_given(node, axis)
    return None


def _of_weights(node: Node, operation: Any, data: list[Node]) -> Iterable[Length] | None:
    """Of the channels that a convolution makes."""
    if node.op == "call_module":
        return ()
    return [(data[1], 0)] if operation in operations.CONVOLUTIONS and len(data) > 1 else None


def _of_part(node: Node, axis: int, model: nn.Module, shapes: Shapes) -> Iterable[Length] | None:
    """Of one of the tensors into which another is cut."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    parts = node.args[0]
    is_cut = operations.operation_of(parts, model) in operations.SPLITS
    return [(operations.data_of(parts)[0], axis)] if is_cut and shapes.size(node) else None


def _of_given(node: Node, axis: int) -> Iterable[Length] | None:
    """Of a view, whose lengths are told."""
    given: Any = node.args[1:] if len(node.args) != 2 else node.args[1]
    if node.target in ("view_as", "reshape_as"):
        return [(given, axis)]
    if not isinstance(given, tuple | list) or axis >= len(given):
        return None
    length = given[axis]
    if isinstance(length, int):
        return () if length >= 0 else None
    if isinstance(length, Node) and length.target == "size" and len(length.args) == 2:
        asked, place = length.args
        return [(asked, place)] if isinstance(asked, Node) and isinstance(place, int) else None
    return None
