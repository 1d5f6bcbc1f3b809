"""Layer-wise relevance propagation by zennit, with its composite EpsilonPlusFlat.

Flat for the first convolution, z-plus for the others, epsilon for linear layers. Zennit has canonical forms for a few
families of networks; here the network's graph itself is brought into one, which fits all:

- a batch norm after a convolution is folded into it;
- activations, other normalisations, scales and gates (squeeze-and-excitation) pass relevance on as it is, and gates
  get none;
- at an addition and in an average, each summand gets its share.

A network with any other operation is refused, since its gradient would pass for relevance.

The relevance of an image's colours is summed, and a negative sum, which speaks against the class, counts as 0.

Shapes: B images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import operator
from functools import partial
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from typing_extensions import override

from vbp.errors import ModelError
from vbp.evaluation.opened import inputs_of, opened, shared_copy, single
from vbp.evaluation.subject import Batch, Saliency, Subject
from vbp.saliency import operations
from vbp.saliency.operations import asks_metadata, module_of, name_of, operation_of
from vbp.saliency.trace import Trace

_PASSED: frozenset[Any] = (
    operations.NORMALISATIONS | (operations.ARITHMETIC - operations.ADDITIONS) | set(operations.SIGNED_BY_ACTIVATION)
)
_SHARED: frozenset[Any] = operations.UPSAMPLINGS | {F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean"}
"""Averages that zennit does not know by themselves."""
_AS_THEY_ARE: frozenset[Any] = frozenset().union(
    {nn.ConvTranspose2d, nn.Linear, nn.AvgPool2d, nn.AdaptiveAvgPool2d},
    *(operations.UNCHANGED, operations.MAX_POOLINGS, {nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d}),
    *(operations.PADDINGS, operations.PIXEL_SHUFFLES, operations.PIXEL_UNSHUFFLES),
    *(operations.CONCATENATIONS, operations.STACKINGS, operations.SPLITS, operations.UNBINDINGS, {operator.getitem}),
    *(operations.FLATTENINGS, operations.RESHAPINGS, operations.PERMUTATIONS, operations.TRANSPOSITIONS),
    *(operations.UNSQUEEZINGS, operations.SQUEEZINGS, operations.EXPANSIONS),
)
"""Layers that zennit has rules for, and operations that only move values: their gradient is right."""


def lrp(subject: Subject) -> Saliency:
    """The relevance of pixels for the class's score."""
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat
    from zennit.rules import Norm

    def network_of(found: Trace) -> nn.Module:
        layer = partial(_canonical, numbers=_numbers(found.graph))
        return opened(subject.network, found.graph, layer=layer)

    network_at = subject.at_size(network_of)

    def saliency(batch: Batch) -> Tensor:
        def score(output_BK: Tensor) -> Tensor:
            index_B1 = batch.classes[:, None]
            return torch.zeros_like(output_BK).scatter(1, index_B1, output_BK.detach().gather(1, index_B1))

        composite = EpsilonPlusFlat(layer_map=[(_Shared, Norm())])
        with Gradient(network_at(batch.images_BCHW), composite) as attributor:
            relevance_BCHW: Tensor = attributor(batch.images_BCHW.clone().requires_grad_(), score)[1]
        return relevance_BCHW.sum(1).clamp(min=0)

    return saliency


