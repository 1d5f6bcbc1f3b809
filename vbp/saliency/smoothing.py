"""Smoothing over noise (SmoothGrad, Smilkov et al., arXiv:1706.03825): the copies of an image whose masks are averaged.

Shapes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import Size, Tensor

from vbp.errors import UsageError

KEPT_BYTES = 2**28
"""The most noise that is kept for the next batch of the same size; more is drawn again for each batch."""


def noisy_copies(images_BCHW: Tensor, samples: int, noise: float, seed: int) -> Iterator[Tensor]:
    """The images with Gaussian noise, `samples` times.

    All images of a size get the same noise, drawn on the CPU: it depends neither on an image's place in the batch nor
    on the device.

    Args:
        images_BCHW: as the network takes them.
        samples: number of copies.
        noise: the standard deviation, as a share of each image's own range from its smallest to its largest value.
        seed: seed of the noise.

    Raises:
        UsageError: the images are integers, to which such noise cannot be added.
    """
    if not images_BCHW.is_floating_point():
        raise UsageError(
            f"smoothing adds noise to images, which must be floating-point for it, not {images_BCHW.dtype}."
        )
    wide_BCHW = images_BCHW.float()
    sigma_B111 = noise * (wide_BCHW.amax((1, 2, 3), keepdim=True) - wide_BCHW.amin((1, 2, 3), keepdim=True))
    for noise_CHW in _noise(images_BCHW.shape[1:], samples, seed, images_BCHW.device):
        yield (wide_BCHW + sigma_B111 * noise_CHW).to(images_BCHW.dtype)


def _noise(shape: Size, samples: int, seed: int, device: torch.device) -> Iterable[Tensor]:
    is_small = samples * shape.numel() * torch.float32.itemsize <= KEPT_BYTES
    return (_kept if is_small else _drawn)(shape, samples, seed, device)


@lru_cache(maxsize=1)
def _kept(shape: Size, samples: int, seed: int, device: torch.device) -> tuple[Tensor, ...]:
    """The noise of the last size, so that it is not drawn and copied to the device for every batch."""
    with torch.inference_mode(False):
        return tuple(_drawn(shape, samples, seed, device))


def _drawn(shape: Size, samples: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield torch.randn(shape, generator=generator).to(device)
