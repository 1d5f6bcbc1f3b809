"""PyTorch's operations, by module type, function or method name: their meaning for VisualBackProp, their geometry."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from vbp.light_torchvision import ops
from vbp.saliency.geometry import Pooling, Resampling, Window

if TYPE_CHECKING:
    from vbp.saliency.shapes import Sizes

SIGNED_BY_ACTIVATION: Mapping[Any, bool] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus), False),
    **dict.fromkeys((nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish), True),
    **dict.fromkeys((nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Softsign, F.hardtanh, F.celu, F.prelu, F.softsign), True),
    **dict.fromkeys((F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, torch.sigmoid, F.sigmoid, F.softplus), False),
    **dict.fromkeys((F.hardsigmoid, "relu", "relu_", "sigmoid"), False),
    **dict.fromkeys((F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardswish), True),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh", torch.erf, torch.special.erf, "erf"), True),
}
"""Activations, and whether their output can be negative."""

UNCHANGED: frozenset[Any] = frozenset(
    (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, ops.StochasticDepth)
    + (F.dropout, F.dropout2d, ops.stochastic_depth, nn.ChannelShuffle, torch.channel_shuffle)
    + ("contiguous", "float", "half", "to", "type", "type_as", "clone", "detach", torch.clone, torch.detach)
)
"""Operations that change no value in evaluation mode; they may reorder channels."""

NORMALISATIONS: frozenset[Any] = frozenset(
    (nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
    + (ops.FrozenBatchNorm2d, F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.local_response_norm)
    + (nn.RMSNorm, F.rms_norm, F.normalize)
)

ADDITIONS: frozenset[Any] = frozenset((operator.add, operator.iadd, torch.add, "add", "add_"))
POINTWISE: frozenset[Any] = frozenset(
    (torch.abs, torch.clamp, torch.exp, torch.pow, torch.sqrt, torch.rsqrt, torch.reciprocal, torch.square, torch.log)
    + (torch.clamp_min, torch.clamp_max, torch.neg, operator.neg, operator.pow)
    + ("abs", "clamp", "clamp_min", "clamp_max", "exp", "pow", "sqrt", "rsqrt", "reciprocal", "square", "log", "neg")
)
ARITHMETIC: frozenset[Any] = ADDITIONS.union(
    POINTWISE,
    (
        torch.addcmul,
        torch.addcdiv,
        operator.sub,
        operator.mul,
        operator.truediv,
        operator.isub,
        operator.imul,
        operator.itruediv,
    )
    + (torch.sub, torch.mul, torch.div, torch.maximum, "sub", "mul", "div", "sub_", "mul_", "div_"),
)
CONCATENATIONS: frozenset[Any] = frozenset((torch.cat, torch.concat))
STACKINGS: frozenset[Any] = frozenset((torch.stack,))

CONVOLUTIONS: frozenset[Any] = frozenset((nn.Conv2d, F.conv2d, torch.conv2d))
TRANSPOSED: frozenset[Any] = frozenset((nn.ConvTranspose2d, F.conv_transpose2d))
LINEAR: frozenset[Any] = frozenset((nn.Linear, F.linear))
MAX_POOLINGS: frozenset[Any] = frozenset((nn.MaxPool2d, F.max_pool2d, torch.max_pool2d, F.max_pool2d_with_indices))
POOLINGS: frozenset[Any] = MAX_POOLINGS.union((nn.AvgPool2d, F.avg_pool2d))
PADDINGS: frozenset[Any] = frozenset(
    (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, F.pad)
)
ADAPTIVE_POOLINGS: frozenset[Any] = frozenset(
    (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
)
UPSAMPLINGS: frozenset[Any] = frozenset((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate))

PIXEL_SHUFFLES: frozenset[Any] = frozenset((nn.PixelShuffle, F.pixel_shuffle))
PIXEL_UNSHUFFLES: frozenset[Any] = frozenset((nn.PixelUnshuffle, F.pixel_unshuffle))

REDUCTIONS: Mapping[Any, tuple[str, ...]] = {
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin, torch.max), ("dim", "keepdim")),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max"), ("dim", "keepdim")),
    **dict.fromkeys((torch.var, torch.std, torch.var_mean, torch.std_mean), ("dim", "unbiased", "keepdim")),
    **dict.fromkeys(("var", "std"), ("dim", "unbiased", "keepdim")),
    **dict.fromkeys((torch.norm, torch.linalg.vector_norm, "norm"), ("p", "dim", "keepdim")),
}
"""Reductions over axes, and their arguments after the input."""
FLATTENINGS: frozenset[Any] = frozenset((nn.Flatten, torch.flatten, "flatten"))
RESHAPINGS: frozenset[Any] = frozenset((torch.reshape, "view", "reshape", "view_as", "reshape_as"))
PERMUTATIONS: frozenset[Any] = frozenset((torch.permute, "permute"))
TRANSPOSITIONS: frozenset[Any] = frozenset((torch.transpose, "transpose"))
PAIRS: frozenset[Any] = frozenset((torch.max, "max", torch.var_mean, torch.std_mean))
"""Reductions that return two tensors, such as values and indices."""
SPLITS: frozenset[Any] = frozenset((torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"))
UNBINDINGS: frozenset[Any] = frozenset((torch.unbind, "unbind"))
UNSQUEEZINGS: frozenset[Any] = frozenset((torch.unsqueeze, "unsqueeze"))
SQUEEZINGS: frozenset[Any] = frozenset((torch.squeeze, "squeeze"))
EXPANSIONS: frozenset[Any] = frozenset(("expand_as", "expand", "repeat"))
SOFTMAXES: frozenset[Any] = frozenset((nn.Softmax, F.softmax, torch.softmax, "softmax"))

ATTENTIONS: frozenset[Any] = SOFTMAXES.union((F.scaled_dot_product_attention, nn.MultiheadAttention))
CONTRACTIONS: frozenset[Any] = frozenset(
    (operator.matmul, torch.matmul, "matmul", torch.bmm, "bmm", torch.einsum, F.scaled_dot_product_attention)
)
"""Sums over an axis of two tensors."""
MIXING: frozenset[Any] = CONVOLUTIONS | TRANSPOSED
"""Operations with weights, whose geometry counts."""

KNOWN: frozenset[Any] = frozenset().union(
    *(SIGNED_BY_ACTIVATION, UNCHANGED, NORMALISATIONS, ARITHMETIC, CONCATENATIONS, STACKINGS, CONVOLUTIONS, TRANSPOSED),
    *(LINEAR, POOLINGS, PADDINGS, ADAPTIVE_POOLINGS, UPSAMPLINGS, PIXEL_SHUFFLES, PIXEL_UNSHUFFLES, REDUCTIONS),
    *(FLATTENINGS, RESHAPINGS, PERMUTATIONS, TRANSPOSITIONS, SPLITS, UNBINDINGS, UNSQUEEZINGS, SQUEEZINGS, EXPANSIONS),
    *(SOFTMAXES,),
)


ON_IMAGES: frozenset[Any] = frozenset().union(
    *(MIXING, POOLINGS, PADDINGS, ADAPTIVE_POOLINGS, UPSAMPLINGS, PIXEL_SHUFFLES, PIXEL_UNSHUFFLES)
)
"""Operations that take the last two axes for rows and columns."""

IN_PLACE: frozenset[Any] = frozenset(
    (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow)
    + (operator.iand, operator.ior, operator.ixor)
)
MAY_SHARE_MEMORY: frozenset[Any] = frozenset((operator.getitem, getattr, nn.Unflatten)).union(
    *(UNCHANGED, FLATTENINGS, RESHAPINGS, PERMUTATIONS, TRANSPOSITIONS),
    *(SPLITS, UNBINDINGS, UNSQUEEZINGS, SQUEEZINGS, EXPANSIONS),
)
"""Operations that may return their input itself or a view of it; unknown functions and methods may, too."""

_SHAPED_LIKE: frozenset[Any] = frozenset(("expand_as", "type_as", "to", "view_as", "reshape_as"))
"""Operations that read only the shape or type of what comes after their first tensor."""
_MADE_LIKE: frozenset[Any] = frozenset((torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like)).union(
    ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
)
"""Operations that make a constant of the shape or type of a tensor."""


def asks_metadata(node: Node) -> bool:
    """Whether a node reads a tensor's shape or type, not its values."""
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad")
    return node.target in ("size", "dim", "numel") or node.target in _MADE_LIKE


