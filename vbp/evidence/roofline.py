"""The roofline: operations and memory traffic of each layer, and the highest rate that they allow.

A layer takes as long as its arithmetic or its memory traffic, whichever takes longer. The network is counted as torch
runs it eagerly: every layer reads its input from memory and writes its output there.

Shapes: C channels, H rows, W columns; k the side of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Work:
    """What one layer does for one image."""

    name: str
    flop: float
    """Floating point operations; a multiplication and an addition are two."""
    bytes: float
    """Read from memory and written there."""


def forward_work(features: nn.Sequential, size: int, value_bytes: int, batch_size: int) -> list[Work]:
    """The layers of a plain chain of convolutions, ReLUs and poolings, in order.

    Args:
        features: the chain.
        size: side of the square input, in pixels.
        value_bytes: bytes of a number in memory.
        batch_size: images that share one reading of the weights.
    """
    found, below = [], torch.empty(1, 3, size, size, device="meta")
    for name, layer in deepcopy(features).to("meta").named_children():
        above = layer(below.clone())
        flop, weights = float(above.numel()), 0
        if isinstance(layer, nn.Conv2d):
            flop = 2.0 * above.numel() * layer.weight[0].numel()
            weights = sum(parameter.numel() for parameter in layer.parameters())
        elif isinstance(layer, nn.MaxPool2d):
            flop = float(above.numel() * (below.numel() // above.numel()))
        traffic = below.numel() + above.numel() + weights / batch_size
        found.append(Work(f"{type(layer).__name__} {name}", flop, value_bytes * traffic))
        below = above
    return found


def mean_work(features: nn.Sequential, size: int, value_bytes: int) -> list[Work]:
    """The work of averaging every ReLU's map over its channels, if each map is read from memory once more."""
    found, value = [], torch.empty(1, 3, size, size, device="meta")
    for name, layer in deepcopy(features).to("meta").named_children():
        value = layer(value)
        if isinstance(layer, nn.ReLU):
            pixels = value.shape[2] * value.shape[3]
            found.append(Work(f"mean {name}", float(value.numel()), float(value_bytes * value.numel() + 4 * pixels)))
    return found


def images_per_second(work: Sequence[Work], flop_per_second: float, bytes_per_second: float) -> float:
    """The highest rate of a machine with these two limits."""
    return 1 / sum(max(layer.flop / flop_per_second, layer.bytes / bytes_per_second) for layer in work)
