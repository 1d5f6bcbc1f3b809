"""The random twin: the same network with random weights. What its masks show as well, training has not put there."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd


def random_twin(network: nn.Module, seed: int) -> nn.Module:
    """A copy of the network in which each layer has drawn its weights anew, see `redraw`.

    The weights are drawn on the CPU, so they are the same on every device.
    """
    place = next(network.parameters()).device
    twin = deepcopy(network).cpu().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in twin.modules():
            redraw(module)
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
