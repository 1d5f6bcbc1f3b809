"""The random twin: the same network with random weights. What its masks show as well, training has not put there."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


def random_twin(network: nn.Module, seed: int) -> nn.Module:
    """A copy of the network in which each layer has drawn its weights anew, by its own ``reset_parameters``.

    Batch norms forget what they have seen. Parameters of a module without ``reset_parameters``, such as the scales of
    ConvNeXt's blocks, stay. The weights are drawn on the CPU, so they are the same on every device.
    """
    place = next(network.parameters()).device
    twin = deepcopy(network).cpu().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in twin.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return twin.to(place).eval()
