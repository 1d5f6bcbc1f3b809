"""A small image tree and a small network, for tests of the whole job."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models.vgg import VGG

WIDTHS = [4, 4, "M", 6, 6, "M", 8, 8, 8, "M", 8, 8, 8, "M", 8, 8, 8, "M"]
CLASSES = ("bird", "cat", "dog")


def picture(seed, width, height):
    """A smooth random picture with one bright disc."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 160, (5, 5, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
    y, x = np.mgrid[:height, :width]
    disc = (x - rng.uniform(0.2, 0.8) * width) ** 2 + (y - rng.uniform(0.2, 0.8) * height) ** 2
    image[disc < (min(width, height) * 0.15) ** 2] = rng.integers(180, 256, 3)
    return Image.fromarray(image)


@pytest.fixture(scope="session")
def network_file(tmp_path_factory):
    """A compact VGG16 with random weights and three classes, which it names, as a checkpoint file."""
    generator = torch.Generator().manual_seed(7)
    layers, channels = [], 3
    for width in WIDTHS:
        if width == "M":
            layers.append(torch.nn.MaxPool2d(2, 2))
        else:
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU(inplace=True)]
            channels = width
    network = VGG(torch.nn.Sequential(*layers), num_classes=3, init_weights=False)
    network.classifier = torch.nn.Sequential(
        torch.nn.Linear(8 * 49, 16), torch.nn.ReLU(), torch.nn.Dropout(),
        torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(16, 3),
    )  # fmt: skip
    state = {}
    for name, tensor in network.state_dict().items():
        fan_in = max(1, tensor[0].numel())
        state[name] = torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(state, path, {"classes": json.dumps(CLASSES)})
    return str(path)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """22 images in three class folders, of several sizes and formats."""
    root = tmp_path_factory.mktemp("tree") / "photos"
    for number in range(22):
        label = CLASSES[number % 3]
        (root / label).mkdir(parents=True, exist_ok=True)
        suffix = ("jpg", "png", "bmp")[number % 4 % 3]
        picture(number, 70 + 9 * number, 60 + 5 * (number % 7)).save(root / label / f"{number:02d}.{suffix}")
    return root
