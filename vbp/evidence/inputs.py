"""The inputs of the benchmarks: generated photographs of ImageNet's usual size, and a checkpoint of random weights."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from safetensors.torch import save_file

from vbp.demo.scenes import generate
from vbp.networks.models import load_model

WIDTH, HEIGHT = 500, 375
DIFFERENT = 64
"""More photographs repeat these."""


def photographs(count: int) -> Iterator[Image.Image]:
    """Different generated photographs."""
    for scene in generate(count, seed=30_000, size=WIDTH):
        yield Image.fromarray(scene.pixels_HWC[:HEIGHT])


def saved(photo: Image.Image, image_format: str) -> bytes:
    """The bytes of a file: ``JPEG``, ``PNG`` or ``WEBP``."""
    buffer = io.BytesIO()
    photo.save(buffer, image_format, quality=90)
    return buffer.getvalue()


def write_photos(folder: Path, count: int) -> None:
    """A tree of `count` JPEG files in one class folder; those that repeat are links."""
    place = folder / "scene"
    place.mkdir(parents=True)
    for number, photo in enumerate(photographs(min(count, DIFFERENT))):
        (place / f"{number:06d}.jpg").write_bytes(saved(photo, "JPEG"))
    for number in range(DIFFERENT, count):
        os.link(place / f"{number % DIFFERENT:06d}.jpg", place / f"{number:06d}.jpg")


def write_weights(file: Path) -> None:
    """VGG16 without its classifier, so that the main job computes what the engine is measured with."""
    tensors = load_model("vgg16", "random").network.state_dict()
    save_file({name: tensor for name, tensor in tensors.items() if name.startswith("features.")}, file)
