"""A forward pass prepared for CUDA: fewer kernels, and less memory traffic, for the same maps.

A GPU computes a convolution faster than it reads and writes the map again for the bias, the batch norm, the addition
and the ReLU after it, which are kernels of their own. cuDNN computes all of them at once. Max pooling writes no
indices, which have 8 bytes for a value of 2. An average over channels is a product of matrices with float32 output.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F
from typing_extensions import override

from vbp.saliency.forward import ForwardPass, channel_mean, last_tap, nothing, positive_mean
from vbp.saliency.geometry import Window
from vbp.saliency.operations import MAX_POOLINGS, gives_indices, module_of, operation_of, pair, window_of
from vbp.saliency.prepared.chains import (
    BOUNDED,
    activation_of,
    addition_to,
    chain_of,
    folded,
    has_hooks,
    is_convolution,
    is_finite,
    is_unchanged,
    modules_of,
    nodes_until,
    normed,
)
from vbp.saliency.prepared.switches import Switches

LOG = logging.getLogger(__name__)
Way = Literal["alone", "zeros", "sum"]
ALIGNED = 8
"""Channels of 16 bits that are read at once: rows of the product begin at such addresses."""
ROWS = 8
"""Equal rows of ones in the product that averages, of which one is read. More than one, because products of matrices
are computed in tiles of at least so many; each costs 4 bytes a pixel."""
WAYS: Mapping[Way, str] = {"alone": "alone", "zeros": "with zeros", "sum": "with another map"}
"""What a convolution is fused with besides its ReLU. Of these the first does best; some cuDNN can only add: torch gives
it memory that nobody has written, to be counted 0 times, and no engine may take that."""
FACTOR = {"zeros": 2.0, "sum": 1.0}
"""Of what is added. They differ, since torch keeps cuDNN's plans by this number, but not by the shape of what is
added: a plan for a whole map would read behind the zeros, which are one for each channel."""
UNSUPPORTED = ("engine", "NOT_SUPPORTED", "BAD_PARAM")
"""Texts in errors of cuDNN that say that it cannot compute something at all."""


def fewer_kernels(forward: ForwardPass, device: torch.device, switches: Switches) -> ForwardPass:
    """The same pass, to be run without gradients, in fewer kernels as far as the last tap.

    Layers that are not replaced are shared with the model, which is not changed; later changes of the model's
    convolutions have no effect. What this torch or this device cannot do is left as it was, and the log says why.

    cuDNN's ReLU gives 0 for NaN. What that hides is the same as on a CPU, see `packed`: convolutions are not fused if
    the weights are not finite, and infinity in an averaged map is noticed.

    Args:
        forward: a pass whose network is on the device.
        device: where it runs.
        switches: what to do.
    """
    module = GraphModule(forward.model, deepcopy(forward.graph))
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    dtype = next((layer.weight.dtype for layer in layers), torch.float32)
    last = last_tap(module.graph)
    if switches.fused and is_finite(module):
        _fuse(module, last, partial(can_fuse, device, dtype))
    if switches.pools:
        _without_indices(module, last)
    if switches.means and dtype is not torch.float32 and can_multiply_wide(device, dtype):
        _means_by_products(module)
    module.graph.lint()
    return ForwardPass(module, module.graph)


@cache
def can_fuse(device: torch.device, dtype: torch.dtype, way: Way) -> bool:
    """Whether cuDNN's fused convolutions work here in this way; it is tried once, where new memory is full of NaN."""
    try:
        # made without random numbers, of which a user may count on the next
        layer = nn.Conv2d(ALIGNED, ALIGNED, 3, padding=1, device="meta", dtype=dtype).to_empty(device=device)
        for parameter in layer.requires_grad_(False).parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        fused = FusedConvolution(layer, None, way)
        map_NCHW = torch.ones(1, ALIGNED, 8, 8, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        other_NCHW = map_NCHW.clone() if way == "sum" else None
        expected = torch.relu(layer(map_NCHW) if other_NCHW is None else layer(map_NCHW) + other_NCHW)
        torch.full_like(map_NCHW, torch.nan)  # freed at once, so that the next map lies there
        torch.testing.assert_close(fused.at_once(map_NCHW, other_NCHW), expected, rtol=0.02, atol=0.02)
    except (AttributeError, RuntimeError, AssertionError) as error:
        _say(f"convolutions are not fused {WAYS[way]}", error)
        return False
    return True


@cache
def can_multiply_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of 16-bit matrices can give float32 here; it is tried once."""
    try:
        map_NCHW = torch.full((1, ALIGNED, 8, 8), 1 / 3, device=device, dtype=dtype)
        map_NCHW = map_NCHW.to(memory_format=torch.channels_last)
        torch.testing.assert_close(product_mean(map_NCHW), channel_mean(map_NCHW), rtol=1e-5, atol=0)
    except (RuntimeError, TypeError, AssertionError) as error:
        _say("averages are no products", error)
        return False
    return True


class FusedConvolution(nn.Module):
    """Convolution, batch norm, the addition of another map, and ReLU in one.

    Args:
        convolution: a convolution with zero padding, given in numbers, and one group.
        norm: batch norm of its output, or None.
        way: with what it is fused, see `WAYS`.

    Attributes:
        is_refused: whether cuDNN has refused to do it at once.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, way: Way = "alone"):
        super().__init__()
        weight, bias = folded(convolution, norm)
        dtype = convolution.weight.dtype
        self._weight = weight.to(dtype, memory_format=torch.channels_last)
        self._bias = self._weight.new_zeros(len(weight)) if bias is None else bias.to(dtype)
        self._zeros_1C11 = self._bias.new_zeros(1, len(weight), 1, 1) if way == "zeros" else None
        self._geometry: tuple[Any, ...] = (
            convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        )  # fmt: skip
        kernel, padding = pair(convolution.kernel_size), pair(convolution.padding)
        self._window = Window(kernel, pair(convolution.stride), padding, padding, pair(convolution.dilation))
        self.is_refused = False

    @override
    def forward(self, map_NCHW: Tensor, other_NCHW: Tensor | None = None) -> Tensor:
        """The next map.

        Args:
            map_NCHW: the convolution's input.
            other_NCHW: the map to add, before the ReLU; None: none.
        """
        if self.is_refused or not (other_NCHW is None or self._adds(map_NCHW, other_NCHW)):
            return self.in_steps(map_NCHW, other_NCHW)
        try:
            return self.at_once(map_NCHW, other_NCHW)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or not any(text in str(error) for text in UNSUPPORTED):
                raise
            refusal = str(error)  # the error itself would hold the maps
        # if this fails too, it was for lack of memory, which torch does not tell apart
        result_NCHW = self.in_steps(map_NCHW, other_NCHW)
        self.is_refused = True
        _say("a convolution is not fused", refusal)
        return result_NCHW

    def in_steps(self, map_NCHW: Tensor, other_NCHW: Tensor | None) -> Tensor:
        """The next map by several operations of torch."""
        result_NCHW = F.conv2d(map_NCHW, self._weight, self._bias, *self._geometry)
        return torch.relu_(result_NCHW if other_NCHW is None else result_NCHW + other_NCHW)

    @override
    def extra_repr(self) -> str:
        """Its geometry: ``3x3 of 64 to 128, stride 1x1``."""
        channels, of, *kernel = self._weight.shape
        return f"{_times(kernel)} of {of} to {channels}, stride {_times(self._window.stride)}"

    def at_once(self, map_NCHW: Tensor, other_NCHW: Tensor | None) -> Tensor:
        """The next map by cuDNN, which cannot do it for every geometry."""
        fixed = (self._bias, *self._geometry)
        if other_NCHW is not None:
            return torch.cudnn_convolution_add_relu(map_NCHW, self._weight, other_NCHW, FACTOR["sum"], *fixed)
        if self._zeros_1C11 is not None:
            return torch.cudnn_convolution_add_relu(map_NCHW, self._weight, self._zeros_1C11, FACTOR["zeros"], *fixed)
        return torch.cudnn_convolution_relu(map_NCHW, self._weight, *fixed)

    def _adds(self, map_NCHW: Tensor, other_NCHW: Tensor) -> bool:
        """Whether the other map has the type and shape of the output; cuDNN does not ask."""
        shape = (len(map_NCHW), len(self._weight), *self._window.output_size((map_NCHW.shape[2], map_NCHW.shape[3])))
        return other_NCHW.dtype is map_NCHW.dtype and other_NCHW.shape == shape


