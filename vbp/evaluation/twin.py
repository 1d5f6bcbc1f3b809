"""The random twin: the same network with random weights. What its masks show as well, training has not put there."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from vbp.errors import ModelError

_KERNEL = 4
"""Dimensions of a kernel of a convolution in two."""


def random_twin(network: nn.Module, seed: int) -> nn.Module:
    """A copy of the network in which each layer has drawn its weights anew, see `redraw`.

    The weights are drawn on the CPU, so they are the same on every device.

    Raises:
        ModelError: a kernel of a convolution would stay as it is, because no layer holds it, or its layer computes it
            from others; names it.  Such a twin would be partly trained.
    """
    place = next(network.parameters()).device
    twin = deepcopy(network).cpu().requires_grad_(False)
    kernels = {name: tensor for name, tensor in twin.named_parameters() if tensor.ndim >= _KERNEL and len(tensor) > 1}
    for tensor in kernels.values():
        tensor.fill_(torch.nan)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in twin.modules():
            redraw(module)
    for name, tensor in kernels.items():
        if tensor.isnan().any():
            raise ModelError(
                f"the parameter {name} would stay as it is when all weights are drawn anew: give the module that holds "
                "it a method reset_parameters() that draws it"
            )
    return twin.to(place).eval()


def redraw(layer: nn.Module) -> None:
    """Give a layer new weights from torch's generator.

    Convolutions and linear layers draw as He et al. propose (2015, arXiv 1502.01852): normal, by the number of inputs,
    without bias. By PyTorch's own rule maps shrink from layer to layer until the biases alone are left: then the
    deepest map of VGG16 is the same for every image. All other layers, such as norms, draw by their own
    ``reset_parameters``; parameters of a module without it, such as the scales of ConvNeXt's blocks, stay.
    """
    if callable(reset := getattr(layer, "reset_parameters", None)):
        reset()
    if isinstance(layer, _ConvNd | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
