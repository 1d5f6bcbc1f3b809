"""The same forward pass with its convolutions prepared for this processor.

Batch norm is folded into the convolution before it, the ReLU behind is computed with it (one pass over the map less),
and its weights are laid out once as oneDNN wants them, instead of with every batch.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from typing_extensions import override

from vbp.saliency.operations import module_of

RELUS = frozenset((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"))
DTYPES = (torch.float32, torch.bfloat16)


def can_pack() -> bool:
    """Whether this torch has what `packed` uses: oneDNN's fused convolution, measured on x86 with AVX2 or AVX512."""
    has_operator = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return has_operator and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def packed(model: nn.Module, graph: Graph, last: str) -> GraphModule:
    """A copy of `graph`, to be run without gradients, whose convolutions are prepared as far as the node `last`.

    What it does not replace it shares with `model`. Nodes that give an output as before keep their names.

    Args:
        model: in evaluation mode as good as trained; later changes of its convolutions are not seen.
        graph: its forward pass, in-place operations untangled.
        last: behind it gradients may be wanted.
    """
    module = GraphModule(model, deepcopy(graph))
    chains = [_chain(node, module) for node in _until(module.graph, last) if _is_convolution(node, module)]
    for number, chain in enumerate(chains):
        _replace(chain, module, f"packed_{number}")
    module.graph.lint()
    return module


class PackedConvolution(nn.Module):
    """Convolution, batch norm and ReLU in one.

    Args:
        convolution: with zero padding, given in numbers.
        norm: of its output.
        relu: whether a ReLU follows.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, relu: bool):
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        if norm is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                weight.float(), bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        dtype = convolution.weight.dtype
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._geometry = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.detach().to(dtype, memory_format=torch.channels_last), *self._geometry, None
        )
        self._activation = "relu" if relu else "none"

    @override
    def forward(self, map_NCHW: Tensor) -> Tensor:
        """The next map."""
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            map_NCHW, self._weight, self._bias, *self._geometry, self._activation, [], ""
        )
        return output


def _until(graph: Graph, last: str) -> list[Node]:
    nodes = list(graph.nodes)
    return nodes[: [node.name for node in nodes].index(last) + 1]


def _is_convolution(node: Node, model: nn.Module) -> bool:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    module = module_of(node, model)
    # the very class: a subclass may do something else
    return (
        type(module) is nn.Conv2d
        and not _has_hooks(module)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.weight.dtype in DTYPES
    )


def _chain(convolution: Node, model: nn.Module) -> list[Node]:
    """The convolution, and the batch norm and ReLU that alone read it."""
    chain = [convolution]
    for is_next in (_is_norm, _is_relu):
        readers = list(chain[-1].users)
        if len(readers) == 1 and is_next(readers[0], model):
            chain.append(readers[0])
    return chain


def _is_norm(node: Node, model: nn.Module) -> bool:
    if node.op != "call_module":
        return False
    module = module_of(node, model)
    return type(module) is nn.BatchNorm2d and module.running_mean is not None and not _has_hooks(module)


def _is_relu(node: Node, model: nn.Module) -> bool:
    if node.op != "call_module":
        return node.target in RELUS
    module = module_of(node, model)
    return type(module) is nn.ReLU and not _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    """Hooks of the user's, which have to run, or which compute the weight."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))


def _replace(chain: list[Node], model: GraphModule, name: str) -> None:
    """Let the last node of the chain, which keeps its name and readers, do the work of all."""
    modules: list[Any] = [module_of(node, model) if node.op == "call_module" else None for node in chain]
    norm = next((module for module in modules if isinstance(module, nn.BatchNorm2d)), None)
    has_relu = _is_relu(chain[-1], model)
    first, last = chain[0], chain[-1]
    model.add_submodule(name, PackedConvolution(modules[0], norm, has_relu))
    last.op, last.target, last.args, last.kwargs = "call_module", name, first.args, {}
    for node in reversed(chain[:-1]):
        model.graph.erase_node(node)