def _numbers(graph: Graph) -> set[Node]:
    """The nodes that are computed from the sizes of tensors, not from their values."""
    found: set[Node] = set()
    for node in graph.nodes:
        if asks_metadata(node) or (node.all_input_nodes and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def _canonical(node: Node, network: nn.Module, numbers: set[Node]) -> nn.Module | None:
    """The node's module in canonical form; None: as it is.

    Raises:
        ModelError: there is no rule for it.
    """
    if node.op in ("placeholder", "get_attr") or node in numbers:
        return None
    if (convolution := _convolution(node, network)) is not None:
        norm = _norm_after(node, network)
        return convolution if norm is None else fuse_conv_bn_eval(convolution, norm).requires_grad_(False)
    if node.all_input_nodes and _norm_after(node.all_input_nodes[0], network) is not None:
        return nn.Identity()
    operation = operation_of(node, network)
    if operation in operations.ADDITIONS and len(inputs_of(node)) == 2 and not node.kwargs:
        return _Added()
    if operation in _PASSED | operations.ADDITIONS:
        return _Passed(single(node, network))
    if operation in _SHARED:
        return _Shared(single(node, network))
    if operation in _AS_THEY_ARE:
        return None
    raise ModelError(f"there is no rule for {name_of(node)}")


def _convolution(node: Node, network: nn.Module) -> nn.Conv2d | None:
    """The node as a convolution, for rules and for batch norms, if it is one of the network's own weights."""
    if operation_of(node, network) not in operations.CONVOLUTIONS:
        return None
    if node.op == "call_module":
        return cast("nn.Conv2d", shared_copy(module_of(node, network)).eval())
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = operations.arguments(node, network, None, *names)
    weight, bias = given["weight"], given.get("bias")
    settings = {name: given[name] for name in names[3:] if name in given}
    if len(inputs_of(node)) > 1 or not all(map(operations.is_constant, settings.values())):
        return None
    weight_OIhw = attrgetter(str(weight.target))(network).detach()
    outputs, inputs, *kernel = weight_OIhw.shape
    convolution = nn.Conv2d(inputs * settings.get("groups", 1), outputs, tuple(kernel), **settings, device="meta")
    convolution.weight = nn.Parameter(weight_OIhw, requires_grad=False)
    bias_O = None if bias is None else attrgetter(str(bias.target))(network).detach()
    convolution.bias = None if bias_O is None else nn.Parameter(bias_O, requires_grad=False)
    return convolution.eval()


def _norm_after(node: Node, network: nn.Module) -> nn.BatchNorm2d | None:
    """A copy of the batch norm that alone reads a convolution."""
    if len(node.users) != 1 or _convolution(node, network) is None:
        return None
    reader = next(iter(node.users))
    if reader.op != "call_module" or operation_of(reader, network) is not nn.BatchNorm2d:
        return None
    norm = cast("nn.BatchNorm2d", module_of(reader, network))
    return None if norm.running_mean is None else shared_copy(norm).eval()


class _Straight(torch.autograd.Function):
    """The value of `result`, and the gradient of `signal`."""

    @staticmethod
    @override
    def forward(ctx: Any, signal: Tensor, result: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class _Hidden(nn.Module):
    """A step with one output. Zennit does not find the modules in it."""

    def __init__(self, step: nn.Module):
        super().__init__()
        self._step = (step,)


class _Passed(_Hidden):
    """A step through which relevance passes as it is, to the largest of its arguments: the others are gates."""

    @override
    def forward(self, *values: Any) -> Any:
        tensors = [value for value in values if isinstance(value, Tensor)]
        with torch.no_grad():
            result = self._step[0](*values)
        signal = max(tensors, key=Tensor.numel)
        if signal.shape != result.shape or sum(value.numel() == signal.numel() for value in tensors) > 1:
            raise ModelError("two maps of one size meet in another way than by addition")
        return _Straight.apply(signal, result)


class _Shared(_Hidden):
    """An average, or a sum: each value gets the share that it adds."""

    @override
    def forward(self, map_BCHW: Tensor) -> Any:
        return self._step[0](map_BCHW)


class _Added(nn.Module):
    """The sum of two maps; of a map and a smaller tensor, the map alone gets relevance."""

    def __init__(self) -> None:
        super().__init__()
        from zennit.layer import Sum

        self.sum = Sum()

    @override
    def forward(self, left: Any, right: Any) -> Any:
        tensors = [value for value in (left, right) if isinstance(value, Tensor)]
        if len(tensors) == 2 and left.shape == right.shape:
            return self.sum(torch.stack(tensors, -1))
        return _Straight.apply(max(tensors, key=Tensor.numel), (left + right).detach())
