"""Small seeded networks and images."""

import pytest
import torch

from tests.small_networks import randomise, small_vgg

__all__ = ["randomise", "small_vgg"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Every test of the method computes on one thread."""


@pytest.fixture
def vgg():
    return small_vgg()


@pytest.fixture
def images_BCHW():
    return torch.randn(3, 3, 32, 40, generator=torch.Generator().manual_seed(1))
