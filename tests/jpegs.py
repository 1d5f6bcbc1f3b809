"""A decoder of JPEGs that stands in for a GPU's: Pillow, with pixels as tensors."""

import io

import numpy as np
import torch
from PIL import Image


def decoder(files):
    """Pixels (C, H, W) of each file; a RuntimeError if one of them cannot be read, as libraries of GPUs do."""
    return [torch.from_numpy(_pixels(file)).permute(2, 0, 1) for file in files]


def _pixels(file):
    try:
        return np.array(Image.open(io.BytesIO(file)).convert("RGB"))
    except OSError as error:
        raise RuntimeError(f"status 3: {error}") from error


def jpeg(pixels, **options):
    """The bytes of a file."""
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def noise(width, height, seed=0):
    """The hardest pixels to resize."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
