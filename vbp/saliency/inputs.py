"""Errors that say why a network does not take certain images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from vbp.errors import UsageError


def check_images(images_BCHW: Tensor) -> None:
    """Refuse values that are no batch of images.

    Raises:
        UsageError: the value is no tensor, or not (B, C, H, W).
    """
    if not isinstance(images_BCHW, Tensor):
        raise UsageError(
            f"images must be a tensor (B, C, H, W), not {type(images_BCHW).__name__}: pass torch.as_tensor(array), or "
            "torch.stack(images)."
        )
    if images_BCHW.ndim != 4:
        one = ": one image needs images[None]" if images_BCHW.ndim == 3 else ""
        raise UsageError(f"images must have 4 dimensions (B, C, H, W), not shape {tuple(images_BCHW.shape)}{one}.")


@contextmanager
def blaming_images(images_BCHW: Tensor, model: nn.Module) -> Iterator[None]:
    """If the network fails in this context, check whether its images are the reason; a network may take odd images.

    Raises:
        UsageError: the images' device, type or number of channels differs from the network's weights.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        if not isinstance(error, torch.OutOfMemoryError):
            refuse_odd(images_BCHW, model)
        raise


def refuse_odd(images_BCHW: Tensor, model: nn.Module) -> None:
    """Say why the images do not fit a network that has failed.

    Raises:
        UsageError: the images' device, type or number of channels differs from its weights.
    """
    if oddity := _oddity(images_BCHW, model):
        raise UsageError(f"{type(model).__name__} does not take these images: {oddity}.")


def _oddity(images_BCHW: Tensor, model: nn.Module) -> str | None:
    weights = [one for one in chain(model.parameters(), model.buffers()) if one.is_floating_point()]
    devices, dtypes = {one.device for one in weights}, {one.dtype for one in weights}
    if devices and images_BCHW.device not in devices:
        return f"they are on {images_BCHW.device}, the network is on {_listed(devices)}; move one of the two"
    if dtypes and images_BCHW.dtype not in dtypes:
        prepare = "" if images_BCHW.is_floating_point() else ", normalised as it was trained with"
        return f"they are {_short(images_BCHW.dtype)}, the network computes in {_listed(dtypes)}; convert them{prepare}"
    wanted = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    shape = tuple(images_BCHW.shape)
    if wanted is None or shape[1] == wanted:
        return None
    order = "; bring (B, H, W, C) into order with permute(0, 3, 1, 2)" if shape[3] == wanted else ""
    return f"their shape (B, C, H, W) is {shape}, the first convolution takes {wanted} channels{order}"


def _listed(values: set[torch.device] | set[torch.dtype]) -> str:
    return " and ".join(sorted(map(_short, values)))


def _short(value: torch.device | torch.dtype) -> str:
    return str(value).removeprefix("torch.")