class PoolingWithoutIndices(nn.Module):
    """Max pooling without padding or dilation, as the maximum over a view of all windows; NaN passes on.

    Torch's own pooling computes indices on CUDA, whether they are wanted or not.

    Args:
        kernel: rows and columns.
        stride: rows and columns.
        ceil_mode: whether a window may reach over the end.
    """

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], ceil_mode: bool):
        super().__init__()
        self._kernel, self._stride, self._ceil_mode = kernel, stride, ceil_mode

    @override
    def forward(self, map_NCHW: Tensor) -> Tensor:
        """The maxima, channels_last."""
        if self._ceil_mode and self._reaches_over(map_NCHW):
            return F.max_pool2d(map_NCHW, self._kernel, self._stride, ceil_mode=True)
        windows_NhwCkk = map_NCHW.permute(0, 2, 3, 1)
        for axis in (0, 1):
            windows_NhwCkk = windows_NhwCkk.unfold(axis + 1, self._kernel[axis], self._stride[axis])
        return windows_NhwCkk.amax((4, 5)).permute(0, 3, 1, 2)

    def _reaches_over(self, map_NCHW: Tensor) -> bool:
        sides = zip(map_NCHW.shape[2:], self._kernel, self._stride, strict=True)
        return any((length - kernel) % stride for length, kernel, stride in sides)


