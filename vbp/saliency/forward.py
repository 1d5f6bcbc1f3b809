"""One forward pass that keeps only the averages over channels of its feature maps.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from vbp.saliency.geometry import Pooling


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` in evaluation mode; at the end restore each module's own mode."""
    in_training = [module for module in model.modules() if module.training]
    try:
        for module in in_training:
            module.training = False
        yield
    finally:
        for module in in_training:
            module.training = True


def channel_mean(map_NCHW: Tensor) -> Tensor:
    """The average over channels, accumulated and returned in float32, as (N, 1, H, W).

    Each pixel's value depends on that pixel's channels alone, to the bit: not on the image's place in the batch, not on
    other pixels.
    """
    on_cpu = map_NCHW.device.type == "cpu"
    if not (on_cpu and map_NCHW.dtype is torch.bfloat16 and map_NCHW.is_contiguous(memory_format=torch.channels_last)):
        return map_NCHW.mean(1, keepdim=True, dtype=torch.float32)
    # Summing bfloat16 in float32 takes ATen 41 ms on 8x64x224x224. The matrix-vector product of oneDNN takes 2.8 ms
    # and accumulates in float32 too, but rounds its result to bfloat16. A second product computes the rounding error;
    # with it the error falls from 4e-3 to 8e-6, for 5.4 ms in all.
    images, channels, rows, columns = map_NCHW.shape
    pixels = map_NCHW.permute(0, 2, 3, 1).reshape(-1, channels)
    ones = pixels.new_ones(channels)
    total = torch.mv(pixels, ones)
    remainder = torch.addmv(total, pixels, ones, beta=-1)
    return (total.float() + remainder.float()).div_(channels).view(images, 1, rows, columns)


def positive_mean(map_NCHW: Tensor) -> Tensor:
    """The average over channels, with negative values counted as 0; NaN where a channel is not finite.

    The map itself is checked, since clamping would turn minus infinity into 0.
    """
    return channel_mean(map_NCHW.clamp(min=0)) + nothing(map_NCHW)


def nothing(map_NCHW: Tensor) -> Tensor:
    """0 where all channels are finite, else NaN, as (N, 1, H, W)."""
    if not map_NCHW.is_contiguous(memory_format=torch.channels_last):
        whole_N1HW = channel_mean(map_NCHW)
        return whole_N1HW - whole_N1HW
    # 0 times a value that is not finite is NaN; this product is cheaper than another mean
    images, channels, rows, columns = map_NCHW.shape
    pixels = map_NCHW.permute(0, 2, 3, 1).reshape(-1, channels)
    return torch.mv(pixels, pixels.new_zeros(channels)).float().view(images, 1, rows, columns)


class Pass(NamedTuple):
    """The results of one forward pass."""

    output: Any
    """The network's output, or None if only its feature part was run."""
    maps_N1HW: list[Tensor]
    """The averages of the tapped maps, from the input upwards."""
    switches: dict[str, Tensor]
    """Switches of max pooling by node, see `Pooling.switches`."""
    deepest_NCHW: Tensor | None
    """The last tap's map, after which autograd has recorded; None if it has not."""


class ForwardPass:
    """A traced network as Python code from torch.fx, which also computes the averages of its maps.

    A map is freed as soon as the network and its average have read it. The layers are the model's own: they are
    looked up in every pass, and their hooks run; no hook is added.

    Args:
        model: has the layers that the graph calls.
        graph: a graph from `averaged`.
    """

    def __init__(self, model: nn.Module, graph: Graph):
        self.model = model
        self.graph = graph
        self._code: dict[tuple[bool, bool], Callable[..., Any]] = {}

    def __call__(self, images_NCHW: Tensor, *, whole: bool = True, differentiable: bool = False) -> Pass:
        """Run the pass, without gradients.

        Args:
            images_NCHW: as the network takes them.
            whole: run the whole network, or only as far as the last average.
            differentiable: keep the last tap's map, and let autograd record after it; the caller's
                context switches the recording off.
        """
        wanted = whole, differentiable
        if wanted not in self._code:
            self._code[wanted] = _code_of(_variant(self.graph, whole, differentiable))
        return Pass(*self._code[wanted](self.model, images_NCHW))


