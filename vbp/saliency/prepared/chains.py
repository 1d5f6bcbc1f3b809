"""Chains: a convolution, batch norm and activation, each read by the next one alone; they are computed as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vbp.saliency.operations import ADDITIONS, changed_by, memory_of, module_of

RELU: Mapping[Any, str] = dict.fromkeys((nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "relu")
ACTIVATIONS: Mapping[Any, str] = {
    **RELU,
    **dict.fromkeys((nn.SiLU, F.silu), "swish"),
    **dict.fromkeys((nn.Hardswish, F.hardswish), "hardswish"),
}
"""Activations that oneDNN computes together with a convolution, by its names. None of them hides NaN or infinity but
ReLU; so ReLU6 is none of them, whose upper end hides infinity."""
BOUNDED = frozenset(("swish", "hardswish"))
"""Those with small negative values, but never minus infinity: they make it NaN."""


def nodes_until(last: Node) -> list[Node]:
    """The graph's nodes up to and including `last`."""
    nodes = list(last.graph.nodes)
    return nodes[: nodes.index(last) + 1]


def is_convolution(node: Node, model: nn.Module) -> bool:
    """Whether a node is an unmodified 2-D convolution with zero padding, given in numbers."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    module = module_of(node, model)
    # exactly this class: a subclass may do something else
    return (
        type(module) is nn.Conv2d
        and not has_hooks(module)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def chain_of(convolution: Node, model: nn.Module, activations: Mapping[Any, str] = ACTIVATIONS) -> list[Node]:
    """The convolution, and the batch norm and activation after it if nothing else reads its output."""
    chain = normed(convolution, model)
    if (last := _only_reader(chain[-1])) and activation_of(last, model) in activations.values():
        chain.append(last)
    # The whole chain is computed where it ends.
    return chain if is_unchanged(convolution.all_input_nodes[0], convolution, chain[-1], model) else [convolution]


def normed(convolution: Node, model: nn.Module) -> list[Node]:
    """The convolution, and the batch norm after it if nothing else reads its output."""
    norm = _only_reader(convolution)
    return [convolution, norm] if norm and _is_norm(norm, model) else [convolution]


def addition_to(last: Node, model: nn.Module) -> tuple[Node, Node, Node] | None:
    """The addition that alone reads a node, the other map that it adds, and the ReLU that alone reads the sum."""
    addition = _only_reader(last)
    if addition is None or addition.target not in ADDITIONS or addition.kwargs or len(addition.args) != 2:
        return None
    others = [node for node in addition.args if node is not last]
    relu = _only_reader(addition)
    if len(others) != 1 or not isinstance(others[0], Node) or relu is None or activation_of(relu, model) != "relu":
        return None
    # others may read the other map afterwards
    return None if _changes(addition, memory_of(others[0], model), model) else (addition, others[0], relu)


def is_unchanged(map_: Node, first: Node, last: Node, model: nn.Module) -> bool:
    """Whether no operation between two nodes changes a map in place, so that it can be read at the second one.

    The map may also be changed under another name: by what shares its memory, such as a view.
    """
    memory, node = memory_of(map_, model), first.next
    while node is not last:
        if _changes(node, memory, model):
            return False
        node = node.next
    return True


def _changes(node: Node, memory: Node, model: nn.Module) -> bool:
    """Whether a node is an operation in place on what may lie in this memory."""
    changed = changed_by(node, model)
    return changed is not None and memory_of(changed, model) is memory


def _only_reader(node: Node) -> Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 else None


def _is_norm(node: Node, model: nn.Module) -> bool:
    if node.op != "call_module":
        return False
    module = module_of(node, model)
    return type(module) is nn.BatchNorm2d and module.running_mean is not None and not has_hooks(module)


def activation_of(node: Node, model: nn.Module) -> str | None:
    """The name in `ACTIVATIONS` of a node that is one of them and nothing else."""
    if node.op != "call_module":
        return ACTIVATIONS.get(node.target)
    module = module_of(node, model)
    # exactly this class: a subclass may do something else
    return None if has_hooks(module) else ACTIVATIONS.get(type(module))


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the one convolution that equals a convolution and the batch norm after it."""
    weight, bias = convolution.weight.detach(), convolution.bias
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            weight.float(), bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    return weight.detach(), None if bias is None else bias.detach()


def modules_of(chain: list[Node], model: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d | None, str]:
    """Convolution and batch norm of a chain, and the name in `ACTIVATIONS` of what ends it; `none` if nothing does."""
    modules: list[Any] = [module_of(node, model) if node.op == "call_module" else None for node in chain]
    norm = next((module for module in modules if isinstance(module, nn.BatchNorm2d)), None)
    return modules[0], norm, activation_of(chain[-1], model) or "none"


def is_finite(model: nn.Module) -> bool:
    """Whether all weights and statistics of a network are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in [*model.parameters(), *model.buffers()])


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks, which must run, or which compute its weight."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))
