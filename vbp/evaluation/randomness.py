"""Random numbers that depend on a seed and an image, never on the images beside it or on earlier calls."""

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