def channels_first(map_: Tensor, images: int, rows: int, columns: int) -> Tensor:
    """A map with these axes of images, rows and columns as (N, C, H, W); all other axes count as channels."""
    moved = map_.movedim((images, rows, columns), (0, -2, -1))
    return moved[:, None] if moved.ndim == 3 else moved.flatten(1, -3)


def averaged(
    graph: Graph,
    signed_by_tap: Mapping[str, bool],
    poolings: Mapping[str, Pooling],
    layouts: Mapping[str, tuple[int, int, int]] = MappingProxyType({}),
) -> Graph:
    """A copy of `graph` whose output is a `Pass`.

    An average comes directly after its map, before an in-place operation can change the map.

    Args:
        graph: the forward pass of a network.
        signed_by_tap: the nodes to average, from the input upwards, and whether negative values count as 0.
        poolings: the max pooling whose switches are kept, by node.
        layouts: the axes of images, rows and columns of the maps that are not (N, C, H, W), by node.
    """
    copy = Graph()
    copies: dict[Node, Node] = {}
    maps: list[Node] = []
    switches: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op == "output":
            copy.output((map_arg(node.args[0], copies.__getitem__), maps, switches, None))
            break
        if node.name in poolings:
            source = copies[node.all_input_nodes[0]]
            switches[node.name] = copy.call_function(poolings[node.name].switches, (source,))
        copies[node] = copy.node_copy(node, copies.__getitem__)
        if node.name in signed_by_tap:
            mean = positive_mean if signed_by_tap[node.name] else channel_mean
            map_ = copies[node]
            if node.name in layouts:
                map_ = copy.call_function(channels_first, (map_, *layouts[node.name]))
            maps.append(copy.call_function(mean, (map_,)))
    return copy


def last_tap(graph: Graph) -> Node:
    """The node of an averaged graph whose average is the last; only after it gradients may be needed."""
    tap: Node = _results(graph).maps_N1HW[-1].all_input_nodes[0]
    return tap.all_input_nodes[0] if tap.target is channels_first else tap


def _results(graph: Graph) -> Any:
    """The nodes that compute an averaged graph's `Pass`, by its fields."""
    fields: Any = graph.output_node().args[0]
    return Pass(*fields)


def _variant(graph: Graph, whole: bool, differentiable: bool) -> Graph:
    """The part of an averaged graph that these two options of `ForwardPass.__call__` need."""
    output, maps, switches, deepest = _results(graph)
    tap = last_tap(graph)
    part = Graph()
    copies: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "output":
            break
        copies[node] = part.node_copy(node, copies.__getitem__)
        if node is maps[-1]:
            if not whole:
                output = None
                break
            if differentiable:
                deepest = part.call_function(_recorded, (copies[tap],))
                # The next operation may change its input in place, which autograd forbids for the map itself.
                copies[tap] = part.call_method("clone", (deepest,))
    part.output((*map_arg((output, maps, switches), copies.__getitem__), deepest))
    return part


def _recorded(map_NCHW: Tensor) -> Tensor:
    """The map as a leaf of autograd, which records from here on."""
    torch.set_grad_enabled(True)
    if map_NCHW.is_cuda:
        # The gradient of adaptive pooling of another format adds in any order, so that last bits change.
        map_NCHW = map_NCHW.contiguous(memory_format=torch.channels_last)
    return map_NCHW.detach().requires_grad_()


def _code_of(graph: Graph) -> Callable[..., Any]:
    """The graph as a function of the model and its input."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    function: Callable[..., Any] = names["forward"]
    return function
