"""Quantised networks in the format QDQ: what the integers stand for, and the ReLUs that quantisers drop."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from vbp.networks.sources.onnx_graph.building import Building, Call, Rule
from vbp.networks.sources.onnx_graph.layers import cut

NEVER_NEGATIVE = {F.relu, F.relu6, F.hardsigmoid, F.softplus, torch.sigmoid, torch.exp, torch.sqrt, torch.abs}
KEEP_THE_SIGN = {
    torch.add, torch.mul, torch.cat, torch.mean, torch.sum, torch.amax, torch.flatten, torch.permute, torch.squeeze,
    torch.unsqueeze, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, "reshape", operator.getitem, torch.split,
}  # fmt: skip


def is_quantised(model: Any) -> bool:
    """Whether weights or maps are integers that stand for other numbers."""
    return any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def _quantizelinear(building: Building, call: Call) -> Any:
    """A tensor becomes integers.  A map stays as it is, but for a cut at 0, which may stand for a ReLU."""
    source, scale = call.given[0], call.given[1]
    zero = torch.zeros((), dtype=torch.uint8) if call.at(2) is None else call.at(2)
    limits = torch.iinfo(zero.dtype)
    if isinstance(source, Tensor):
        scale, shift = (_along(building, call, each, source.ndim) for each in (scale, zero))
        return (torch.round(source / scale) + shift).clamp(limits.min, limits.max).to(zero.dtype)
    if scale.numel() != 1 or zero.numel() != 1:
        raise building.unknown(f"QuantizeLinear ({call.name}) with a scale for each channel of a map")
    if int(zero) != limits.min or _is_never_negative(building, source):
        return source
    return cut(building, source, 0.0, float(scale) * (limits.max - limits.min))


def _dequantizelinear(building: Building, call: Call) -> Any:
    source, zero = call.given[0], call.at(2)
    if not isinstance(source, Tensor):
        return source
    scale = _along(building, call, call.given[1], source.ndim)
    return (source.float() - (0 if zero is None else _along(building, call, zero, source.ndim))) * scale


def _along(building: Building, call: Call, numbers: Tensor, rank: int) -> Tensor:
    """The numbers of a quantisation, along their axis."""
    axis = call.settings.get("axis", 1)
    if call.settings.get("block_size", 0) or numbers.ndim > 1:
        raise building.unknown(f"{call.kind} ({call.name}) in blocks")
    if numbers.numel() == 1:
        return numbers.reshape(()).float()
    return numbers.float().reshape([-1 if each == axis % rank else 1 for each in range(rank)])


def _is_never_negative(building: Building, value: Any) -> bool:
    if isinstance(value, int | float):
        return value >= 0
    if isinstance(value, Tensor):
        return bool((value >= 0).all())
    if not isinstance(value, Node):
        return isinstance(value, list | tuple) and all(_is_never_negative(building, each) for each in value)
    if value.op == "get_attr":
        return _is_never_negative(building, building.built.held(value))
    if value.op == "call_module":
        layer = building.built.made(value)
        return isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) and _is_never_negative(building, value.args[0])
    if value.target in NEVER_NEGATIVE:
        return True
    if value.target is F.hardtanh:
        return bool(_is_never_negative(building, value.args[1]))
    several = (torch.add, torch.mul)
    parts = value.args[:2] if value.target in several else value.args[:1]
    return bool(value.target in KEEP_THE_SIGN) and all(_is_never_negative(building, each) for each in parts)


RULES: Mapping[str, Rule] = {
    "QuantizeLinear": _quantizelinear,
    "DequantizeLinear": _dequantizelinear,
}
