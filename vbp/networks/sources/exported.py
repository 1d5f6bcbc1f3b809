"""Programs that ``torch.export`` saved (``.pt2``): their graph of ATen operators, built again from PyTorch's layers."""

from __future__ import annotations

import io
import operator
from collections.abc import Callable, Mapping
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
from vbp.networks.weights import read_model

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name in (
        "relu", "sigmoid", "tanh", "mean", "amax", "cat", "flatten", "add", "sub", "mul", "div", "clamp", "exp", "sqrt",
        "rsqrt", "abs", "neg", "pow", "permute", "transpose", "unsqueeze", "squeeze", "chunk", "split", "stack",
        "maximum", "clamp_min", "clamp_max", "sum", "erf", "log", "reciprocal",
    )},
    **{name: getattr(F, name) for name in (
        "hardtanh", "silu", "hardswish", "hardsigmoid", "gelu", "leaky_relu", "elu", "mish", "softplus", "max_pool2d",
        "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "layer_norm", "group_norm", "pad", "softmax",
        "prelu", "pixel_shuffle", "relu6", "selu", "celu",
    )},
    "split_with_sizes": torch.split,
}  # fmt: skip
"""PyTorch's functions that take what ATen's operators of these names take."""
IGNORED: Mapping[str, set[str]] = {
    "layer_norm": {"cudnn_enable"}, "group_norm": {"cudnn_enabled"}, "softmax": {"dtype"},
    "elu": {"scale", "input_scale"},
}  # fmt: skip
"""Arguments that these functions do not have, without effect."""
PASSED = ("dropout", "feature_dropout", "clone", "contiguous", "alias", "detach", "to", "_to_copy", "lift_fresh_copy")
"""Operators that change no value in evaluation mode."""


def load(choice: NetworkChoice) -> Model:
    """Read the program and build its network; errors as for ``load_model``."""
    name = choice.model
    if choice.weights != "own":
        raise WeightsError(f"{name} holds its own weights: leave out --weights (={choice.weights}).")
    data = read_model(name, choice.storage_options)
    network = rebuilt(_program(data, name), name)
    classes = classes_of(network, choice.size or 224)
    return Model(name, network, None, None, classes, "own", sha256(data).hexdigest())


def check(code: OwnCode | None) -> None:
    """Every machine has what this source needs: torch."""


def _program(data: bytes, name: str) -> Any:
    try:
        return torch.export.load(io.BytesIO(data))
    except Exception as error:  # a damaged or other file can raise anything
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"model {name!r} is no program that torch {torch.__version__} can load ({said}): copy it again, or export "
            "it with this torch."
        ) from error


def rebuilt(program: Any, name: str) -> nn.Module:
    """The network of an exported program.

    Raises:
        ModelError: an operator is not known, or the program takes more than images.
    """
    graph, inputs = program.graph_module.graph, program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise ModelError(
            f"model {name!r} takes {len(inputs)} inputs ({', '.join(map(str, inputs))}), not images alone."
        )
    held = {**program.state_dict, **program.constants}
    targets = {
        each.arg.name: str(each.target) for each in program.graph_signature.input_specs if each.target is not None
    }
    made = _Making(name, Rebuilt("Exported"))
    for node in graph.nodes:
        if node.op == "placeholder":
            is_image = node.name not in targets
            made.values[node] = made.built.image if is_image else held[targets[node.name]]
        elif node.op == "output":
            returned = node.args[0]
            outputs = [made.built_value(value) for value in returned if isinstance(value, Node)]
            return made.built.network(outputs[0] if len(outputs) == 1 else tuple(outputs))
        else:
            made.add(node)
    raise ModelError(f"model {name!r} has no output.")