def data_of(node: Node) -> list[Node]:
    """The nodes whose values a node reads, not those whose shape or type it reads."""
    if asks_metadata(node):
        return []
    return node.all_input_nodes[:1] if node.target in _SHAPED_LIKE else node.all_input_nodes


def operation_of(node: Node, model: nn.Module) -> Any:
    """The module type, function or method name that a node calls."""
    return kind_of(module_of(node, model)) if node.op == "call_module" else node.target


def kind_of(module: nn.Module) -> type:
    """The class whose code a module runs; a subclass is another kind, because it may do more."""
    # For a layer with computed weights PyTorch itself makes a subclass.
    kind = type_before_parametrizations(module)
    return getattr(kind, "cls_to_become", None) or kind


def is_known(module: nn.Module) -> bool:
    """Whether a module is of a known kind, and unchanged."""
    return kind_of(module) in KNOWN and not is_patched(module)


def is_patched(module: nn.Module) -> bool:
    """Whether a method was replaced, on the module or on its class."""
    kind = kind_of(module)
    replaced = any(callable(getattr(kind, name, None)) for name in vars(module))
    return replaced or any(
        _package(method) != _package(kind) for method in vars(kind).values() if isinstance(method, FunctionType)
    )


def _package(member: Any) -> str:
    return str(member.__module__).partition(".")[0]


