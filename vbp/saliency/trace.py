"""Finds the stages of a CNN by following its data from the input through every layer (torch.fx).

Order of definition plays no part: a shared or in-place layer, ``F.relu`` and ``nn.ReLU`` are all the same here. The
network must be one chain up to its last activation; `_next` is the place where branches will be followed.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer
from torch.nn import functional as F

from vbp.errors import ModelError
from vbp.saliency.forward import evaluating
from vbp.saliency.geometry import Stage, Window

SIGNED_BY_ACTIVATION: Mapping[Any, bool] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus), False),
    **dict.fromkeys((nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish), True),
    **dict.fromkeys((nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Softsign), True),
    **dict.fromkeys((F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, torch.sigmoid, F.sigmoid, F.softplus), False),
    **dict.fromkeys(("relu", "relu_", "sigmoid"), False),
    **dict.fromkeys(
        (F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, torch.tanh, F.tanh, "tanh"), True
    ),
}
"""Activations, by module type, function or method name, and whether they give negative values."""

POINTWISE: frozenset[Any] = frozenset(
    (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.BatchNorm2d, nn.SyncBatchNorm)
    + (nn.InstanceNorm2d, nn.GroupNorm, nn.LocalResponseNorm, F.dropout, F.dropout2d, F.batch_norm, F.group_norm)
    + (F.instance_norm, F.local_response_norm, "contiguous", "float", "to", "clone", "mul", "add", "sub", "div")
    + (operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, torch.add, torch.sub, torch.mul)
    + (operator.iadd, operator.isub, operator.imul, operator.itruediv, torch.div, "add_", "sub_", "mul_", "div_")
)
"""Operations that leave every pixel where it is; arithmetic counts where its other operand is no map."""

ENDS: frozenset[Any] = frozenset(
    (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Linear, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
    + (torch.flatten, torch.mean, torch.amax, F.linear, "flatten", "view", "reshape", "mean", "amax", "squeeze")
)
"""Operations that end the convolutional part."""

CONVOLUTIONS = (nn.Conv2d, F.conv2d, torch.conv2d)
POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, F.max_pool2d, F.avg_pool2d, torch.max_pool2d, F.max_pool2d_with_indices)
PADDINGS = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)

KNOWN: frozenset[Any] = POINTWISE.union(SIGNED_BY_ACTIVATION, ENDS, CONVOLUTIONS, POOLINGS, PADDINGS)

METADATA = ("size", "dim", "numel", getattr)


@dataclass(frozen=True)
class Trace:
    """What following the data found."""

    stages: tuple[Stage, ...]
    """From the input upwards."""
    taps: tuple[str, ...]
    """The graph node whose output is each stage's map."""
    graph: Graph
    """The whole forward pass, with in-place operations as steps of the data flow."""


def trace(model: nn.Module) -> Trace:
    """Find the stages of `model`: every activation output after a convolution.

    Args:
        model: a network of one image input. It is not modified.

    Raises:
        ModelError: it cannot be explained; the message says why in one sentence.
    """
    graph = _graph_of(model)
    _untangle_in_place(graph, model)
    return _follow(graph, model)


class _Tracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Do not look into a known layer, nor into a user's subclass of one."""
        return _module_type(m) in KNOWN or super().is_leaf_module(m, module_qualified_name)


def _graph_of(model: nn.Module) -> Graph:
    try:
        with evaluating(model):
            return _Tracer().trace(model)
    except Exception as error:  # tracing runs the user's own forward code, which may raise anything
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{_name(model)} cannot be traced by torch.fx: {reason}") from error


