"""A network that was exported to a graph, built again from PyTorch's own layers and functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node


class Rebuilt:
    """Collects layers and calls, in their order.

    Args:
        name: class name of the network that is made.
    """

    def __init__(self, name: str) -> None:
        self._name, self._graph, self._layers = name, Graph(), nn.Module()
        self.image = self._graph.placeholder("image")

    def layer(self, name: str, layer: nn.Module, *inputs: Any) -> Node:
        """A call of a layer; `name` is its name in the file."""
        base = name = re.sub(r"\W+", "_", name).strip("_") or "layer"
        if name[0].isdigit():
            base = name = f"n{name}"
        number = 0
        while hasattr(self._layers, name):
            number += 1
            name = f"{base}_{number}"
        self._layers.add_module(name, layer)
        return self._graph.call_module(name, inputs)

    def constant(self, name: str, value: Tensor) -> Node:
        """A tensor of the network, such as a scale."""
        base = name = "c_" + re.sub(r"\W+", "_", name).strip("_")
        number = 0
        while hasattr(self._layers, name):
            number += 1
            name = f"{base}_{number}"
        self._layers.register_buffer(name, value)
        return self._graph.get_attr(name)

    def made(self, call: Node) -> nn.Module:
        """The layer that a node calls."""
        return self._layers.get_submodule(str(call.target))

    def held(self, value: Node) -> Tensor:
        """The tensor of the network that a node is."""
        return self._layers.get_buffer(str(value.target))

    def call(self, function: Callable[..., Any], *inputs: Any, **settings: Any) -> Node:
        """A call of a function."""
        return self._graph.call_function(function, inputs, settings)

    def method(self, name: str, *inputs: Any) -> Node:
        """A call of a tensor's method."""
        return self._graph.call_method(name, inputs)

    def network(self, output: Any) -> nn.Module:
        """The network; what the output does not need is left out."""
        self._graph.output(output)
        made = GraphModule(self._layers, self._graph, self._name)
        made.graph.eliminate_dead_code()
        made.recompile()
        return made.float().eval().requires_grad_(False)


def convolution(
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    *,
    transposed: bool = False,
) -> nn.Module:
    """A convolution with these weights."""
    kernel = (weight.shape[2], weight.shape[3])
    if transposed:
        made: nn.Module = nn.ConvTranspose2d(
            weight.shape[0], weight.shape[1] * groups, kernel, stride, padding, 0, groups, bias is not None, dilation
        )
    else:
        made = nn.Conv2d(
            weight.shape[1] * groups, weight.shape[0], kernel, stride, padding, dilation, groups, bias is not None
        )
    return _with(made, weight=weight, bias=bias)


def batch_norm(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, epsilon: float, rank: int = 4
) -> nn.Module:
    """A batch norm with these statistics, of maps or (of `rank` 2) of vectors."""
    scale = torch.ones_like(mean) if weight is None else weight
    shift = torch.zeros_like(mean) if bias is None else bias
    made = (nn.BatchNorm1d if rank == 2 else nn.BatchNorm2d)(len(mean), eps=epsilon)
    return _with(made, weight=scale, bias=shift, running_mean=mean, running_var=variance)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A linear layer with these weights."""
    return _with(nn.Linear(weight.shape[1], weight.shape[0], bias is not None), weight=weight, bias=bias)


def _with(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    given = {name: tensor.detach().float().clone() for name, tensor in tensors.items() if tensor is not None}
    layer.load_state_dict({**layer.state_dict(), **given})
    return layer
