"""The graph of an ONNX model, built again from PyTorch's layers and functions, operator by operator.

The first axis of every map is that of the images: a file may be made for one image, the network takes any number.  What
would mix images is refused by its name, as is every operator and every attribute that is not followed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from vbp.errors import ModelError
from vbp.networks.rebuilt import Rebuilt, batch_norm, convolution, linear

SIMPLE: Mapping[str, Callable[..., Any]] = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Mish": F.mish,
    "Softplus": F.softplus, "Exp": torch.exp, "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg,
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow,
}  # fmt: skip
"""Operators that PyTorch has as functions of the same arguments."""
WITH_ALPHA: Mapping[str, tuple[Callable[..., Any], float]] = {"LeakyRelu": (F.leaky_relu, 0.01), "Elu": (F.elu, 1.0)}
ON_NUMBERS: Mapping[str, Callable[..., Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.floordiv,
}  # fmt: skip
"""The same operators on sizes, which are lists here."""
OVER_AXES: Mapping[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax,
}  # fmt: skip
WITHOUT_EFFECT: Mapping[str, set[str]] = {
    "Conv": {"kernel_shape"}, "MaxPool": {"storage_order"}, "Dropout": {"ratio", "seed", "is_test"},
    "BatchNormalization": {"momentum", "is_test"}, "Gemm": {"broadcast"}, "Cast": {"saturate", "round_mode"},
    "QuantizeLinear": {"saturate", "output_dtype"}, "DequantizeLinear": {"output_dtype"},
}  # fmt: skip
"""Attributes that change nothing here; any other one that is not read is refused."""
NEVER_NEGATIVE = {F.relu, F.relu6, F.hardsigmoid, F.softplus, torch.sigmoid, torch.exp, torch.sqrt, torch.abs}
KEEP_THE_SIGN = {
    torch.add, torch.mul, torch.cat, torch.mean, torch.sum, torch.amax, torch.flatten, torch.permute, torch.squeeze,
    torch.unsqueeze, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, "reshape", operator.getitem, torch.split,
}  # fmt: skip


def rebuilt(model: Any, name: str) -> nn.Module:
    """The network of an ONNX model.

    Args:
        model: the ``ModelProto``, with its weights.
        name: the model's name, for errors.

    Raises:
        ModelError: an operator is not known, or the model takes more than images.
    """
    graph = model.graph
    held = {each.name: _tensor(each) for each in graph.initializer}
    images = [each.name for each in graph.input if each.name not in held]
    if len(images) != 1:
        raise ModelError(f"model {name!r} takes {len(images)} inputs ({', '.join(images)}), not images alone.")
    making = _Making(name, model, held)
    making.values[images[0]] = making.built.image
    for node in graph.node:
        making.add(node)
    outputs = [making.values.get(each.name) for each in graph.output]
    if not all(isinstance(value, Node) for value in outputs):
        raise ModelError(f"model {name!r} has an output that does not depend on the image.")
    return making.built.network(outputs[0] if len(outputs) == 1 else tuple(outputs))


def is_quantised(model: Any) -> bool:
    """Whether weights or maps are integers that stand for other numbers."""
    return any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def _tensor(proto: Any) -> Tensor:
    from onnx import numpy_helper

    array = numpy_helper.to_array(proto)
    return torch.from_numpy((array if array.dtype.kind in "fiub" else array.astype("float32")).copy())  # bfloat16


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


class _Settings:
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
class _Call:
    """One operator at work."""

    kind: str
    name: str
    """Name of its node in the file, or of its result."""
    results: Sequence[str]
    inputs: Sequence[str]
    given: Sequence[Any]
    """What the inputs stand for: a node, a tensor, or a list of sizes; None for one that is left out."""
    settings: _Settings

    def at(self, position: int) -> Any:
        """An input that may be left out; None then."""
        return self.given[position] if position < len(self.given) else None

    def numbers(self, position: int, attribute: str) -> list[Any] | None:
        """Whole numbers, which older operators have as attribute, newer ones as input; None without them."""
        found = self.settings.get(attribute)
        value = self.at(position)
        return list(found) if found is not None else None if value is None else _numbers(value)


class _Making:
    """Builds operator by operator.

    Attributes:
        values: what each name stands for: a node, a tensor of the file, or a list of sizes.
    """

    def __init__(self, name: str, model: Any, held: Mapping[str, Any]) -> None:
        self._name, self.values, self.built = name, dict(held), Rebuilt("FromONNX")
        self._opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=1)
        self._shapes = _shapes(model)
        read = {each for node in model.graph.node for each in node.input}
        self._last = {each.name for each in model.graph.output} - read

    def add(self, node: Any) -> None:
        """Build one operator.

        Raises:
            ModelError: it is not followed; names it.
        """
        kind, name = node.op_type, node.name or node.output[0]
        if node.domain not in ("", "ai.onnx"):
            raise self._unknown(f"{node.domain}::{kind}")
        if missing := [each for each in node.input if each and each not in self.values]:
            raise self._unknown(f"{kind} ({name}), whose input {missing[0]} nothing makes")
        given = [self.values[each] if each else None for each in node.input]
        call = _Call(kind, name, node.output, node.input, given, _Settings(node))
        try:
            made = self._made(call)
        except ModelError:
            raise
        except Exception as error:  # what others wrote may break any rule
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise self._unknown(f"{kind} ({name}: {said})") from error
        if unread := call.settings.unread - WITHOUT_EFFECT.get(kind, set()):
            raise self._unknown(f"{kind} ({name}) with the attribute {min(unread)}")
        self.values.update(zip(node.output, made if isinstance(made, tuple) else (made,), strict=False))

    def _made(self, call: _Call) -> Any:
        kind, given = call.kind, call.given
        if kind in ON_NUMBERS and any(isinstance(value, list) for value in given):
            return self._on_sizes(call)
        if kind in SIMPLE and all(isinstance(value, Tensor) for value in given):
            return SIMPLE[kind](*given)
        if kind in SIMPLE:
            return self.built.call(SIMPLE[kind], *self._nodes(call))
        if kind in WITH_ALPHA:
            function, usual = WITH_ALPHA[kind]
            return self.built.call(function, given[0], call.settings.get("alpha", usual))
        if kind in OVER_AXES:
            return self._over_axes(call, OVER_AXES[kind])
        make = getattr(self, f"_{kind.lower()}", None)
        if make is None:
            raise self._unknown(kind)
        return make(call)

    def _unknown(self, what: str) -> ModelError:
        return ModelError(
            f"model {self._name!r} has the operator {what}, which is not followed; explain the network that it was "
            "exported from: --model FILE.py:FUNCTION."
        )

    def _rank(self, call: _Call) -> int:
        """Number of axes of the first input."""
        value = call.given[0]
        shape = list(value.shape) if isinstance(value, Tensor) else self._shapes.get(call.inputs[0])
        if shape is None:
            raise self._unknown(f"{call.kind} ({call.name}) of a map whose shape the file does not tell")
        return len(shape)

    def _axes(self, call: _Call, axes: Iterable[int], rank: int | None = None) -> list[int]:
        """The axes, counted from the front, in order."""
        axes = list(axes)
        rank = self._rank(call) if rank is None and any(axis < 0 for axis in axes) else rank
        return sorted(axis if axis >= 0 else axis + (rank or 0) for axis in axes)

    def _refuse_images(self, call: _Call, axes: Iterable[int]) -> None:
        if 0 in axes:
            raise self._unknown(f"{call.kind} ({call.name}) over the first axis, which is that of the images")

    def _nodes(self, call: _Call) -> list[Any]:
        """The inputs as arguments of PyTorch's functions."""
        if any(isinstance(value, list) for value in call.given):
            raise self._unknown(f"{call.kind} ({call.name}) of sizes and other numbers")
        as_tensor = call.kind == "Div"  # PyTorch divides no plain number by a tensor
        return [
            self._node(value.reshape(1) if as_tensor and number == 0 and isinstance(value, Tensor) else value, call)
            for number, value in enumerate(call.given)
        ]

    def _node(self, value: Any, call: _Call) -> Any:
        if isinstance(value, Tensor):
            return value.item() if value.ndim == 0 else self.built.constant(f"{call.name}_value", value)
        return value

    def _on_sizes(self, call: _Call) -> list[Any]:
        one, other = map(_numbers, call.given)
        count = max(len(one), len(other))
        pairs = zip(*(each * count if len(each) == 1 else each for each in (one, other)), strict=True)
        function = ON_NUMBERS[call.kind]
        return [
            self.built.call(function, *pair) if any(isinstance(each, Node) for each in pair) else function(*pair)
            for pair in pairs
        ]

    def _identity(self, call: _Call) -> Any:
        return call.given[0]

    def _dropout(self, call: _Call) -> Any:
        if call.at(2) is not None and bool(call.at(2)):
            raise self._unknown(f"Dropout ({call.name}) as in training")
        return call.given[0]

    def _cast(self, call: _Call) -> Any:
        """Of maps only the kind of floating-point number may change, since the network computes in its own."""
        from onnx import helper

        dtype = _tensor(helper.make_tensor("zero", call.settings.get("to"), [1], [0])).dtype
        if isinstance(call.given[0], Tensor):
            return call.given[0].to(dtype)
        if isinstance(call.given[0], list) == dtype.is_floating_point:
            raise self._unknown(f"Cast ({call.name}) between whole and other numbers")
        return call.given[0]

    def _conv(self, call: _Call) -> Any:
        weight, bias = call.given[1], call.at(2)
        if not isinstance(weight, Tensor) or weight.ndim != 4 or isinstance(bias, Node):
            raise self._unknown("Conv with computed weights, or not in two dimensions")
        dilation, stride = call.settings.get("dilations", [1, 1]), call.settings.get("strides", [1, 1])
        image, padding = self._padded(call, weight.shape[2:], stride, dilation)
        layer = convolution(weight, bias, tuple(stride), padding, tuple(dilation), call.settings.get("group", 1))
        return self.built.layer(call.name, layer, image)

    def _padded(
        self, call: _Call, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], value: float = 0.0
    ) -> tuple[Any, tuple[int, int]]:
        """The image, padded where the layer cannot, and the padding of the layer itself."""
        auto = call.settings.text("auto_pad", "NOTSET")
        top, left, bottom, right = call.settings.get("pads", [0, 0, 0, 0])
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            if tuple(stride) != (1, 1):
                raise self._unknown(f"{call.kind} with auto_pad {auto} and a stride, whose padding depends on the size")
            whole = [spread * (length - 1) for spread, length in zip(dilation, kernel, strict=True)]
            less = [each // 2 for each in whole]
            more = [each - half for each, half in zip(whole, less, strict=True)]
            (top, left), (bottom, right) = (less, more) if auto == "SAME_UPPER" else (more, less)
        is_pool = call.kind != "Conv"  # which PyTorch pads by half a window at most
        fits = not is_pool or (2 * top <= kernel[0] and 2 * left <= kernel[1])
        if (top, left) == (bottom, right) and fits:
            return call.given[0], (top, left)
        return self.built.call(F.pad, call.given[0], (left, right, top, bottom), "constant", value), (0, 0)

    def _batchnormalization(self, call: _Call) -> Any:
        scale, shift, mean, variance = call.given[1:5]
        if call.settings.get("training_mode", 0) or not call.settings.get("spatial", 1):
            raise self._unknown(f"BatchNormalization ({call.name}) as in training, or of single pixels")
        layer = batch_norm(scale, shift, mean, variance, call.settings.get("epsilon", 1e-5), rank=self._rank(call))
        return self.built.layer(call.name, layer, call.given[0])

    def _clip(self, call: _Call) -> Any:
        least, most = (
            call.settings.get(key, None if call.at(at) is None else float(call.at(at)))
            for key, at in (("min", 1), ("max", 2))
        )
        if least is None and most is None:
            return call.given[0]
        if least is None or most is None:
            return self.built.call(torch.clamp, call.given[0], least, most)
        return self._cut(call.given[0], least, most)

    def _cut(self, image: Any, least: float, most: float) -> Node:
        if (least, most) == (0, 6):
            return self.built.call(F.relu6, image)
        return self.built.call(F.hardtanh, image, least, most)

    def _hardsigmoid(self, call: _Call) -> Any:
        alpha, beta = call.settings.get("alpha", 0.2), call.settings.get("beta", 0.5)
        if abs(alpha - 1 / 6) > 1e-6 or abs(beta - 0.5) > 1e-6:
            raise self._unknown("HardSigmoid with other constants than PyTorch's")
        return self.built.call(F.hardsigmoid, call.given[0])

    def _prelu(self, call: _Call) -> Any:
        slope = call.given[1]
        if not isinstance(slope, Tensor) or slope.numel() not in (1, slope.shape[0] if slope.ndim in (1, 3) else 0):
            raise self._unknown(f"PRelu ({call.name}) with another slope than one or one a channel")
        if slope.ndim == 1 and slope.numel() > 1 and self._rank(call) != 2:
            raise self._unknown(f"PRelu ({call.name}) with a slope for each column")
        return self.built.call(F.prelu, call.given[0], self.built.constant(f"{call.name}_slope", slope.flatten()))

    def _gelu(self, call: _Call) -> Any:
        return self.built.call(F.gelu, call.given[0], approximate=call.settings.text("approximate", "none"))

    def _softmax(self, call: _Call) -> Any:
        """Before opset 13 over all axes from one on, since then over that axis alone."""
        is_old = self._opset < 13
        rank = self._rank(call)
        (axis,) = self._axes(call, [call.settings.get("axis", 1 if is_old else -1)], rank)
        self._refuse_images(call, [axis])
        if not is_old or self._is_one(self._shapes[call.inputs[0]][axis + 1 :]):
            return self.built.call(F.softmax, call.given[0], axis)
        sizes = [self.built.method("size", call.given[0], each) for each in range(rank)]
        flat = self.built.call(torch.flatten, call.given[0], axis)
        return self.built.method("reshape", self.built.call(F.softmax, flat, axis), *sizes)

    @staticmethod
    def _is_one(lengths: Sequence[int | None]) -> bool:
        return all(length == 1 for length in lengths)

    def _maxpool(self, call: _Call) -> Any:
        kernel, stride = call.settings.get("kernel_shape"), call.settings.get("strides", [1, 1])
        dilation = call.settings.get("dilations", [1, 1])
        image, padding = self._padded(call, kernel, stride, dilation, value=float("-inf"))
        ceil = bool(call.settings.get("ceil_mode", 0))
        layer = nn.MaxPool2d(_pair(kernel), _pair(stride), padding, _pair(dilation), ceil_mode=ceil)
        return self.built.layer(call.name, layer, image)

    def _averagepool(self, call: _Call) -> Any:
        kernel, stride = call.settings.get("kernel_shape"), call.settings.get("strides", [1, 1])
        pads = call.settings.get("pads", [0] * 4)
        unequal = pads[:2] != pads[2:] or call.settings.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        if unequal or any(2 * pad > length for pad, length in zip(pads, kernel, strict=False)):
            raise self._unknown("AveragePool with unequal padding, or by more than half a window")
        if any(spread != 1 for spread in call.settings.get("dilations", [])):
            raise self._unknown("AveragePool with dilation")
        ceil, counts = (bool(call.settings.get(each, 0)) for each in ("ceil_mode", "count_include_pad"))
        return self.built.layer(
            call.name, nn.AvgPool2d(_pair(kernel), _pair(stride), _pair(pads[:2]), ceil, counts), call.given[0]
        )

    def _globalaveragepool(self, call: _Call) -> Any:
        return self.built.call(F.adaptive_avg_pool2d, call.given[0], 1)

    def _globalmaxpool(self, call: _Call) -> Any:
        return self.built.call(F.adaptive_max_pool2d, call.given[0], 1)

    def _over_axes(self, call: _Call, function: Callable[..., Any]) -> Any:
        axes, keeps = call.numbers(1, "axes"), bool(call.settings.get("keepdims", 1))
        if call.settings.get("noop_with_empty_axes", 0) and not axes:
            return call.given[0]
        rank = self._rank(call)
        axes = self._axes(call, axes or range(rank), rank)
        if axes[0] == 0 and keeps and self._shapes[call.inputs[0]][0] == 1:
            axes = axes[1:]  # made for one image
        self._refuse_images(call, axes)
        return self.built.call(function, call.given[0], tuple(axes), keepdim=keeps)

    def _concat(self, call: _Call) -> Any:
        axis = call.settings.get("axis", 1)
        if all(isinstance(value, Tensor) for value in call.given):
            return torch.cat(list(call.given), axis)
        if any(isinstance(value, list) for value in call.given):
            return [number for value in call.given for number in _numbers(value)]
        self._refuse_images(call, self._axes(call, [axis]))
        return self.built.call(torch.cat, [self._node(value, call) for value in call.given], axis)

    def _split(self, call: _Call) -> Any:
        (axis,) = self._axes(call, [call.settings.get("axis", 0)])
        self._refuse_images(call, [axis])
        sizes, count = call.numbers(1, "split"), call.settings.get("num_outputs", len(call.results))
        if sizes is None:
            length = (self._shapes.get(call.inputs[0]) or [])[axis]
            if length is None:
                raise self._unknown(f"Split ({call.name}) of an axis whose length the file does not tell")
            each = -(-length // count)
            sizes = [each] * (count - 1) + [length - each * (count - 1)]
        parts = self.built.call(torch.split, call.given[0], sizes, axis)
        return tuple(self.built.call(operator.getitem, parts, number) for number in range(len(sizes)))

    def _flatten(self, call: _Call) -> Any:
        if self._axes(call, [call.settings.get("axis", 1)]) != [1]:
            raise self._unknown("Flatten of another axis than 1")
        return self.built.call(torch.flatten, call.given[0], 1)

    def _reshape(self, call: _Call) -> Any:
        """A reshape that keeps the images apart, however many there were when the file was made."""
        source, sizes = call.given[0], call.numbers(1, "shape") or []
        if isinstance(source, list):
            return source
        if call.settings.get("allowzero", 0) and 0 in sizes:
            raise self._unknown(f"Reshape ({call.name}) to nothing")
        if isinstance(source, Tensor):
            return source.reshape([source.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])
        before = self._shapes.get(call.inputs[0]) or []
        if not _keeps_images(sizes, before):
            raise self._unknown(f"Reshape ({call.name}) that mixes images")
        if len(sizes) == 2 and sizes[1] in (-1, _product(before[1:])):
            return self.built.call(torch.flatten, source, 1)
        kept = {0} | {axis for axis, size in enumerate(sizes) if size == 0}
        after = [self.built.method("size", source, axis) if axis in kept else sizes[axis] for axis in range(len(sizes))]
        if len(sizes) > 3 and None not in before[-2:] and before[-2:] == sizes[-2:]:  # as channels are shuffled
            after[-2:] = (self.built.method("size", source, len(before) + axis) for axis in (-2, -1))
        return self.built.method("reshape", source, *after)

    def _transpose(self, call: _Call) -> Any:
        order = call.settings.get("perm") or list(reversed(range(self._rank(call))))
        if isinstance(call.given[0], Tensor):
            return call.given[0].permute(*order)
        self._refuse_images(call, [] if order[0] == 0 else [0])
        return self.built.call(torch.permute, call.given[0], tuple(order))

    def _squeeze(self, call: _Call) -> Any:
        made, axes = call.given[0], call.numbers(1, "axes")
        if isinstance(made, list):
            return made
        if isinstance(made, Tensor):
            return made.squeeze() if axes is None else made.squeeze(tuple(axes))
        if axes is None:
            lengths = self._shapes.get(call.inputs[0], [None] * 2)
            if None in lengths[1:]:
                raise self._unknown(f"Squeeze ({call.name}) of axes whose lengths the file does not tell")
            axes = [axis for axis, length in enumerate(lengths) if length == 1]
        axes = self._axes(call, axes)
        if call.results[0] in self._last:  # nothing counts its axes, so it may keep that of its images
            axes = [axis for axis in axes if axis != 0]
        self._refuse_images(call, axes)
        for axis in reversed(axes):
            made = self.built.call(torch.squeeze, made, axis)
        return made

    def _unsqueeze(self, call: _Call) -> Any:
        made, axes = call.given[0], call.numbers(1, "axes") or []
        if isinstance(made, list):
            return made
        rank = self._rank(call) + len(axes) if any(axis < 0 for axis in axes) else None
        for axis in self._axes(call, axes, rank):
            if isinstance(made, Tensor):
                made = made.unsqueeze(axis)
            else:
                self._refuse_images(call, [axis])
                made = self.built.call(torch.unsqueeze, made, axis)
        return made

    def _gemm(self, call: _Call) -> Any:
        weight, bias = call.given[1], call.at(2)
        if not isinstance(weight, Tensor) or isinstance(bias, Node) or call.settings.get("transA", 0):
            raise self._unknown("Gemm with computed or transposed factors")
        weight = weight if call.settings.get("transB", 0) else weight.t()
        alpha, beta = call.settings.get("alpha", 1.0), call.settings.get("beta", 1.0)
        if bias is not None:
            if bias.ndim == 2 and bias.shape[0] != 1:
                raise self._unknown(f"Gemm ({call.name}) with another bias for each image")
            bias = beta * bias.flatten().expand(weight.shape[0])
        return self.built.layer(call.name, linear(alpha * weight, bias), call.given[0])

    def _matmul(self, call: _Call) -> Any:
        if not isinstance(call.given[1], Tensor) or call.given[1].ndim != 2:
            raise self._unknown("MatMul of two maps, as attention has it")
        return self.built.layer(call.name, linear(call.given[1].t(), None), call.given[0])

    def _constant(self, call: _Call) -> Any:
        if (value := call.settings.get("value")) is not None:
            return _tensor(value)
        for kind in ("value_float", "value_floats", "value_int", "value_ints"):
            if (value := call.settings.get(kind)) is not None:
                return torch.tensor(value)
        raise self._unknown(f"Constant ({call.name}) that is no number")

    def _shape(self, call: _Call) -> Any:
        source, chosen = call.given[0], slice(call.settings.get("start", 0), call.settings.get("end"))
        if isinstance(source, list):
            return [len(source)][chosen]
        if isinstance(source, Tensor):
            return list(source.shape)[chosen]
        return [self.built.method("size", source, axis) for axis in range(self._rank(call))[chosen]]

    def _gather(self, call: _Call) -> Any:
        source, places, axis = call.given[0], call.given[1], call.settings.get("axis", 0)
        if isinstance(source, list):
            return [source[number] for number in _numbers(places)]
        if not isinstance(source, Tensor) or not isinstance(places, Tensor) or places.ndim > 1:
            raise self._unknown("Gather of maps")
        found = source.movedim(axis, 0)[places.long()]
        return found.movedim(0, axis) if places.ndim else found

    def _slice(self, call: _Call) -> Any:
        """Of sizes, or of maps, whose images stay."""
        source, starts, ends = call.given[0], call.numbers(1, "starts") or [], call.numbers(2, "ends") or []
        axes = call.numbers(3, "axes") or list(range(len(starts)))
        steps = _numbers(call.at(4)) if call.at(4) is not None else [1] * len(starts)
        if any(isinstance(number, Node) for number in (*starts, *ends)) or any(step < 1 for step in steps):
            raise self._unknown(f"Slice ({call.name}) with computed places, or backwards")
        parts = [slice(start, end, step) for start, end, step in zip(starts, ends, steps, strict=True)]
        if isinstance(source, list):
            return source[parts[0]]
        rank = len(source.shape) if isinstance(source, Tensor) else self._rank(call)
        index = [slice(None)] * rank
        for axis, part in zip(axes, parts, strict=True):
            index[axis] = part
        if isinstance(source, Tensor):
            return source[tuple(index)]
        self._refuse_images(call, [] if index[0] == slice(None) else [0])
        return self.built.call(operator.getitem, source, tuple(index))

    def _pad(self, call: _Call) -> Any:
        pads, filler = call.numbers(1, "pads") or [], call.at(2)
        value = call.settings.get("value", 0.0 if filler is None else float(filler))
        half = len(pads) // 2
        if call.at(3) is not None or half != 4 or any(pads[:2] + pads[half : half + 2]):
            raise self._unknown("Pad of other axes than rows and columns")
        mode = call.settings.text("mode", "constant")
        sides = (pads[3], pads[7], pads[2], pads[6])
        if mode == "constant":
            return self.built.call(F.pad, call.given[0], sides, "constant", value)
        kinds = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}
        return self.built.call(F.pad, call.given[0], sides, kinds[mode])

    def _quantizelinear(self, call: _Call) -> Any:
        """A tensor becomes integers.  A map stays as it is, but for a cut at 0, which may stand for a ReLU."""
        source, scale = call.given[0], call.given[1]
        zero = torch.zeros((), dtype=torch.uint8) if call.at(2) is None else call.at(2)
        limits = torch.iinfo(zero.dtype)
        if isinstance(source, Tensor):
            scale, shift = (self._along(call, each, source.ndim) for each in (scale, zero))
            return (torch.round(source / scale) + shift).clamp(limits.min, limits.max).to(zero.dtype)
        if scale.numel() != 1 or zero.numel() != 1:
            raise self._unknown(f"QuantizeLinear ({call.name}) with a scale for each channel of a map")
        if int(zero) != limits.min or self._is_never_negative(source):
            return source
        return self._cut(source, 0.0, float(scale) * (limits.max - limits.min))

    def _dequantizelinear(self, call: _Call) -> Any:
        source, zero = call.given[0], call.at(2)
        if not isinstance(source, Tensor):
            return source
        scale = self._along(call, call.given[1], source.ndim)
        return (source.float() - (0 if zero is None else self._along(call, zero, source.ndim))) * scale

    def _along(self, call: _Call, numbers: Tensor, rank: int) -> Tensor:
        """The numbers of a quantisation, along their axis."""
        axis = call.settings.get("axis", 1)
        if call.settings.get("block_size", 0) or numbers.ndim > 1:
            raise self._unknown(f"{call.kind} ({call.name}) in blocks")
        if numbers.numel() == 1:
            return numbers.reshape(()).float()
        return numbers.float().reshape([-1 if each == axis % rank else 1 for each in range(rank)])

    def _is_never_negative(self, value: Any) -> bool:
        if isinstance(value, int | float):
            return value >= 0
        if isinstance(value, Tensor):
            return bool((value >= 0).all())
        if not isinstance(value, Node):
            return isinstance(value, list | tuple) and all(map(self._is_never_negative, value))
        if value.op == "get_attr":
            return self._is_never_negative(self.built.held(value))
        if value.op == "call_module":
            layer = self.built.made(value)
            return isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) and self._is_never_negative(value.args[0])
        if value.target in NEVER_NEGATIVE:
            return True
        if value.target is F.hardtanh:
            return bool(self._is_never_negative(value.args[1]))
        several = (torch.add, torch.mul)
        parts = value.args[:2] if value.target in several else value.args[:1]
        return bool(value.target in KEEP_THE_SIGN) and all(map(self._is_never_negative, parts))


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


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    one, other = numbers
    return one, other


def _numbers(value: Any) -> list[Any]:
    """Sizes as a list: numbers, and nodes that compute them."""
    return value if isinstance(value, list) else [int(number) for number in value.flatten()]
