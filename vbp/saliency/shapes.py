"""What every operation of a graph gives for images of one shape, computed on tensors without data (torch's `meta`)."""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import functional as F

from vbp.saliency.operations import (
    NORMALISATIONS,
    SIGNED_BY_ACTIVATION,
    SOFTMAXES,
    UNCHANGED,
    UPSAMPLINGS,
    operation_of,
)

SAME_SIZE = frozenset((*SIGNED_BY_ACTIVATION, *UNCHANGED, *NORMALISATIONS, *SOFTMAXES)) - {"type_as"}
"""Operations whose result has the size of their input: not computed, since torch does so in slow Python code."""

ImageShape = tuple[int, int, int, int]
"""Images, channels, rows, columns."""


def larger(shape: ImageShape) -> ImageShape:
    """The shape of images of another size, of which no length is the same after any usual network."""
    images, channels, rows, columns = shape
    return images, channels, 2 * rows - rows // 4, 2 * columns


class Shapes:
    """The results of a graph's operations: tensors have shapes but no data, numbers have their values.

    The graph may grow while it is asked. Nothing of the network runs but its layers, and those without their hooks.

    Args:
        model: has the layers that the graph calls.
        shape: the shape of the images.

    Attributes:
        images: how many.
    """

    def __init__(self, model: nn.Module, shape: ImageShape):
        self.images = shape[0]
        self._model = model
        self._shape = shape
        self._twins: dict[str, nn.Module] = {}
        self._results: dict[Node, Any] = {}
        self._last: Node | None = None

    def __getitem__(self, node: Node) -> Any:
        """The result of one operation.

        Raises:
            KeyError: it depends on the data, or the network does not take images of this shape.
        """
        for waiting in self._until(node):
            # A layer may raise anything when it is called with what does not suit it.
            try:
                self._results[waiting] = self._result(waiting)
            except Exception:  # noqa: S112
                continue
        return self._results[node]

    def number(self, node: Node) -> int | float | bool | None:
        """The result if it is one number; None if it is not, or is not known."""
        try:
            found = self[node]
        except KeyError:
            return None
        return found if isinstance(found, int | float) else None

    def size(self, node: Node) -> tuple[int, ...] | None:
        """The shape of the result; None if it is no tensor, or is not known."""
        try:
            found = self[node]
        except KeyError:
            return None
        return tuple(found.shape) if isinstance(found, Tensor) else None

    def _until(self, node: Node) -> Iterator[Node]:
        """The operations up to this one that were not asked for yet, in order."""
        while node not in self._results and self._last is not node:
            following = next(iter(node.graph.nodes)) if self._last is None else self._last.next
            if following.op == "root":
                return
            self._last = following
            yield following

    def _result(self, node: Node) -> Any:
        if node.op == "placeholder":
            if any(known.op == "placeholder" for known in self._results):
                raise KeyError(node)
            return torch.empty(self._shape, dtype=_dtype(self._model), device="meta")
        if node.op == "get_attr":
            found = operator.attrgetter(str(node.target))(self._model)
            return _without_data(found) if isinstance(found, Tensor) else found
        args, settings = map_arg((node.args, node.kwargs), self._results.__getitem__)
        operation = operation_of(node, self._model)
        if operation in SAME_SIZE and isinstance(args[0], Tensor):
            return args[0]
        with torch.no_grad():
            if operation in UPSAMPLINGS:
                return _upsampled(node, self._model, args, settings)
            if node.op == "call_module":
                return self._twin(str(node.target)).forward(*args, **settings)
            if node.op == "call_method":
                # strides are not followed, and only by them a view may be refused
                name = "reshape" if node.target == "view" and not settings else str(node.target)
                return getattr(args[0], name)(*args[1:], **settings)
            return node.target(*args, **settings)  # type: ignore[operator]

    def _twin(self, name: str) -> nn.Module:
        """The layer on tensors without data."""
        if name not in self._twins:
            self._twins[name] = _twin(self._model.get_submodule(name))
        return self._twins[name]


class Sizes:
    """The sizes of a network's values for images of one shape.

    Args:
        shapes: what every operation gives.
        larger: the same for larger images.

    Attributes:
        images: how many images they are for.
        used: the sizes on which the geometry depends.
    """

    def __init__(self, shapes: Shapes, larger: Shapes):
        self.images = shapes.images
        self._shapes = shapes
        self._larger = larger
        self.used: set[Node] = set()

    def __call__(self, node: Node) -> Any:
        """The number that a node computes from sizes; the node itself if it computes none."""
        number = self._shapes.number(node)
        if number is None:
            return node
        self.used.add(node)
        return number

    def of(self, node: Node) -> tuple[int, ...] | None:
        """The shape of a tensor; None if it is not known."""
        return self._shapes.size(node)

    def is_fixed(self, node: Node) -> bool:
        """Whether a tensor is known to have the same size whatever size the images have."""
        size = self.of(node)
        return size is not None and size == self._larger.size(node)


def _upsampled(node: Node, model: nn.Module, args: Any, settings: Any) -> Tensor:
    """The size by the simplest mode: without data, torch computes bilinear weights in Python."""
    if node.op == "call_module":
        layer: Any = model.get_submodule(str(node.target))
        return F.interpolate(args[0], layer.size, layer.scale_factor)
    settings = {**dict(zip(("size", "scale_factor"), args[1:3], strict=False)), **settings}
    return F.interpolate(args[0], settings.get("size"), settings.get("scale_factor"))


def _twin(module: nn.Module) -> nn.Module:
    """The same layer with weights without data, and without hooks."""
    twin = copy.copy(module)
    vars(twin).update(
        _parameters={name: _without_data(one) for name, one in module._parameters.items()},
        _buffers={name: _without_data(one) for name, one in module._buffers.items()},
        _modules={name: child if child is None else _twin(child) for name, child in module._modules.items()},
        _forward_hooks=OrderedDict(),
        _forward_pre_hooks=OrderedDict(),
    )
    return twin


def _without_data(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else torch.empty_like(tensor, device="meta", requires_grad=False)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
