"""A small network of each kind that methods treat differently, and images for them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.small_networks import randomise, small_vgg

CLASSES = 5


class Head(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, CLASSES)

    def forward(self, map_BCHW):
        return self.classifier(self.pool(map_BCHW).flatten(1))


class Residual(nn.Module):
    """One ReLU module that is used again and again, changes in place, functions; no module gives the deepest map."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.one, self.norm = nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 6, 3, 1, 1)
        self.down = nn.Conv2d(6, 8, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = Head(8)

    def forward(self, images_BCHW):
        images_BCHW = images_BCHW.mul_(1.5)
        map_BCHW = self.relu(self.stem_norm(self.stem(images_BCHW)))
        inner_BCHW = self.two(self.relu(self.norm(self.one(map_BCHW))))
        inner_BCHW += map_BCHW
        map_BCHW = F.relu(inner_BCHW, True)
        return self.head(self.down(map_BCHW).relu_())


class Gated(nn.Module):
    """SiLU, a depthwise convolution and a gate (squeeze-and-excitation), as in EfficientNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm, self.act = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.SiLU(inplace=True)
        self.depthwise, self.norm = nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.project = nn.Conv2d(6, 6, 1)
        self.top = nn.Conv2d(6, 8, 1)
        self.head = Head(8)

    def forward(self, images_BCHW):
        map_BCHW = self.act(self.stem_norm(self.stem(images_BCHW)))
        inner_BCHW = self.act(self.norm(self.depthwise(map_BCHW)))
        gate_BC11 = self.act(self.squeeze(F.adaptive_avg_pool2d(inner_BCHW, 1)))
        inner_BCHW = torch.sigmoid(self.excite(gate_BC11)) * inner_BCHW
        map_BCHW = map_BCHW + self.project(inner_BCHW)
        return self.head(self.act(self.top(map_BCHW)))


def bounded():
    """Depthwise convolutions, ReLU6 and concatenation, as in MobileNet and its relatives."""

    class Concatenated(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, map_BCHW):
            return torch.cat([self.left(map_BCHW), self.right(map_BCHW)], 1)

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
        Concatenated(), nn.ReLU6(inplace=True), nn.AvgPool2d(2), nn.Conv2d(8, 8, 1), nn.ReLU6(), Head(8),
    )  # fmt: skip


class ChannelsLast(nn.Module):
    """Layer norm over permuted axes, GELU and learned scales, as in ConvNeXt; the deepest map is (B, H, W, C)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, 4)
        self.depthwise, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.LayerNorm(6)
        self.wide, self.narrow = nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.linspace(0.5, 1, 6))
        self.last, self.classifier = nn.Linear(6, 7), nn.Linear(7, CLASSES)

    def forward(self, images_BCHW):
        map_BCHW = self.stem(images_BCHW)
        inner_BHWC = self.norm(self.depthwise(map_BCHW).permute(0, 2, 3, 1))
        inner_BHWC = self.narrow(F.gelu(self.wide(inner_BHWC))) * self.scale
        map_BHWC = F.gelu(self.last((map_BCHW + inner_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        return self.classifier(map_BHWC.mean((1, 2)))


KINDS = {
    "vgg": small_vgg,
    "vgg-norm": lambda: small_vgg(norm=True),
    "residual": lambda: randomise(Residual()),
    "gated": lambda: randomise(Gated()),
    "bounded": lambda: randomise(bounded()),
    "channels-last": lambda: randomise(ChannelsLast()),
}


def images(count=3, rows=32, columns=40):
    """Normalised images, and the pixels that they were."""
    pixels_BHWC = np.random.default_rng(3).integers(0, 256, (count, rows, columns, 3), dtype=np.uint8)
    return (torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25, pixels_BHWC


def state(network):
    """Everything that a module is: its settings, tensors, hooks and mode, by its name."""
    return {
        name: {key: value.copy() if isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in network.named_modules()
    }


every_kind = pytest.mark.parametrize("kind", KINDS)