def module_of(node: Node, model: nn.Module) -> nn.Module:
    """The module that a node calls."""
    return model.get_submodule(str(node.target))


def name_of(node: Node) -> str:
    """The network's name of an operation: its module, or the function and the module that calls it."""
    if node.op == "call_module":
        return str(node.target)
    path = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("",))[0]
    return f"{path}.{getattr(node.target, '__name__', node.target)}" if path else node.name


def changed_by(node: Node, model: nn.Module) -> Node | None:
    """The tensor that an operation changes in place, if it does."""
    if not node.op.startswith("call") or not node.all_input_nodes:
        return None
    target: Any = node.target
    if node.op == "call_module":
        in_place = bool(getattr(module_of(node, model), "inplace", False))
    else:
        name = str(getattr(target, "__name__", target))
        says_so = name.endswith("_") and not name.endswith("__") and not _is_operator(target)
        # tracing gives functions their settings by name
        in_place = says_so or target in IN_PLACE or bool(node.kwargs.get("inplace"))
    out = node.kwargs.get("out")
    return out if isinstance(out, Node) else node.all_input_nodes[0] if in_place else None


def _is_operator(target: Any) -> bool:
    """Whether it is Python's own, such as ``and_``, whose name ends so for another reason."""
    return getattr(target, "__module__", None) == operator.add.__module__


def memory_of(node: Node, model: nn.Module) -> Node:
    """The operation that made the memory in which a result may lie: the lowest of those that return it or a view."""
    while node.op.startswith("call") and node.all_input_nodes:
        changed, operation = changed_by(node, model), operation_of(node, model)
        is_unknown = node.op != "call_module" and operation not in KNOWN
        if changed is None and not is_unknown and operation not in MAY_SHARE_MEMORY:
            break
        node = changed or node.all_input_nodes[0]
    return node


def _unknown(node: Node) -> Any:
    return node


def arguments(node: Node, model: nn.Module, sizes: Sizes | None, *names: str) -> dict[str, Any]:
    """The arguments of a call, with these names in order, and with numbers for sizes; for a module, its attributes."""
    if node.op == "call_module":
        return vars(module_of(node, model))
    args, settings = map_arg((node.args, node.kwargs), sizes or _unknown)
    return {**dict(zip(names, args, strict=False)), **settings}


def window_of(node: Node, model: nn.Module, sizes: Sizes | None = None) -> Window | None:
    """The geometry of a convolution, pooling or padding; None if it depends on the data."""
    operation = operation_of(node, model)
    if operation in PADDINGS:
        return _padding_window(node, model, sizes)
    if operation in TRANSPOSED:
        return _transposed_window(node, model, sizes)
    if operation in CONVOLUTIONS:
        settings = arguments(node, model, sizes, "input", "weight", "bias", "stride", "padding", "dilation", "groups")
        settings = {**settings, "kernel_size": _kernel_size(settings, node, sizes)}
    else:
        shared = ("input", "kernel_size", "stride", "padding")
        names = ("ceil_mode",) if operation is F.avg_pool2d else ("dilation", "ceil_mode", "return_indices")
        settings = arguments(node, model, sizes, *shared, *names)
    if settings["kernel_size"] is None or not is_constant(settings["kernel_size"]):
        return None
    kernel, dilation = pair(settings["kernel_size"]), pair(settings.get("dilation", 1))
    stride = settings.get("stride")
    before, after = _paddings(settings.get("padding", 0), kernel, dilation)
    if operation in CONVOLUTIONS:
        return Window(kernel, pair(stride) if stride else (1, 1), before, after, dilation)
    return Pooling(
        kernel,
        # Without a stride, the stride of pooling is its kernel.
        pair(stride) if stride else kernel,
        before,
        after,
        dilation,
        bool(settings.get("ceil_mode", False)),
        operation in MAX_POOLINGS,
        node.name,
    )


