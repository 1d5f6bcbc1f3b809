"""Smoothing over noise (SmoothGrad, Smilkov et al., arXiv:1706.03825): the copies of an image whose masks are averaged.

Shapes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def noisy_copies(images_BCHW: Tensor, samples: int, noise: float, seed: int) -> Iterator[Tensor]:
    """The images with Gaussian noise, `samples` times.

    All images of a size get the same noise, drawn on the CPU: it depends neither on an image's place in the batch nor
    on the device.

    Args:
        images_BCHW: as the network takes them.
        samples: how many copies.
        noise: the standard deviation, as a share of each image's own range from its least to its largest value.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    wide_BCHW = images_BCHW.float()
    sigma_B111 = noise * (wide_BCHW.amax((1, 2, 3), keepdim=True) - wide_BCHW.amin((1, 2, 3), keepdim=True))
    for _ in range(samples):
        noise_CHW = torch.randn(images_BCHW.shape[1:], generator=generator).to(images_BCHW.device)
        yield (wide_BCHW + sigma_B111 * noise_CHW).to(images_BCHW.dtype)
