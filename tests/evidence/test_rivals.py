"""The rival is measured fairly only if it computes what it should."""

import torch
from torch import nn

from tests import reference
from vbp.evidence.rivals import bare_forward, reference_algorithm


def small_network():
    torch.manual_seed(0)
    network = nn.Module()
    network.features = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
    )  # fmt: skip
    return network.requires_grad_(False)


def test_reference_algorithm_equals_the_oracle():
    network, images_NCHW = small_network(), torch.randn(2, 3, 16, 16)
    masks = reference_algorithm(network)(images_NCHW)
    assert masks.shape == (2, 1, 16, 16)
    layers = reference.layers_of(network.features)
    for image, mask in zip(images_NCHW, masks, strict=True):
        wanted = reference.reference_mask(layers, image.double().numpy())
        assert abs(mask[0].double().numpy() - wanted).max() < 5e-6


def test_bare_forward_is_the_feature_part():
    assert bare_forward(small_network())(torch.zeros(1, 3, 16, 16)).shape == (1, 5, 4, 4)
