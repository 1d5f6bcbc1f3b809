"""Random numbers that depend on a seed and an image, never on the images beside it or on earlier calls.

Shapes: B images, H, W height and width, C channels.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray


def generator_for(image: NDArray[Any], seed: int, purpose: int = 0) -> np.random.Generator:
    """A fresh generator; each purpose has numbers of its own.

    Images need different numbers: noise that is the same everywhere would favour one place over a whole data set.
    """
    return np.random.default_rng([seed, crc32(np.ascontiguousarray(image).tobytes()), purpose])


def noisy(pixels_BHWC: NDArray[np.uint8], copies: int, noise: float, seed: int) -> list[NDArray[np.uint8]]:
    """The images with Gaussian noise, `copies` times, as a camera would give them: rounded, and cut at black and white.

    Args:
        pixels_BHWC: uint8.
        copies: how many.
        noise: standard deviation, as a share of 255.
        seed: together with each image it chooses the noise.
    """
    drawn = [np.empty_like(pixels_BHWC) for _ in range(copies)]
    for place, pixels_HWC in enumerate(pixels_BHWC):
        generator = generator_for(pixels_HWC, seed)
        for copy_BHWC in drawn:
            noise_HWC = generator.standard_normal(pixels_HWC.shape, np.float32) * (255 * noise)
            copy_BHWC[place] = (pixels_HWC + noise_HWC).round().clip(0, 255)
    return drawn