def _transposed_window(node: Node, model: nn.Module, sizes: Sizes | None) -> Window | None:
    """The window of the convolution that leads the other way; `after` may be negative, for output padding."""
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    settings = arguments(node, model, sizes, *names)
    kernel = _kernel_size(settings, node, sizes)
    if kernel is None:
        return None
    before, further = pair(settings.get("padding", 0)), pair(settings.get("output_padding", 0))
    after = (before[0] - further[0], before[1] - further[1])
    return Window(pair(kernel), pair(settings.get("stride", 1)), before, after, pair(settings.get("dilation", 1)))


def _padding_window(node: Node, model: nn.Module, sizes: Sizes | None) -> Window | None:
    settings = arguments(node, model, sizes, "input", "pad", "mode", "value")
    padding: Any = settings["padding"] if node.op == "call_module" else settings["pad"]
    if not is_constant(padding) or len(padding) not in (2, 4):
        return None
    left, right, top, bottom = (*padding, 0, 0)[:4]
    return Window((1, 1), before=(top, left), after=(bottom, right))


def _kernel_size(settings: Mapping[str, Any], node: Node, sizes: Sizes | None) -> Any:
    """The kernel size of the weights, which may have been replaced after the layer was made, or be computed."""
    if node.op != "call_module":
        weight = sizes.of(settings["weight"]) if sizes else None
        return None if weight is None else weight[-2:]
    weight = settings["_parameters"].get("weight")
    return settings["kernel_size"] if weight is None or is_lazy(weight) else tuple(weight.shape[-2:])


def _paddings(
    padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    if padding == "valid":
        padding = 0
    if padding != "same":
        return pair(padding), pair(padding)
    total = [spread * (length - 1) for spread, length in zip(dilation, kernel, strict=True)]
    # For an even kernel PyTorch pads one row more below than above.
    before = (total[0] // 2, total[1] // 2)
    return before, (total[0] - before[0], total[1] - before[1])


def adaptive_size(node: Node, model: nn.Module, sizes: Sizes | None) -> tuple[int | None, int | None] | None:
    """The output size of adaptive pooling, with None for the input's length; None if it depends on the data."""
    size = arguments(node, model, sizes, "input", "output_size")["output_size"]
    if not is_constant(size):
        return None
    rows, columns = size if isinstance(size, tuple | list) else (size, size)
    return rows, columns


_RESAMPLING_MODES: Mapping[Any, Literal["nearest", "nearest-exact", "linear"]] = {
    "nearest": "nearest",
    "nearest-exact": "nearest-exact",
    "bilinear": "linear",
}


def resampling_of(node: Node, model: nn.Module, sizes: Sizes | None) -> Resampling | None:
    """The geometry of nearest or bilinear upsampling; None for another mode or a size that depends on the data."""
    settings = arguments(node, model, sizes, "input", "size", "scale_factor", "mode", "align_corners")
    size, scale = settings.get("size"), settings.get("scale_factor")
    mode = _RESAMPLING_MODES.get(settings.get("mode", "nearest"))
    if mode is None or not is_constant(size) or not is_constant(scale):
        return None
    factors = scale if isinstance(scale, tuple | list) else (scale or 1, scale or 1)
    return Resampling(
        mode,
        (None, None) if size is None else pair(size),
        (float(factors[0]), float(factors[1])),
        settings.get("align_corners"),
    )


def gives_indices(node: Node, model: nn.Module) -> bool:
    """Whether a pooling also returns the places of its maxima."""
    asked = arguments(node, model, None).get("return_indices", False)
    return operation_of(node, model) is F.max_pool2d_with_indices or bool(asked)


def is_constant(value: Any) -> bool:
    """Whether an argument is a constant in the network's code, not computed from the data's shape."""
    return not any(isinstance(part, Node) for part in (value if isinstance(value, tuple | list) else (value,)))


def pair(value: Any) -> tuple[int, int]:
    """(rows, columns) of a setting that may be one number for both."""
    rows, columns = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return int(rows), int(columns)
