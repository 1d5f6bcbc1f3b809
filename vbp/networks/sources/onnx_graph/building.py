"""What the rules for operators share: a call with its inputs and attributes, and the network that is being built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vbp.errors import ModelError
from vbp.networks.rebuilt import Rebuilt


class Settings:
    """The attributes of an operator.

    Attributes:
        unread: names of those that nobody has asked for.
    """

    def __init__(self, node: Any) -> None:
        from onnx import helper

        self._values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        self.unread = set(self._values)

    def get(self, name: str, usual: Any = None) -> Any:
        """The value, or the usual one."""
        self.unread.discard(name)
        return self._values.get(name, usual)

    def text(self, name: str, usual: str) -> str:
        """The value of a text."""
        value = self.get(name)
        return usual if value is None else str(value.decode())


@dataclass(frozen=True)
class Call:
    """One operator at work."""

    kind: str
    name: str
    """Name of its node in the file, or of its result."""
    results: Sequence[str]
    inputs: Sequence[str]
    given: Sequence[Any]
    """What the inputs stand for: a node, a tensor, or a list of sizes; None for one that is left out."""
    settings: Settings

    def at(self, position: int) -> Any:
        """An input that may be left out; None then."""
        return self.given[position] if position < len(self.given) else None

    def numbers(self, position: int, attribute: str) -> list[Any] | None:
        """Whole numbers, which older operators have as attribute, newer ones as input; None without them."""
        found = self.settings.get(attribute)
        value = self.at(position)
        return list(found) if found is not None else None if value is None else numbers_in(value)


class Building:
    """The network that is being built.

    Args:
        name: the model's name, for errors.
        model: the ``ModelProto``.

    Attributes:
        built: the layers and calls.
        opset: ONNX's version for this model.
        shapes: shape of each tensor as far as it is known from the file; None for open lengths.
        last: results that no operator reads.
        values: what each name stands for: a node, a tensor of the file, or a list of sizes.
    """

    def __init__(self, name: str, model: Any) -> None:
        self._name, self.built = name, Rebuilt("FromONNX")
        self.values = dict[str, Any]()
        self.opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=1)
        self.shapes = _shapes(model)
        read = {each for node in model.graph.node for each in node.input}
        self.last = {each.name for each in model.graph.output} - read

    def unknown(self, what: str) -> ModelError:
        """The error for an operator that is not followed; `what` begins with its kind."""
        return ModelError(
            f"model {self._name!r} has the operator {what}, which is not followed; explain the network that it was "
            "exported from: --model FILE.py:FUNCTION."
        )

    def rank(self, call: Call) -> int:
        """Number of axes of the first input."""
        value = call.given[0]
        shape = list(value.shape) if isinstance(value, Tensor) else self.shapes.get(call.inputs[0])
        if shape is None:
            raise self.unknown(f"{call.kind} ({call.name}) of a map whose shape the file does not tell")
        return len(shape)

    def axes(self, call: Call, axes: Iterable[int], rank: int | None = None) -> list[int]:
        """The axes, counted from the front, in order."""
        axes = list(axes)
        rank = self.rank(call) if rank is None and any(axis < 0 for axis in axes) else rank
        return sorted(axis if axis >= 0 else axis + (rank or 0) for axis in axes)

    def refuse_images(self, call: Call, axes: Iterable[int]) -> None:
        """Refuse the first axis among these.

        Raises:
            ModelError: it is there.
        """
        if 0 in axes:
            raise self.unknown(f"{call.kind} ({call.name}) over the first axis, which is that of the images")

    def node(self, value: Any, call: Call) -> Any:
        """A value as an argument of PyTorch's functions: a node or a number."""
        if isinstance(value, Tensor):
            return value.item() if value.ndim == 0 else self.built.constant(f"{call.name}_value", value)
        return value

    def nodes(self, call: Call) -> list[Any]:
        """The inputs as arguments of PyTorch's functions.

        Raises:
            ModelError: sizes are among them, or a tensor that has other values for each image.
        """
        if any(isinstance(value, list) for value in call.given):
            raise self.unknown(f"{call.kind} ({call.name}) of sizes and other numbers")
        ranks = {
            len(self.shapes[name])
            for name, value in zip(call.inputs, call.given, strict=True)
            if not isinstance(value, Tensor) and name in self.shapes
        }
        tensors = [value for value in call.given if isinstance(value, Tensor)]
        if any(value.ndim >= max(ranks, default=value.ndim + 1) and value.shape[0] > 1 for value in tensors):
            self.refuse_images(call, [0])
        as_tensor = call.kind == "Div"  # PyTorch divides no plain number by a tensor
        return [
            self.node(value.reshape(1) if as_tensor and number == 0 and isinstance(value, Tensor) else value, call)
            for number, value in enumerate(call.given)
        ]


def tensor_of(proto: Any) -> Tensor:
    """The tensor of a ``TensorProto``; kinds of numbers that NumPy lacks become float32."""
    from onnx import numpy_helper

    array = numpy_helper.to_array(proto)
    return torch.from_numpy((array if array.dtype.kind in "fiub" else array.astype("float32")).copy())


def _shapes(model: Any) -> dict[str, list[int | None]]:
    """Shape of each tensor as far as it is known from the file; None for open lengths."""
    from onnx import shape_inference

    with suppress(Exception):  # too large for a message, or with faults that its operators tell
        model = shape_inference.infer_shapes(model, data_prop=True)
    found = {}
    for each in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        if each.type.tensor_type.HasField("shape"):
            sizes = each.type.tensor_type.shape.dim
            found[each.name] = [size.dim_value if size.HasField("dim_value") else None for size in sizes]
    return found


def numbers_in(value: Any) -> list[Any]:
    """Sizes as a list: numbers, and nodes that compute them."""
    return value if isinstance(value, list) else [int(number) for number in value.flatten()]


Rule = Callable[[Building, Call], Any]
"""Makes the result of an operator; a tuple if there are several."""
