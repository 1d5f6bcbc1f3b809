"""Random numbers that depend on a seed and an image, never on the images beside it or on earlier calls.

Shapes: B images, C channels, H, W height and width.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def generator_for(image: NDArray[Any], seed: int, purpose: int = 0) -> np.random.Generator:
    """A fresh generator; each purpose has numbers of its own.

    Images need different numbers: noise that is the same everywhere would favour one place over a whole data set.
    """
    return np.random.default_rng([seed, crc32(np.ascontiguousarray(image).tobytes()), purpose])


def noisy(images_BCHW: Tensor, copies: int, noise: float, seed: int) -> list[Tensor]:
    """The images with Gaussian noise, `copies` times; of a standard deviation relative to each image's range."""
    images = images_BCHW.detach().cpu().numpy()
    drawn = [np.empty_like(images) for _ in range(copies)]
    for place, image_CHW in enumerate(images):
        generator = generator_for(image_CHW, seed)
        for copy in drawn:
            copy[place] = image_CHW + noise * np.ptp(image_CHW) * generator.standard_normal(image_CHW.shape)
    return [torch.from_numpy(copy).to(images_BCHW) for copy in drawn]
