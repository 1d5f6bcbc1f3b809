"""What a batch launches on CUDA, counted without a GPU: tensors that have a CUDA device and no data.

``python -m vbp.evidence.launches [NETWORK ...]`` prints a table: kernels and bytes of a batch without and with each
optimisation. The counts are those of the operations that torch calls; how long they take, only a GPU can say. The
backward pass of a target is not among them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.library import Library

from vbp import explainer as explaining
from vbp.evidence.page import table
from vbp.explainer import Explainer
from vbp.images import on_device
from vbp.networks.model import Model
from vbp.networks.preprocessing import IMAGENET
from vbp.saliency import smoothing
from vbp.saliency.prepared import cuda, descent
from vbp.saliency.prepared.switches import Switches
from vbp.saliency.prepared.watch import Watch

NETWORKS = (
    "vgg16", "resnet50", "resnet152", "densenet201", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0",
    "convnext_tiny", "googlenet", "inception_v3",
)  # fmt: skip
HEAD = ("network", "optimised", "kernels a batch", "GB a batch")
BATCH = 128
SIZE = 224
CLASSES = 1000
OFF = Switches(**{field.name: False for field in fields(Switches)})


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors have no data in this context, and torch believes that there is a CUDA device."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_fused_shapes())
        stack.enter_context(
            mock.patch.multiple(torch.cuda, device_count=lambda: 1, current_device=lambda: 0, is_bf16_supported=_yes)
        )
        # torch cannot exchange the data of such tensors, and these read values that there are none of
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _replace_tensors))
        stack.enter_context(mock.patch.multiple(cuda, is_finite=_yes, can_fuse=_yes, can_multiply_wide=_yes))
        stack.enter_context(mock.patch.object(explaining, "Staged", _without_streams))
        # without a driver torch expects none of cuDNN's convolutions, and autograd cannot start its threads
        stack.enter_context(mock.patch.object(torch._C, "_conv_determine_backend_memory_format", _format_of_cudnn))
        stack.enter_context(mock.patch.object(torch.autograd, "grad", _gradient_shapes))
        forget_tensors()
        stack.callback(forget_tensors)
        yield


def fake_explainer(name: str, network: nn.Module | None = None, **settings: Any) -> Explainer:
    """An explainer in the context of `fake_cuda`.

    Args:
        name: of a network of torchvision.
        network: another network, on the device `meta`, instead of it.
        settings: see `Explainer`.
    """
    network = (network or _built(name)).eval().requires_grad_(False)
    _replace_tensors(network, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    vars(network)["__deepcopy__"] = lambda _: network
    model = Model(name, network, IMAGENET, None, CLASSES, "random", "0" * 64)
    return Explainer(model, device="cuda", **settings)


def watched(explainer: Explainer, images: int = BATCH, size: int = SIZE) -> Watch:
    """The watch over one batch in the context of `fake_cuda`.

    A first batch goes unwatched, since some values are computed once.
    """
    pixels_BHWC = torch.empty(images, size, size, 3, dtype=torch.uint8, device="cuda")
    explainer._compute(pixels_BHWC)
    watch = Watch()
    with watch:
        explainer._compute(pixels_BHWC)
    return watch


def counts(name: str, images: int = BATCH, size: int = SIZE) -> list[tuple[str, ...]]:
    """The table's rows of a network: switches, kernels, gigabytes."""
    rows: list[tuple[str, ...]] = []
    for title, switches in steps():
        with fake_cuda():
            watch = watched(fake_explainer(name, switches=switches, precision="bfloat16"), images, size)
        rows.append((name, title, str(watch.kernels.total()), f"{watch.bytes / 1e9:.2f}"))
    return rows


def steps() -> Iterator[tuple[str, Switches]]:
    """No optimisation of a batch's kernels, each alone, all: what it is called, and the switches."""
    yield "none", OFF
    for field in fields(Switches):
        if field.name != "graph":
            yield field.name, replace(OFF, **{field.name: True})
    yield "all", Switches()


def _built(name: str) -> nn.Module:
    aux = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with unset_fake_temporarily(), torch.device("meta"):
        network: nn.Module = torchvision.models.get_model(name, weights=None, **aux)
    return network


def _format_of_cudnn(map_: Tensor, weight: Tensor, _: Any) -> torch.memory_format:
    is_last = any(each.is_contiguous(memory_format=torch.channels_last) for each in (map_, weight))
    return torch.channels_last if is_last else torch.contiguous_format


def _gradient_shapes(_: Any, inputs: Tensor) -> tuple[Tensor]:
    return (torch.empty_like(inputs),)


def _without_streams(*_: Any) -> None:
    """Streams there are none."""


def _yes(*_: Any, **__: Any) -> bool:
    return True


def forget_tensors() -> None:
    """Empty the caches of tensors: those without data are of no use where there are data, nor the other way round."""
    drawing = (on_device._heat_colours, on_device._normalisation)
    for cached in (cuda._shares, descent._matrix, smoothing._kept, *drawing):
        cached.cache_clear()


def _replace_tensors(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """As `Module._apply`."""
    for child in module.children() if recurse else ():
        child._apply(change)  # type: ignore[no-untyped-call]
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(change(parameter.detach()), requires_grad=False)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module


@contextmanager
def _fused_shapes() -> Iterator[None]:
    """Torch does not know the shapes that cuDNN's fused convolutions give."""
    library = Library("aten", "IMPL", "Meta")  # type: ignore[no-untyped-call]

    def relu(map_: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
        stride, padding, dilation, groups = geometry
        result = torch.convolution(map_, weight, bias, stride, padding, dilation, False, (0, 0), groups)
        return result.contiguous(memory_format=torch.channels_last)

    def add_relu(map_: Tensor, weight: Tensor, _: Tensor, __: Any, bias: Tensor, *geometry: Any) -> Tensor:
        return relu(map_, weight, bias, *geometry)

    library.impl("cudnn_convolution_relu", relu)  # type: ignore[no-untyped-call]
    library.impl("cudnn_convolution_add_relu", add_relu)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        library._destroy()  # type: ignore[no-untyped-call]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.launches", description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", default=NETWORKS)
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--size", type=int, default=SIZE)
    options = parser.parse_args(arguments)
    rows = [row for name in options.networks for row in counts(name, options.batch_size, options.size)]
    sys.stdout.write(table(HEAD, rows) + "\n")


if __name__ == "__main__":
    main()
