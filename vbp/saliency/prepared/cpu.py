"""A forward pass with its convolutions prepared for this processor.

Batch norm is folded into the convolution before it. The activation after it is fused too, which saves a pass over the
map. The weights are put into oneDNN's layout once for each size of the map, instead of in every batch.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch
from torch import Size, Tensor, nn
from torch.fx import GraphModule, Node
from typing_extensions import override

from vbp.saliency.forward import ForwardPass, channel_mean, last_tap, positive_mean
from vbp.saliency.operations import module_of
from vbp.saliency.prepared.chains import (
    BOUNDED,
    activation_of,
    chain_of,
    folded,
    is_convolution,
    is_finite,
    modules_of,
    nodes_until,
)
from vbp.saliency.prepared.layouts import BySize


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether torch and this processor support oneDNN's fused convolution in `dtype`, which `packed` uses.

    torch has no public function that says so, and it refuses bfloat16 without AVX512, so it is tried once.
    """
    try:
        layer = nn.Conv2d(16, 16, 3, device="cpu", dtype=dtype)
        PackedConvolution(layer, None, "relu")(torch.zeros(1, 16, 8, 8, device="cpu", dtype=dtype))
    except (AttributeError, RuntimeError):
        return False
    return True


def packed(forward: ForwardPass) -> ForwardPass:
    """The same pass, to be run without gradients, with prepared convolutions as far as the last tap.

    Layers that are not replaced are shared with the model, which is not changed; later changes of the model's
    convolutions have no effect. A convolution whose weights are not finite is not prepared: oneDNN's ReLU gives 0 for
    NaN, and would hide them. Infinity in an averaged map is noticed. One case stays hidden: NaN that arises within one
    convolution. It needs partial sums that exceed 3.4e38 both upwards and downwards, or a map with infinities in it
    that nothing averages, within a branch.
    """
    if not is_finite(forward.model):
        return forward
    module = GraphModule(forward.model, deepcopy(forward.graph))
    convolutions = [
        node for node in nodes_until(last_tap(module.graph)) if is_convolution(node, module) and _can_pack(node, module)
    ]
    for node in module.graph.nodes:
        if node.target is positive_mean and activation_of(node.all_input_nodes[0], module) in BOUNDED:
            node.target = positive_mean_of_activation
    for number, chain in enumerate([chain_of(node, module) for node in convolutions]):
        _replace(chain, module, f"packed_{number}")
    module.graph.lint()
    return ForwardPass(module, module.graph)


def positive_mean_of_activation(map_NCHW: Tensor) -> Tensor:
    """`positive_mean`, to the same bits, of a map without minus infinity, which alone a clamp would hide."""
    return channel_mean(map_NCHW.clamp(min=0))


class PackedConvolution(nn.Module):
    """Convolution, batch norm and activation in one.

    Args:
        convolution: a convolution with zero padding, given in numbers.
        norm: batch norm of its output, or None.
        activation: oneDNN's name of the activation that follows; `none`.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, activation: str):
        super().__init__()
        weight, bias = folded(convolution, norm)
        dtype = convolution.weight.dtype
        self._bias = None if bias is None else bias.to(dtype)
        self._geometry = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        self._weight = weight.to(dtype, memory_format=torch.channels_last)
        self._weight_for = BySize(self._laid_out)
        self._activation = activation

    @override
    def forward(self, map_NCHW: Tensor) -> Tensor:
        """The next map."""
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            map_NCHW, self._weight_for(map_NCHW.shape), self._bias, *self._geometry, self._activation, [], ""
        )
        return output

    def _laid_out(self, size: Size) -> Tensor:
        weight: Tensor = torch.ops.mkldnn._reorder_convolution_weight(self._weight, *self._geometry, list(size))
        return weight


def _can_pack(convolution: Node, model: nn.Module) -> bool:
    weight: Tensor = module_of(convolution, model).get_parameter("weight")
    return can_pack(weight.dtype)


def _replace(chain: list[Node], model: GraphModule, name: str) -> None:
    """Let the last node of the chain, which keeps its name and readers, do the work of the whole chain."""
    first, last = chain[0], chain[-1]
    convolution, norm, activation = modules_of(chain, model)
    model.add_submodule(name, PackedConvolution(convolution, norm, activation))
    last.op, last.target, last.args, last.kwargs = "call_module", name, first.args, {}
    for node in reversed(chain[:-1]):
        model.graph.erase_node(node)
