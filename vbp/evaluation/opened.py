"""The network opened: a copy that shares its tensors, and in which every step is a module of its own.

Libraries for saliency hook modules, and need them to be used once and to change nothing in place. Here they may hook
what they want: the network itself is never touched.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.nn import functional as F
from typing_extensions import override

from vbp.saliency.operations import module_of

Module = TypeVar("Module", bound=nn.Module)

_OUT_OF_PLACE: Mapping[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def shared_copy(module: Module) -> Module:
    """A copy of the modules, not of their tensors; its parameters need no gradients."""
    tensors = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in module.parameters()}
    buffers = {id(one): one for one in module.buffers()}
    return deepcopy(module, {**tensors, **buffers})


def tap_of(node: str) -> str:
    """The name of the module through which a node's map passes."""
    return f"tap_{node}"


class Leaf(nn.Module):
    """Passes a map on as a tensor of its own, from which autograd records."""

    @override
    def forward(self, map_BCHW: Tensor) -> Tensor:
        """The map, as a leaf."""
        return map_BCHW.detach().requires_grad_()


def opened(
    network: nn.Module,
    graph: Graph,
    taps: Sequence[str] = (),
    *,
    whole: bool = True,
    layer: Callable[[Node, nn.Module], nn.Module | None] = lambda node, network: None,
) -> GraphModule:
    """The network as a graph of modules in evaluation mode, which share its tensors.

    Args:
        network: the network, which stays as it is.
        graph: its forward pass, from `vbp.saliency.trace`.
        taps: names of nodes, from the input upwards. Their maps pass through modules, for hooks, see `tap_of`.
            Autograd records from the first tap on, or, without taps, from an input that needs gradients.
        whole: compute the network's output; else the result is the map of the last tap.
        layer: gives the module that takes the place of a node, with `inputs_of` it as its arguments; None: the node
            stays.
    """
    copy, parts = Graph(), dict[str, Any]()
    copies: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "output":
            copy.output(map_arg(node.args[0], copies.__getitem__))
            break
        if (replaced := layer(node, network)) is not None:
            parts[node.name] = replaced
            copies[node] = copy.call_module(node.name, tuple(copies[source] for source in inputs_of(node)))
        else:
            copies[node] = _copied(node, network, copy, copies, parts)
        if node.op == "placeholder":  # the network may change its input, which autograd forbids for a leaf
            copies[node] = copy.call_method("clone", (copies[node],))
        if node.name in taps:
            name = tap_of(node.name)
            parts[name] = nn.Identity() if node.name != taps[0] else Leaf()
            tap = copy.call_module(name, (copies[node],))
            if node.name == taps[-1] and not whole:
                copy.output(tap)
                break
            copies[node] = tap
    return GraphModule(parts, copy, type(network).__name__).eval()


def inputs_of(node: Node) -> list[Node]:
    """The nodes whose results a node reads, without the network's own tensors."""
    return [source for source in node.all_input_nodes if source.op != "get_attr"]


def single(node: Node, network: nn.Module) -> GraphModule:
    """One node as a module of its own, with `inputs_of` it as its arguments."""
    graph, parts = Graph(), dict[str, Any]()
    copies = {source: graph.placeholder(source.name) for source in inputs_of(node)}
    for source in node.all_input_nodes:
        if source not in copies:
            copies[source] = _copied(source, network, graph, {}, parts)
    graph.output(_copied(node, network, graph, copies, parts))
    return GraphModule(parts, graph, node.name).eval()


def _copied(node: Node, network: nn.Module, graph: Graph, copies: dict[Node, Node], parts: dict[str, Any]) -> Node:
    """The node in another graph, computed by a module of its own, and not in place."""
    copy = graph.node_copy(node, copies.__getitem__)
    if node.op == "call_module":
        module = shared_copy(module_of(node, network))
        for one in module.modules():
            if "inplace" in vars(one):
                vars(one)["inplace"] = False
        parts[node.name], copy.target = module, node.name
    elif node.op == "get_attr":
        parts[str(node.target)] = operator.attrgetter(str(node.target))(network).detach()
    elif node.op == "call_method":
        copy.target = str(node.target).removesuffix("_")
    elif node.op == "call_function":
        copy.target = _out_of_place(node.target)
        if "inplace" in copy.kwargs:
            copy.kwargs = {**copy.kwargs, "inplace": False}
        elif node.target is F.relu:
            copy.args = copy.args[:1]
    return copy


def _out_of_place(function: Any) -> Any:
    """The function that gives the same result and leaves its argument as it is."""
    name = getattr(function, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        function = getattr(F, name[:-1], None) or getattr(torch, name[:-1], function)  # but operator.and_
    return _OUT_OF_PLACE.get(function, function)
