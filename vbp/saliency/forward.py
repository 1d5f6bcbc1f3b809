"""One forward pass that keeps nothing of its feature maps but their averages over channels.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node

from vbp.saliency.geometry import Pooling


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` in evaluation mode, and each back as it was on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def channel_mean(map_NCHW: Tensor) -> Tensor:
    """The average over channels, accumulated and returned in float32, as (N, 1, H, W).

    Each pixel's value depends on that pixel's channels alone, to the bit: not on its place in the batch, not on its
    neighbours.
    """
    on_cpu = map_NCHW.device.type == "cpu"
    if not (on_cpu and map_NCHW.dtype is torch.bfloat16 and map_NCHW.is_contiguous(memory_format=torch.channels_last)):
        return map_NCHW.mean(1, keepdim=True, dtype=torch.float32)
    # Summing bfloat16 in float32 takes ATen 41 ms on 8x64x224x224. The matrix-vector product of oneDNN takes 2.8 ms
    # and accumulates in float32 too, but rounds its result to bfloat16. Asking it again for what the rounding lost
    # brings the error from 4e-3 to 8e-6, for 5.4 ms in all.
    images, channels, rows, columns = map_NCHW.shape
    pixels = map_NCHW.permute(0, 2, 3, 1).reshape(-1, channels)
    ones = pixels.new_ones(channels)
    total = torch.mv(pixels, ones)
    remainder = torch.addmv(total, pixels, ones, beta=-1)
    return (total.float() + remainder.float()).div_(channels).view(images, 1, rows, columns)


class AveragingInterpreter(Interpreter):
    """Runs a traced network node by node and averages the maps of the tapped nodes as they appear.

    The average is taken before any later in-place operation can touch the map; the map itself is dropped as soon as
    the network has read it. No hook is set on any module.

    Args:
        model: the network.
        graph: its forward pass.
        signed_by_tap: the nodes to average, from the input upwards, and whether their maps are to be clamped at 0.
        poolings: max pooling whose switches are kept, by node.
        differentiable: keep the last tap's map, and record from there on what autograd needs. To be run without
            gradients; the caller's context switches the recording off.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        signed_by_tap: dict[str, bool],
        poolings: Mapping[str, Pooling],
        differentiable: bool = False,
    ):
        super().__init__(model, graph=graph)
        self.maps_N1HW: list[Tensor] = []
        self.switches_by_pooling: dict[str, Tensor] = {}
        self.deepest_NCHW: Tensor | None = None
        self._signed_by_tap = signed_by_tap
        self._poolings = poolings
        self._split = next(reversed(signed_by_tap)) if differentiable else None

    def run_node(self, node: Node) -> Any:
        """Run one node; average its output if it is a tap."""
        if node.name in self._poolings:
            args, settings = self.fetch_args_kwargs_from_env(node)
            map_NCHW = args[0] if args else settings["input"]
            self.switches_by_pooling[node.name] = self._poolings[node.name].switches(map_NCHW)
        output = super().run_node(node)
        if node.name in self._signed_by_tap:
            map_NCHW = output.clamp(min=0) if self._signed_by_tap[node.name] else output
            self.maps_N1HW.append(channel_mean(map_NCHW))
        if node.name == self._split:
            torch.set_grad_enabled(True)
            self.deepest_NCHW = output.detach().requires_grad_()
            # What follows may change its input in place, which autograd forbids for the map itself.
            return self.deepest_NCHW.clone()
        return output


def shortened(graph: Graph, last: str) -> Graph:
    """A copy of `graph` that ends with the node named `last`."""
    short = Graph()
    copies: dict[Node, Node] = {}
    for node in graph.nodes:
        copies[node] = short.node_copy(node, copies.__getitem__)
        copies[node].name = node.name
        if node.name == last:
            short.output(copies[node])
            break
    return short
