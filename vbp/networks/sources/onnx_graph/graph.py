"""The graph of an ONNX model, built again from PyTorch's layers and functions, operator by operator.

The first axis of every map is that of the images: a file may be made for one image, the network takes any number.  What
would mix images is refused by its name, as is every operator and every attribute that is not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from vbp.errors import ModelError
from vbp.networks.sources.onnx_graph import axes, layers, quantised
from vbp.networks.sources.onnx_graph.building import Building, Call, Rule, Settings, tensor_of

SIMPLE: Mapping[str, Callable[..., Any]] = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Mish": F.mish,
    "Softplus": F.softplus, "Exp": torch.exp, "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Erf": torch.erf,
    "Log": torch.log, "Reciprocal": torch.reciprocal, "Selu": F.selu, "Softsign": F.softsign,
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow,
}  # fmt: skip
"""Operators that PyTorch has as functions of the same arguments."""
WITH_ALPHA: Mapping[str, tuple[Callable[..., Any], float]] = {
    "LeakyRelu": (F.leaky_relu, 0.01), "Elu": (F.elu, 1.0), "Celu": (F.celu, 1.0),
}  # fmt: skip
WITHOUT_EFFECT: Mapping[str, set[str]] = {
    "Conv": {"kernel_shape"}, "MaxPool": {"storage_order"}, "Dropout": {"ratio", "seed", "is_test"},
    "BatchNormalization": {"momentum", "is_test"}, "Gemm": {"broadcast"}, "Cast": {"saturate", "round_mode"},
    "LayerNormalization": {"stash_type"}, "QuantizeLinear": {"axis", "saturate", "output_dtype"},
    "DequantizeLinear": {"axis", "output_dtype"},
}  # fmt: skip
"""Attributes that change nothing where no rule reads them; any other one that is not read is refused."""
RULES: Mapping[str, Rule] = {**layers.RULES, **axes.RULES, **quantised.RULES}


def rebuilt(model: Any, name: str) -> nn.Module:
    """The network of an ONNX model.

    Args:
        model: the ``ModelProto``, with its weights.
        name: the model's name, for errors.

    Raises:
        ModelError: an operator is not known, or the model takes more than images.
    """
    graph, building = model.graph, Building(name, model)
    building.values.update((each.name, tensor_of(each)) for each in graph.initializer)
    images = [each.name for each in graph.input if each.name not in building.values]
    if len(images) != 1:
        raise ModelError(f"model {name!r} takes {len(images)} inputs ({', '.join(images)}), not images alone.")
    building.values[images[0]] = building.built.image
    for node in graph.node:
        _add(building, node)
    outputs = [building.values.get(each.name) for each in graph.output]
    if not all(isinstance(value, Node) for value in outputs):
        raise ModelError(f"model {name!r} has an output that does not depend on the image.")
    return building.built.network(outputs[0] if len(outputs) == 1 else tuple(outputs))


def _add(building: Building, node: Any) -> None:
    """Build one operator.

    Raises:
        ModelError: it is not followed; names it.
    """
    kind, name, values = node.op_type, node.name or node.output[0], building.values
    if node.domain not in ("", "ai.onnx"):
        raise building.unknown(f"{node.domain}::{kind}")
    if missing := [each for each in node.input if each and each not in values]:
        raise building.unknown(f"{kind} ({name}), whose input {missing[0]} nothing makes")
    given = [values[each] if each else None for each in node.input]
    call = Call(kind, name, node.output, node.input, given, Settings(node))
    try:
        made = _made(building, call)
    except ModelError:
        raise
    except Exception as error:  # what others wrote may break any rule
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise building.unknown(f"{kind} ({name}: {said})") from error
    if unread := call.settings.unread - WITHOUT_EFFECT.get(kind, set()):
        raise building.unknown(f"{kind} ({name}) with the attribute {min(unread)}")
    values.update(zip(node.output, made if isinstance(made, tuple) else (made,), strict=False))


def _made(building: Building, call: Call) -> Any:
    kind, given = call.kind, call.given
    if kind in axes.ON_SIZES and any(isinstance(value, list) for value in given):
        return axes.on_sizes(building, call)
    if kind in SIMPLE and all(isinstance(value, Tensor) for value in given):
        return SIMPLE[kind](*given)
    if kind in SIMPLE:
        return building.built.call(SIMPLE[kind], *building.nodes(call))
    if kind in WITH_ALPHA:
        function, usual = WITH_ALPHA[kind]
        return building.built.call(function, given[0], call.settings.get("alpha", usual))
    if kind not in RULES:
        raise building.unknown(kind)
    return RULES[kind](building, call)
