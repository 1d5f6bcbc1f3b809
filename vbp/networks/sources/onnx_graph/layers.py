"""Operators that compute with pixels: convolutions, pools, norms, activations, linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from vbp.networks.rebuilt import batch_norm, convolution, linear
from vbp.networks.sources.onnx_graph.building import Building, Call, Rule, tensor_of


def _constant(building: Building, call: Call) -> Any:
    """A tensor that stands in the graph."""
    if (value := call.settings.get("value")) is not None:
        return tensor_of(value)
    for kind in ("value_float", "value_floats", "value_int", "value_ints"):
        if (value := call.settings.get(kind)) is not None:
            return torch.tensor(value)
    raise building.unknown(f"Constant ({call.name}) that is no number")


def _identity(building: Building, call: Call) -> Any:
    return call.given[0]


def _dropout(building: Building, call: Call) -> Any:
    if call.at(2) is not None and bool(call.at(2)):
        raise building.unknown(f"Dropout ({call.name}) as in training")
    return call.given[0]


def _cast(building: Building, call: Call) -> Any:
    """Of maps only the kind of floating-point number may change, since the network computes in its own."""
    from onnx import helper

    dtype = tensor_of(helper.make_tensor("zero", call.settings.get("to"), [1], [0])).dtype
    if isinstance(call.given[0], Tensor):
        return call.given[0].to(dtype)
    if isinstance(call.given[0], list) == dtype.is_floating_point:
        raise building.unknown(f"Cast ({call.name}) between whole and other numbers")
    return call.given[0]


def _conv(building: Building, call: Call) -> Any:
    weight, bias = call.given[1], call.at(2)
    if not isinstance(weight, Tensor) or weight.ndim != 4 or isinstance(bias, Node):
        raise building.unknown("Conv with computed weights, or not in two dimensions")
    dilation, stride = call.settings.get("dilations", [1, 1]), call.settings.get("strides", [1, 1])
    image, padding = _padded(building, call, weight.shape[2:], stride, dilation)
    layer = convolution(weight, bias, tuple(stride), padding, tuple(dilation), call.settings.get("group", 1))
    return building.built.layer(call.name, layer, image)


def _padded(
    building: Building,
    call: Call,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    value: float = 0.0,
) -> tuple[Any, tuple[int, int]]:
    """The image, padded where the layer cannot, and the padding of the layer itself."""
    auto = call.settings.text("auto_pad", "NOTSET")
    top, left, bottom, right = call.settings.get("pads", [0, 0, 0, 0])
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if tuple(stride) != (1, 1):
            raise building.unknown(f"{call.kind} with auto_pad {auto} and a stride, whose padding depends on the size")
        whole = [spread * (length - 1) for spread, length in zip(dilation, kernel, strict=True)]
        less = [each // 2 for each in whole]
        more = [each - half for each, half in zip(whole, less, strict=True)]
        (top, left), (bottom, right) = (less, more) if auto == "SAME_UPPER" else (more, less)
    is_pool = call.kind != "Conv"  # which PyTorch pads by half a window at most
    fits = not is_pool or (2 * top <= kernel[0] and 2 * left <= kernel[1])
    if (top, left) == (bottom, right) and fits:
        return call.given[0], (top, left)
    return building.built.call(F.pad, call.given[0], (left, right, top, bottom), "constant", value), (0, 0)


def _batchnormalization(building: Building, call: Call) -> Any:
    scale, shift, mean, variance = call.given[1:5]
    if call.settings.get("training_mode", 0) or not call.settings.get("spatial", 1):
        raise building.unknown(f"BatchNormalization ({call.name}) as in training, or of single pixels")
    layer = batch_norm(scale, shift, mean, variance, call.settings.get("epsilon", 1e-5), rank=building.rank(call))
    return building.built.layer(call.name, layer, call.given[0])


def _layernormalization(building: Building, call: Call) -> Any:
    scale, shift = call.given[1], call.at(2)
    rank = building.rank(call)
    (axis,) = building.axes(call, [call.settings.get("axis", -1)], rank)
    building.refuse_images(call, [axis])
    if not isinstance(scale, Tensor) or isinstance(shift, Node) or scale.ndim != rank - axis:
        raise building.unknown(f"LayerNormalization ({call.name}) with computed or spread factors")
    factors = [each if each is None else building.built.constant(call.name, each) for each in (scale, shift)]
    return building.built.call(
        F.layer_norm, call.given[0], tuple(scale.shape), *factors, call.settings.get("epsilon", 1e-5)
    )


def _clip(building: Building, call: Call) -> Any:
    least, most = (
        call.settings.get(key, None if call.at(at) is None else float(call.at(at)))
        for key, at in (("min", 1), ("max", 2))
    )
    if least is None and most is None:
        return call.given[0]
    if least is None or most is None:
        return building.built.call(torch.clamp, call.given[0], least, most)
    return cut(building, call.given[0], least, most)


def _hardsigmoid(building: Building, call: Call) -> Any:
    alpha, beta = call.settings.get("alpha", 0.2), call.settings.get("beta", 0.5)
    if abs(alpha - 1 / 6) > 1e-6 or abs(beta - 0.5) > 1e-6:
        raise building.unknown("HardSigmoid with other constants than PyTorch's")
    return building.built.call(F.hardsigmoid, call.given[0])


def _prelu(building: Building, call: Call) -> Any:
    slope = call.given[1]
    if not isinstance(slope, Tensor) or slope.numel() not in (1, slope.shape[0] if slope.ndim in (1, 3) else 0):
        raise building.unknown(f"PRelu ({call.name}) with another slope than one or one a channel")
    if slope.ndim == 1 and slope.numel() > 1 and building.rank(call) != 2:
        raise building.unknown(f"PRelu ({call.name}) with a slope for each column")
    return building.built.call(F.prelu, call.given[0], building.built.constant(f"{call.name}_slope", slope.flatten()))


def _gelu(building: Building, call: Call) -> Any:
    return building.built.call(F.gelu, call.given[0], approximate=call.settings.text("approximate", "none"))


def _softmax(building: Building, call: Call) -> Any:
    """Before opset 13 over all axes from one on, since then over that axis alone."""
    is_old = building.opset < 13
    rank = building.rank(call)
    (axis,) = building.axes(call, [call.settings.get("axis", 1 if is_old else -1)], rank)
    building.refuse_images(call, [axis])
    if not is_old or all(length == 1 for length in building.shapes[call.inputs[0]][axis + 1 :]):
        return building.built.call(F.softmax, call.given[0], axis)
    sizes = [building.built.method("size", call.given[0], each) for each in range(rank)]
    flat = building.built.call(torch.flatten, call.given[0], axis)
    return building.built.method("reshape", building.built.call(F.softmax, flat, axis), *sizes)


def _maxpool(building: Building, call: Call) -> Any:
    kernel, stride = call.settings.get("kernel_shape"), call.settings.get("strides", [1, 1])
    dilation = call.settings.get("dilations", [1, 1])
    image, padding = _padded(building, call, kernel, stride, dilation, value=float("-inf"))
    ceil = bool(call.settings.get("ceil_mode", 0))
    layer = nn.MaxPool2d(_pair(kernel), _pair(stride), padding, _pair(dilation), ceil_mode=ceil)
    return building.built.layer(call.name, layer, image)


def _averagepool(building: Building, call: Call) -> Any:
    kernel, stride = call.settings.get("kernel_shape"), call.settings.get("strides", [1, 1])
    pads = call.settings.get("pads", [0] * 4)
    unequal = pads[:2] != pads[2:] or call.settings.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if unequal or any(2 * pad > length for pad, length in zip(pads, kernel, strict=False)):
        raise building.unknown("AveragePool with unequal padding, or by more than half a window")
    if any(spread != 1 for spread in call.settings.get("dilations", [])):
        raise building.unknown("AveragePool with dilation")
    ceil, counts = (bool(call.settings.get(each, 0)) for each in ("ceil_mode", "count_include_pad"))
    return building.built.layer(
        call.name, nn.AvgPool2d(_pair(kernel), _pair(stride), _pair(pads[:2]), ceil, counts), call.given[0]
    )


def _globalaveragepool(building: Building, call: Call) -> Any:
    return building.built.call(F.adaptive_avg_pool2d, call.given[0], 1)


def _globalmaxpool(building: Building, call: Call) -> Any:
    return building.built.call(F.adaptive_max_pool2d, call.given[0], 1)


def _gemm(building: Building, call: Call) -> Any:
    weight, bias = call.given[1], call.at(2)
    if not isinstance(weight, Tensor) or isinstance(bias, Node) or call.settings.get("transA", 0):
        raise building.unknown("Gemm with computed or transposed factors")
    weight = weight if call.settings.get("transB", 0) else weight.t()
    alpha, beta = call.settings.get("alpha", 1.0), call.settings.get("beta", 1.0)
    if bias is not None:
        if bias.ndim == 2 and bias.shape[0] != 1:
            raise building.unknown(f"Gemm ({call.name}) with another bias for each image")
        bias = beta * bias.flatten().expand(weight.shape[0])
    return building.built.layer(call.name, linear(alpha * weight, bias), call.given[0])


def _matmul(building: Building, call: Call) -> Any:
    if not isinstance(call.given[1], Tensor) or call.given[1].ndim != 2:
        raise building.unknown("MatMul of two maps, as attention has it")
    return building.built.layer(call.name, linear(call.given[1].t(), None), call.given[0])


def cut(building: Building, image: Any, least: float, most: float) -> Node:
    """The map without what is below or above these values."""
    if (least, most) == (0, 6):
        return building.built.call(F.relu6, image)
    return building.built.call(F.hardtanh, image, least, most)


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    one, other = numbers
    return one, other


RULES: Mapping[str, Rule] = {
    "Constant": _constant,
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Conv": _conv,
    "BatchNormalization": _batchnormalization,
    "LayerNormalization": _layernormalization,
    "Clip": _clip,
    "HardSigmoid": _hardsigmoid,
    "PRelu": _prelu,
    "Gelu": _gelu,
    "Softmax": _softmax,
    "MaxPool": _maxpool,
    "AveragePool": _averagepool,
    "GlobalAveragePool": _globalaveragepool,
    "GlobalMaxPool": _globalmaxpool,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
