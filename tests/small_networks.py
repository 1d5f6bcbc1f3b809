"""Small seeded networks, and pixels for them."""

import numpy as np
import pytest
import torch
from torch import nn


def block(inputs, outputs, norm):
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1)]
    return [*layers, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU(inplace=True)]


def randomise(model, seed=0):
    """Weights and batch statistics as varied as a trained network's."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.1, 0.1, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.2, 0.2, generator=generator)
    return model.eval()


def small_vgg(norm=False, classes=5):
    features = [
        *block(3, 6, norm), *block(6, 6, norm), nn.MaxPool2d(2),
        *block(6, 9, norm), nn.MaxPool2d(2), *block(9, 12, norm), nn.MaxPool2d(2),
    ]  # fmt: skip
    return randomise(nn.Sequential(*features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, classes)))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pixels_BHWC():
    return np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
