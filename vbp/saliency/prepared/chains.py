"""Chains: a convolution and the batch norm and ReLU after it, if nothing else reads its output; fused into one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vbp.saliency.operations import module_of

RELUS = frozenset((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"))


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
        and not _has_hooks(module)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def chain_of(convolution: Node, model: nn.Module) -> list[Node]:
    """The convolution, and the batch norm and ReLU after it if nothing else reads its output."""
    chain = [convolution]
    for is_next in (_is_norm, is_relu):
        readers = list(chain[-1].users)
        if len(readers) == 1 and is_next(readers[0], model):
            chain.append(readers[0])
    return chain


def _is_norm(node: Node, model: nn.Module) -> bool:
    if node.op != "call_module":
        return False
    module = module_of(node, model)
    return type(module) is nn.BatchNorm2d and module.running_mean is not None and not _has_hooks(module)


def is_relu(node: Node, model: nn.Module) -> bool:
    """Whether a node is a ReLU and nothing else."""
    if node.op != "call_module":
        return node.target in RELUS
    module = module_of(node, model)
    return type(module) is nn.ReLU and not _has_hooks(module)


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


def modules_of(chain: list[Node], model: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d | None, bool]:
    """Convolution and batch norm of a chain, and whether a ReLU ends it."""
    modules: list[Any] = [module_of(node, model) if node.op == "call_module" else None for node in chain]
    norm = next((module for module in modules if isinstance(module, nn.BatchNorm2d)), None)
    return modules[0], norm, is_relu(chain[-1], model)


def _has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks, which must run, or which compute its weight."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))