def _untangle_in_place(graph: Graph, model: nn.Module) -> None:
    """Let later readers of a tensor that was changed in place read the operation that changed it."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not _is_in_place(node, model) or not node.all_input_nodes:
            continue
        changed = node.all_input_nodes[0]
        for reader in list(changed.users):
            if order[reader] > order[node]:
                reader.replace_input_with(changed, node)


def _is_in_place(node: Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(_module(node, model), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        in_place_operators = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
        wanted = node.kwargs.get("inplace", node.args[1] if node.target is F.relu and len(node.args) > 1 else False)
        return bool(wanted) or node.target in in_place_operators or (name.endswith("_") and name[-2:] != "__")
    return False


def _follow(graph: Graph, model: nn.Module) -> Trace:
    data = _data_nodes(graph)
    node: Node | None = next(iter(data), None)
    stages: list[Stage] = []
    taps: list[str] = []
    steps: list[Window] = []
    convolved = False
    while node is not None and (node := _next(node, data, model)) is not None:
        operation = _operation(node, model)
        if operation in SIGNED_BY_ACTIVATION:
            if convolved:
                name = str(node.target) if node.op == "call_module" else node.name
                stages.append(Stage(name, tuple(steps), SIGNED_BY_ACTIVATION[operation]))
                taps.append(node.name)
                steps, convolved = [], False
        elif (window := _window(node, model)) is not None:
            steps.append(window)
            convolved = convolved or operation in CONVOLUTIONS
        elif operation in ENDS:
            break
        elif operation not in POINTWISE:
            _end(
                node, data, model, f"{_name(model)} has an operation that tracing does not know: {_label(node, model)}"
            )
            break
    if not stages:
        has_convolution = any(_operation(node, model) in CONVOLUTIONS for node in graph.nodes)
        missing = "no activation behind a 2-d convolution" if has_convolution else "no 2-d convolution"
        raise ModelError(f"{_name(model)} has {missing}, so VisualBackProp has no map to start from.")
    return Trace(tuple(stages), tuple(taps), graph)


def _data_nodes(graph: Graph) -> dict[Node, None]:
    """The input and every value that is computed from its pixels, in order of execution."""
    data: dict[Node, None] = {}
    for node in graph.nodes:
        is_input = node.op == "placeholder" and not data
        is_data = any(source in data for source in node.all_input_nodes) and node.target not in METADATA
        if is_input or (is_data and node.op != "output"):
            data[node] = None
    return data


def _next(node: Node, data: dict[Node, None], model: nn.Module) -> Node | None:
    """The one operation that reads this node's pixels; None at the end of the network."""
    readers = [reader for reader in node.users if reader in data]
    if len(readers) > 1:
        _end(
            node,
            data,
            model,
            f"{_name(model)} splits into branches after {_label(node, model)}; only chains are traced",
        )
        return None
    return readers[0] if readers else None


def _end(node: Node, data: dict[Node, None], model: nn.Module, reason: str) -> None:
    """Stop here if the convolutional part is over, else refuse the network for `reason`."""
    nodes = list(data)
    if any(_operation(later, model) in CONVOLUTIONS for later in nodes[nodes.index(node) + 1 :]):
        raise ModelError(f"{reason}.")


def _window(node: Node, model: nn.Module) -> Window | None:
    """The geometry of a convolution, pooling or padding; None for any other operation."""
    operation = _operation(node, model)
    if node.op == "call_module":
        settings = vars(_module(node, model))
    elif operation in CONVOLUTIONS:
        settings = _bind(node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"))
        weight = settings["weight"]
        if not isinstance(weight, Node) or weight.op != "get_attr":
            raise ModelError(f"{_name(model)} computes the weights of {node.name}; its kernel size is unknown.")
        settings["kernel_size"] = operator.attrgetter(str(weight.target))(model).shape[-2:]
    elif operation in POOLINGS:
        average = operation is F.avg_pool2d
        names = ("stride", "padding", "ceil_mode") if average else ("stride", "padding", "dilation", "ceil_mode")
        settings = _bind(node, ("input", "kernel_size", *names))
    if operation in PADDINGS:
        left, right, top, bottom = settings["padding"]
        return Window((1, 1), before=(top, left), after=(bottom, right))
    if operation not in CONVOLUTIONS and operation not in POOLINGS:
        return None
    kernel, dilation = _pair(settings["kernel_size"]), _pair(settings.get("dilation", 1))
    stride = settings.get("stride")
    before, after = _paddings(settings.get("padding", 0), kernel, dilation)
    return Window(
        kernel,
        # Pooling without a stride moves by its kernel, convolution by 1.
        _pair(stride) if stride else (1, 1) if operation in CONVOLUTIONS else kernel,
        before,
        after,
        dilation,
        bool(settings.get("ceil_mode", False)),
    )


def _bind(node: Node, names: tuple[str, ...]) -> dict[str, Any]:
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _pair(value: Any) -> tuple[int, int]:
    rows, columns = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return int(rows), int(columns)


def _paddings(
    padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    if padding == "valid":
        padding = 0
    if padding != "same":
        return _pair(padding), _pair(padding)
    total = [spread * (length - 1) for spread, length in zip(dilation, kernel, strict=True)]
    # PyTorch pads the odd row of an even kernel on the far side.
    before = (total[0] // 2, total[1] // 2)
    return before, (total[0] - before[0], total[1] - before[1])


def _operation(node: Node, model: nn.Module) -> Any:
    """The module type, function or method name that a node calls."""
    return _module_type(_module(node, model)) if node.op == "call_module" else node.target


def _module_type(module: nn.Module) -> type:
    """The known type that a module is an instance of, else its own."""
    return next((base for base in type(module).__mro__ if base in KNOWN), type(module))


def _module(node: Node, model: nn.Module) -> nn.Module:
    return model.get_submodule(str(node.target))


def _label(node: Node, model: nn.Module) -> str:
    return f"{node.target} ({type(_module(node, model)).__name__})" if node.op == "call_module" else node.name


def _name(model: nn.Module) -> str:
    return type(model).__name__
