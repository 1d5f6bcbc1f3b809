"""ONNX files: their graph, built again from PyTorch's layers; the extra ``onnx``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from vbp.errors import ModelError, WeightsError
from vbp.networks.model import Model, classes_of
from vbp.networks.names import NetworkChoice
from vbp.networks.owncode import OwnCode
from vbp.networks.rebuilt import Rebuilt, batch_norm, convolution, linear
from vbp.networks.weights import read_beside, read_model

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
PASSED = ("Identity", "Dropout", "Cast")


def load(choice: NetworkChoice) -> Model:
    """Read the file and build its network; errors as for ``load_model``."""
    name = choice.model
    if choice.weights != "own":
        raise WeightsError(f"{name} holds its own weights: leave out --weights (={choice.weights}).")
    _onnx()
    data = read_model(name, choice.storage_options)
    model = _parsed(data, name)
    digest = sha256(data)
    for part in _outside(model):
        content = read_beside(name, part, choice.storage_options)
        digest.update(content)
        _take_in(model, part, content)
    network = rebuilt(model, name)
    return Model(name, network, None, None, classes_of(network, choice.size or 224), "own", digest.hexdigest())


def check(code: OwnCode | None) -> None:
    """Refuse a machine without the package onnx.

    Raises:
        ModelError: it is missing.
    """
    _onnx()


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ModelError(f"ONNX files need onnx: pip install 'visualbackprop[onnx]' ({error}).") from error
    return onnx


def _parsed(data: bytes, name: str) -> Any:
    try:
        model = _onnx().load_from_string(data)
    except Exception as error:  # protobuf's own type
        raise ModelError(
            f"model {name!r} is no ONNX file, or it is cut short ({len(data)} bytes): copy or export it again."
        ) from error
    if not model.graph.node:
        raise ModelError(f"model {name!r} is an ONNX file without a graph: copy or export it again.")
    return model


def _outside(model: Any) -> list[str]:
    """Names of the files beside it that hold its weights."""
    return list(dict.fromkeys(entry["location"] for each in model.graph.initializer if (entry := _entry(each))))


def _entry(tensor: Any) -> dict[str, str]:
    """Where a tensor lies outside of the file; empty if it lies in there."""
    return {each.key: each.value for each in tensor.external_data} if tensor.data_location == 1 else {}


def _take_in(model: Any, part: str, content: bytes) -> None:
    for tensor in model.graph.initializer:
        entry = _entry(tensor)
        if entry.get("location") != part:
            continue
        start = int(entry.get("offset", 0))
        length = int(entry.get("length", len(content) - start))
        if start + length > len(content):
            raise ModelError(f"{part}, which holds the weights of the model, is cut short: copy it again.")
        tensor.raw_data = content[start : start + length]
        tensor.data_location = 0
        del tensor.external_data[:]


def rebuilt(model: Any, name: str) -> nn.Module:
    """The network of an ONNX model.

    Raises:
        ModelError: an operator is not known, or the model takes more than images.
    """
    graph = model.graph
    held = {each.name: _tensor(each) for each in graph.initializer}
    images = [each.name for each in graph.input if each.name not in held]
    if len(images) != 1:
        raise ModelError(f"model {name!r} takes {len(images)} inputs ({', '.join(images)}), not images alone.")
    making = _Making(name, {**held})
    making.values[images[0]] = making.built.image
    for node in graph.node:
        making.add(node)
    outputs = [making.values[each.name] for each in graph.output]
    if not all(isinstance(value, Node) for value in outputs):
        raise ModelError(f"model {name!r} has an output that does not depend on the image.")
    return making.built.network(outputs[0] if len(outputs) == 1 else tuple(outputs))


def _tensor(proto: Any) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(proto).copy())


class _Making:
    """Builds operator by operator.

    Attributes:
        values: what each name stands for: a node, a tensor of the file, or a list of sizes.
    """

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self._name, self.values, self.built = name, values, Rebuilt("FromONNX")

    def add(self, node: Any) -> None:
        """Build one operator."""
        from onnx import helper

        kind = node.op_type
        settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        given = [self.values[name] if name else None for name in node.input]
        make = getattr(self, f"_{kind.lower()}", None)
        if node.domain not in ("", "ai.onnx"):
            raise self._unknown(f"{node.domain}::{kind}")
        if kind in PASSED:
            made = given[0]
        elif kind in ON_NUMBERS and all(isinstance(value, list) or _is_small(value) for value in given):
            made = [
                ON_NUMBERS[kind](one, other) for one, other in zip(_numbers(given[0]), _numbers(given[1]), strict=True)
            ]
        elif kind in SIMPLE:
            made = self.built.call(SIMPLE[kind], *(self._node(value, node.name) for value in given))
        elif kind in WITH_ALPHA:
            function, usual = WITH_ALPHA[kind]
            made = self.built.call(function, given[0], settings.get("alpha", usual))
        elif make is not None:
            made = make(node.name or node.output[0], given, settings)
        else:
            raise self._unknown(kind)
        self.values[node.output[0]] = made

    def _unknown(self, kind: str) -> ModelError:
        return ModelError(
            f"model {self._name!r} has the operator {kind}, which is not followed; explain the network that it was "
            "exported from: --model FILE.py:FUNCTION."
        )

    def _node(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            return value.item() if value.ndim == 0 else self.built.constant(f"{name}_value", value)
        return value

    def _conv(self, name: str, given: Sequence[Any], settings: Mapping[str, Any], *, transposed: bool = False) -> Any:
        weight = given[1]
        if not isinstance(weight, Tensor) or weight.ndim != 4:
            raise self._unknown("Conv with computed weights, or not in two dimensions")
        dilation, stride = settings.get("dilations", [1, 1]), settings.get("strides", [1, 1])
        image, padding = self._padded(given[0], settings, weight.shape[2:], stride, dilation)
        bias = given[2] if len(given) > 2 else None
        layer = convolution(weight, bias, tuple(stride), padding, tuple(dilation), settings.get("group", 1))
        return self.built.layer(name, layer, image)

    def _padded(
        self, image: Any, settings: Mapping[str, Any], kernel: Sequence[int], stride: Sequence[int],
        dilation: Sequence[int], value: float = 0.0,
    ) -> tuple[Any, tuple[int, int]]:  # fmt: skip
        """The image, padded where the two sides differ, and the padding of the layer itself."""
        auto = settings.get("auto_pad", b"NOTSET").decode()
        top, left, bottom, right = settings.get("pads", [0, 0, 0, 0])
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            if tuple(stride) != (1, 1):
                raise self._unknown(f"auto_pad {auto} with a stride, whose padding depends on the size")
            whole = [spread * (length - 1) for spread, length in zip(dilation, kernel, strict=True)]
            less = [each // 2 for each in whole]
            more = [each - half for each, half in zip(whole, less, strict=True)]
            (top, left), (bottom, right) = (less, more) if auto == "SAME_UPPER" else (more, less)
        if (top, left) == (bottom, right):
            return image, (top, left)
        return self.built.call(F.pad, image, (left, right, top, bottom), "constant", value), (0, 0)

    def _batchnormalization(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        image, scale, shift, mean, variance = given[:5]
        return self.built.layer(name, batch_norm(scale, shift, mean, variance, settings.get("epsilon", 1e-5)), image)

    def _clip(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        least, most = (
            settings.get(key, None if len(given) <= at or given[at] is None else float(given[at]))
            for key, at in (("min", 1), ("max", 2))
        )
        if least is None or most is None:
            return self.built.call(torch.clamp, given[0], least, most)
        return (
            self.built.call(F.relu6, given[0])
            if (least, most) == (0, 6)
            else self.built.call(F.hardtanh, given[0], least, most)
        )

    def _hardsigmoid(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        if abs(settings.get("alpha", 0.2) - 1 / 6) > 1e-6 or abs(settings.get("beta", 0.5) - 0.5) > 1e-6:
            raise self._unknown("HardSigmoid with other constants than PyTorch's")
        return self.built.call(F.hardsigmoid, given[0])

    def _gelu(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        return self.built.call(F.gelu, given[0], approximate=settings.get("approximate", b"none").decode())

    def _softmax(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        return self.built.call(F.softmax, given[0], settings.get("axis", -1))

    def _maxpool(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        kernel, stride = settings["kernel_shape"], settings.get("strides", [1, 1])
        dilation = settings.get("dilations", [1, 1])
        image, padding = self._padded(given[0], settings, kernel, stride, dilation, value=float("-inf"))
        ceil = bool(settings.get("ceil_mode", 0))
        layer = nn.MaxPool2d(tuple(kernel), tuple(stride), padding, tuple(dilation), ceil_mode=ceil)
        return self.built.layer(name, layer, image)

    def _averagepool(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        kernel, stride, pads = settings["kernel_shape"], settings.get("strides", [1, 1]), settings.get("pads", [0] * 4)
        if pads[:2] != pads[2:] or settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise self._unknown("AveragePool with unequal padding")
        layer = nn.AvgPool2d(
            tuple(kernel), tuple(stride), tuple(pads[:2]), bool(settings.get("ceil_mode", 0)),
            bool(settings.get("count_include_pad", 0)),
        )  # fmt: skip
        return self.built.layer(name, layer, given[0])

    def _globalaveragepool(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        return self.built.call(F.adaptive_avg_pool2d, given[0], 1)

    def _globalmaxpool(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        return self.built.call(F.adaptive_max_pool2d, given[0], 1)

    def _reducemean(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        axes = settings.get("axes") or _numbers(given[1])
        return self.built.call(torch.mean, given[0], tuple(axes), keepdim=bool(settings.get("keepdims", 1)))

    def _concat(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        if any(isinstance(value, list) for value in given):
            return [number for value in given for number in _numbers(value)]
        return self.built.call(torch.cat, [self._node(value, name) for value in given], settings["axis"])

    def _split(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        raise self._unknown("Split")

    def _flatten(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        if settings.get("axis", 1) != 1:
            raise self._unknown("Flatten of another axis than 1")
        return self.built.call(torch.flatten, given[0], 1)

    def _reshape(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        """A reshape; the first axis is that of the images, however many there were when the file was made."""
        sizes = _numbers(given[1])
        if len(sizes) == 2:
            return self.built.call(torch.flatten, given[0], 1)
        kept = [
            self.built.method("size", given[0], axis) if axis == 0 or size == 0 else size
            for axis, size in enumerate(sizes)
        ]
        return self.built.method("reshape", given[0], *kept)

    def _transpose(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        if isinstance(given[0], Tensor):
            return given[0].permute(*settings["perm"])
        return self.built.call(torch.permute, given[0], tuple(settings["perm"]))

    def _squeeze(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        axes = settings.get("axes") or (_numbers(given[1]) if len(given) > 1 else None)
        if isinstance(given[0], list) or axes is None:
            return given[0]
        made = given[0]
        for axis in sorted(axes, reverse=True):
            made = self.built.call(torch.squeeze, made, axis)
        return made

    def _unsqueeze(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        if isinstance(given[0], list):
            return given[0]
        made = given[0]
        for axis in sorted(settings.get("axes") or _numbers(given[1])):
            made = made.unsqueeze(axis) if isinstance(made, Tensor) else self.built.call(torch.unsqueeze, made, axis)
        return made

    def _gemm(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        weight = given[1]
        plain = all(settings.get(key, 1.0) == 1.0 for key in ("alpha", "beta")) and not settings.get("transA", 0)
        if not isinstance(weight, Tensor) or not plain:
            raise self._unknown("Gemm with factors or computed weights")
        bias = given[2].flatten() if len(given) > 2 and given[2] is not None else None
        return self.built.layer(name, linear(weight if settings.get("transB", 0) else weight.t(), bias), given[0])

    def _matmul(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        if not isinstance(given[1], Tensor) or given[1].ndim != 2:
            raise self._unknown("MatMul of two maps, as attention has it")
        return self.built.layer(name, linear(given[1].t(), None), given[0])

    def _constant(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        if "value" in settings:
            return _tensor(settings["value"])
        (value,) = settings.values()
        return torch.tensor(value)

    def _shape(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        start, end = settings.get("start", 0), settings.get("end", 4)
        return [self.built.method("size", given[0], axis) for axis in range(start, end)]

    def _gather(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        if not isinstance(given[0], list):
            raise self._unknown("Gather of maps")
        return [given[0][int(number)] for number in given[1].flatten()]

    def _slice(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        if not isinstance(given[0], list):
            raise self._unknown("Slice of maps")
        return given[0][slice(_numbers(given[1])[0], _numbers(given[2])[0])]

    def _pad(self, name: str, given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
        pads = settings.get("pads") or _numbers(given[1])
        value = settings.get("value", float(given[2]) if len(given) > 2 and given[2] is not None else 0.0)
        half = len(pads) // 2
        if len(given) > 3 or half != 4 or any(pads[:2] + pads[half : half + 2]):
            raise self._unknown("Pad of other axes than rows and columns")
        mode = settings.get("mode", b"constant").decode()
        sides = (pads[3], pads[7], pads[2], pads[6])
        if mode == "constant":
            return self.built.call(F.pad, given[0], sides, "constant", value)
        return self.built.call(F.pad, given[0], sides, {"edge": "replicate", "reflect": "reflect"}[mode])


def _is_small(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.ndim < 2


def _numbers(value: Any) -> list[Any]:
    """Sizes as a list: numbers, and nodes that compute them."""
    return value if isinstance(value, list) else [int(number) for number in value.flatten()]