class _Making:
    """Builds node by node.

    Attributes:
        values: what each node of the program has become: a node, a tensor that it holds, or a number.
    """

    def __init__(self, name: str, built: Rebuilt) -> None:
        self._name, self.built, self.values = name, built, dict[Node, Any]()

    def add(self, node: Node) -> None:
        """Build one call.

        Raises:
            ModelError: it is not followed; names it.
        """
        try:
            self._add(node)
        except ModelError:
            raise
        except Exception as error:  # a program of another kind than those that were thought of
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise self._unknown(node, f" ({node.name}: {said})") from error

    def _add(self, node: Node) -> None:
        if node.target is operator.getitem:
            source, place = node.args[0], node.args[1]
            value = self._value(source)
            if not self._has_one_here(source):
                value = self.built.call(operator.getitem, value, place)
            elif place != 0 and node.users:
                raise self._unknown(node, f" ({source}) whose second result is used")
            self.values[node] = value
            return
        operation = str(getattr(node.target, "_schema", node.target)).partition("(")[0].removeprefix("aten::")
        operation = operation.partition(".")[0].rstrip("_")
        if operation.startswith("_assert"):  # has no result
            return
        arguments = self._arguments(node)
        if operation.startswith("sym_size"):
            self.values[node] = self.built.method("size", arguments["self"], arguments["dim"])
            return
        self.values[node] = self._made(operation, node, arguments)

    def _arguments(self, node: Node) -> dict[str, Any]:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            raise self._unknown(node)
        given: dict[str, Any] = {}
        for position, argument in enumerate(schema.arguments):
            if position < len(node.args):
                given[argument.name] = self._value(node.args[position])
            elif argument.name in node.kwargs:
                given[argument.name] = self._value(node.kwargs[argument.name])
            elif argument.has_default_value():
                given[argument.name] = argument.default_value
        return given

    def _value(self, value: Any) -> Any:
        return torch.fx.node.map_aggregate(value, lambda each: self.values[each] if isinstance(each, Node) else each)

    def built_value(self, value: Node) -> Any:
        """What a node has become, as a node."""
        found = self.values[value]
        return self.built.constant(value.name, found) if isinstance(found, Tensor) else found

    def _refuse_training(self, node: Node, given: Mapping[str, Any]) -> None:
        """Refuse what gives other results from pass to pass, or for other neighbours."""
        if given.get("train") or given.get("training"):
            raise self._unknown(node, " as in training (export it after .eval())")

    def _passed(self, node: Node, given: Mapping[str, Any]) -> Any:
        source, dtype = given.get("self", given.get("input")), given.get("dtype")
        if dtype is not None and not dtype.is_floating_point:
            raise self._unknown(node, " between whole and other numbers")
        return source

    @staticmethod
    def _has_one_here(value: Any) -> bool:
        """Whether an operator of several results becomes a layer or function that gives the first one alone."""
        several = ("native_batch_norm", "adaptive_max_pool2d")
        return isinstance(value, Node) and any(name in str(value.target) for name in several)

    def _made(self, operation: str, node: Node, given: dict[str, Any]) -> Any:
        built, name = self.built, node.name
        self._refuse_training(node, given)
        if operation in PASSED:
            return self._passed(node, given)
        if operation in ("conv2d", "convolution") and isinstance(given["weight"], Tensor) and given["weight"].ndim == 4:
            if any(given.get("output_padding", ())):
                raise self._unknown(node, " with output padding")
            settings = (given["stride"], given["padding"], given["dilation"], given["groups"])
            padding = settings[1] if isinstance(settings[1], str) else tuple(settings[1])
            made = convolution(
                given["weight"], given["bias"], tuple(settings[0]), padding, tuple(settings[2]), settings[3],
                transposed=bool(given.get("transposed")),
            )  # fmt: skip
            return built.layer(name, made, given["input"])
        if "batch_norm" in operation and isinstance(given["running_mean"], Tensor):
            made = batch_norm(given["weight"], given["bias"], given["running_mean"], given["running_var"], given["eps"])
            return built.layer(name, made, given["input"])
        if operation == "linear":
            return built.layer(name, linear(given["weight"], given["bias"]), given["input"])
        if operation == "addmm" and isinstance(given["mat2"], Tensor):
            return built.layer(name, linear(given["mat2"].t(), given["self"]), given["mat1"])
        if operation in ("t", "numpy_T") and isinstance(given["self"], Tensor):
            return given["self"].t()
        if operation in ("view", "reshape", "_unsafe_view"):
            return self._reshaped(node, given)
        if operation == "constant_pad_nd":
            return built.call(F.pad, given["self"], tuple(given["pad"]), "constant", given["value"])
        if operation == "elu" and (given["scale"], given["input_scale"]) != (1, 1):
            raise self._unknown(node, " with a scale")
        if operation.startswith(("upsample_nearest2d", "upsample_bilinear2d")):
            return self._resized(operation, node, given)
        return self._called(operation, node, given)

    def _called(self, operation: str, node: Node, given: dict[str, Any]) -> Any:
        function = FUNCTIONS.get(operation)
        if function is None:
            raise self._unknown(node)
        positional = [self._node_of(value, node) for value in given.values()]
        schema = node.target._schema  # type: ignore[union-attr]
        only_named = {argument.name for argument in schema.arguments if argument.kwarg_only}
        values = dict(zip(given, positional, strict=True))
        plain = [values[key] for key in given if key not in only_named | IGNORED.get(operation, set())]
        # what has its usual value is left out: PyTorch's functions know fewer settings than ATen's operators
        named = {key: values[key] for key in given if key in only_named and values[key] not in (None, 1)}
        return self.built.call(function, *plain, **named)

    def _node_of(self, value: Any, node: Node) -> Any:
        return self.built.constant(f"{node.name}_value", value) if isinstance(value, Tensor) else value

    def _reshaped(self, node: Node, given: dict[str, Any]) -> Any:
        """A reshape; the number of images may be another than where the program was exported."""
        before, after = node.args[0].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
        if len(after) == 2 and len(before) > 2 and after[0] == before[0]:
            return self.built.call(torch.flatten, given["self"], 1)
        size = list(given.get("size", given.get("shape", ())))
        if after[0] == before[0]:
            size[0] = self.built.method("size", given["self"], 0)
        elif isinstance(given["self"], Node) and isinstance(size[0], int) and size[0] != -1:
            raise self._unknown(node, " that mixes images")
        if len(after) > 3 and after[-2:] == before[-2:]:  # as channels are shuffled
            size[-2:] = (self.built.method("size", given["self"], len(before) + axis) for axis in (-2, -1))
        return self.built.method("reshape", given["self"], *size)

    def _resized(self, operation: str, node: Node, given: dict[str, Any]) -> Any:
        mode = "nearest" if "nearest" in operation else "bilinear"
        factors = given.get("scale_factors")
        size = tuple(node.meta["val"].shape[2:])
        settings: dict[str, Any] = {"mode": mode}
        if mode == "bilinear":
            settings["align_corners"] = given["align_corners"]
        if factors:
            return self.built.call(F.interpolate, given["input"], scale_factor=tuple(factors), **settings)
        return self.built.call(F.interpolate, given.get("input", given.get("self")), size=size, **settings)

    def _unknown(self, node: Node, what: str = "") -> ModelError:
        return ModelError(
            f"model {self._name!r} has the operator {node.target}{what}, which is not followed; explain the network "
            "itself: --model FILE.py:FUNCTION."
        )