def product_mean(map_NCHW: Tensor) -> Tensor:
    """`channel_mean` of a map of 16 bits as a product with ones, added up in float32.

    Maps of another type or memory format, or with rows that are not aligned, get the plain average.
    """
    images, channels, rows, columns = map_NCHW.shape
    if (
        map_NCHW.dtype.itemsize != 2
        or channels % ALIGNED
        or not map_NCHW.is_contiguous(memory_format=torch.channels_last)
    ):
        return channel_mean(map_NCHW)
    pixels_PC = map_NCHW.permute(0, 2, 3, 1).reshape(-1, channels)
    shares_RC, divisor = _shares(ROWS, channels, map_NCHW.dtype, map_NCHW.device)
    mean_P = _wide_product(shares_RC, pixels_PC.T)[0]
    return (mean_P if divisor == 1 else mean_P.div_(divisor)).view(images, 1, rows, columns)


def positive_product_mean(map_NCHW: Tensor) -> Tensor:
    """`positive_mean` by a product."""
    return product_mean(map_NCHW.clamp(min=0)) + nothing(map_NCHW)


def positive_product_mean_of_activation(map_NCHW: Tensor) -> Tensor:
    """The same of a map without minus infinity, which alone a clamp would hide."""
    return product_mean(map_NCHW.clamp(min=0))


@cache
def _shares(rows: int, channels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, int]:
    """What the channels are multiplied with, and what is left to divide by: a power of two divides without rounding."""
    is_exact = channels & (channels - 1) == 0
    value = 1 / channels if is_exact else 1.0
    with torch.inference_mode(False):
        return torch.full((rows, channels), value, dtype=dtype, device=device), 1 if is_exact else channels


def _wide_product(first: Tensor, second: Tensor) -> Tensor:
    """A product of 16-bit matrices in float32."""
    return torch.mm(first, second, out_dtype=torch.float32)


def _fuse(module: GraphModule, last: Node, can: Callable[[Way], bool]) -> None:
    convolutions = [
        node for node in nodes_until(last) if is_convolution(node, module) and modules_of([node], module)[0].groups == 1
    ]
    for number, convolution in enumerate(convolutions):
        chain, other = _with_relu(convolution, module)
        ways: tuple[Way, ...] = ("alone", "zeros") if other is None else ("sum",)
        way = next((way for way in ways if can(way)), None) if chain else None
        if way:
            _replace(chain, other, module, f"fused_{number}", way)


def _with_relu(convolution: Node, module: GraphModule) -> tuple[list[Node], Node | None]:
    """The chain that ends in a ReLU, and the map that it adds before; empty if there is none."""
    chain = chain_of(convolution, module)
    if activation_of(chain[-1], module) == "relu":
        return chain, None
    chain = normed(convolution, module)
    found = addition_to(chain[-1], module)
    if found is None:
        return [], None
    addition, other, relu = found
    source = convolution.all_input_nodes[0]
    stays = is_unchanged(source, convolution, relu, module) and is_unchanged(other, addition, relu, module)
    return ([*chain, addition, relu], other) if stays else ([], None)


def _replace(chain: list[Node], other: Node | None, module: GraphModule, name: str, way: Way) -> None:
    """Let the last node of the chain, which keeps its name and readers, do the work of the whole chain."""
    convolution, norm, _ = modules_of(chain, module)
    module.add_submodule(name, FusedConvolution(convolution, norm, way))
    last = chain[-1]
    sources = chain[0].args if other is None else (*chain[0].args, other)
    last.op, last.target, last.args, last.kwargs = "call_module", name, sources, {}
    for node in reversed(chain[:-1]):
        module.graph.erase_node(node)


def _without_indices(module: GraphModule, last: Node) -> None:
    for number, node in enumerate(nodes_until(last)):
        if node.op not in ("call_module", "call_function") or operation_of(node, module) not in MAX_POOLINGS:
            continue
        if gives_indices(node, module) or (node.op == "call_module" and has_hooks(module_of(node, module))):
            continue
        window: Any = window_of(node, module)
        if window and window.before == (0, 0) and window.dilation == (1, 1):
            name = f"pooled_{number}"
            module.add_submodule(name, PoolingWithoutIndices(window.kernel, window.stride, window.ceil_mode))
            node.op, node.target, node.args, node.kwargs = "call_module", name, (node.all_input_nodes[0],), {}


def _means_by_products(module: GraphModule) -> None:
    for node in module.graph.nodes:
        if node.target is channel_mean:
            node.target = product_mean
        elif node.target is positive_mean:
            is_bounded = activation_of(node.all_input_nodes[0], module) in BOUNDED
            node.target = positive_product_mean_of_activation if is_bounded else positive_product_mean


def _times(lengths: Iterable[int]) -> str:
    return "x".join(map(str, lengths))


def _say(what: str, why: object) -> None:
    _say_once(f"{what}: {' '.join(str(why).split())[:200]}")


@cache
def _say_once(text: str) -> None:
    LOG.warning(text)
