"""What our engine is measured against.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def bare_forward(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The feature part of the network and nothing else: the limit of every method that needs a forward pass."""

    def run(images_NCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            output: Tensor = network.features(images_NCHW)  # type: ignore[operator]
        return output

    return run


def reference_algorithm(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The algorithm of devansh20la/VisualBackprop as it is written there: float32, eager, one layer after another.

    Every ReLU's map is cloned whole and summed; all-ones transposed convolutions (3x3/1/1 at one size, 4x4/2/1 across
    a pool) lead down; every product is stretched to [0, 1]; the last step to the input is left out.
    """
    same, twice = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 4, 4)

    def run(images_NCHW: Tensor) -> Tensor:
        kept: list[Tensor] = []
        with torch.no_grad():
            value = images_NCHW
            for layer in network.features:  # type: ignore[union-attr]
                value = layer(value)
                if isinstance(layer, nn.ReLU):
                    kept.append(value.clone().detach().sum(1, keepdim=True))
            mask = kept[-1]
            for below in kept[-2::-1]:
                if mask.shape == below.shape:
                    mask = F.conv_transpose2d(mask, same.to(mask), padding=1)
                else:
                    mask = F.conv_transpose2d(mask, twice.to(mask), stride=2, padding=1)
                mask = mask * below
                flat = mask.flatten(1)
                least, most = (each.view(-1, 1, 1, 1) for each in (flat.amin(1), flat.amax(1)))
                mask = (mask - least) / (most - least)
        return mask

    return run
