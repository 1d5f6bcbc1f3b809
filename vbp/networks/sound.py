"""Check before any work that weights can be computed with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vbp.errors import WeightsError


def check_sound(network: nn.Module, weights: str) -> list[str]:
    """Refuse weights that make every mask meaningless; return notes on weights that are only suspicious.

    Args:
        network: the network with its weights.
        weights: name of the weights, for errors.

    Raises:
        WeightsError: a tensor holds NaN or infinity, a variance is negative, or the first convolution is all zero.
    """
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            least, most = (float(each) for each in torch.aminmax(tensor))
            _check_range(key, least, most, weights)
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    zero = [f"{name}.weight" for name, layer in layers if _is_zero(layer.weight)]
    if layers and f"{layers[0][0]}.weight" in zero:
        raise WeightsError(
            f"weights {weights!r} cannot be used: {zero[0]} is all zero, so no image leaves a trace; "
            "take a checkpoint from after the training."
        )
    return [f"{name} is all zero" for name in zero]


def _check_range(key: str, least: float, most: float, weights: str) -> None:
    if not (-torch.inf < least and most < torch.inf):  # false for NaN, too
        found = "NaN" if math.isnan(least) else "infinity"
        raise WeightsError(
            f"weights {weights!r} cannot be used: {key} holds {found}, as a training that diverged leaves it; "
            "take a checkpoint from before."
        )
    if key.endswith("running_var") and least < 0:
        raise WeightsError(
            f"weights {weights!r} cannot be used: {key} holds {least:.3g}, but no variance is below zero."
        )


def _is_zero(tensor: Tensor) -> bool:
    return not bool(tensor.any())
