"""Arithmetic and traffic, counted by hand."""

import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from vbp.evidence.roofline import Work, forward_work, images_per_second, mean_work


def chain():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))


def test_each_layer_by_hand():
    convolution, relu, pool = forward_work(chain(), size=8, value_bytes=2, batch_size=4)
    # 8x8 pixels, 4 channels, each from 3x3x3 products; 3*64 values read, 4*64 written, 4*27 + 4 weights for 4 images
    assert convolution == Work("Conv2d 0", 2 * 64 * 4 * 27, 2 * (192 + 256 + 112 / 4))
    assert relu == Work("ReLU 1", 256, 2 * (256 + 256))
    assert pool == Work("MaxPool2d 2", 64 * 4, 2 * (256 + 64))


def test_means_by_hand():
    # each of the 4 x 64 values read once, 64 means of 4 bytes written
    assert mean_work(chain(), size=8, value_bytes=2) == [Work("mean 1", 256, 2 * 256 + 4 * 64)]


def test_a_layer_takes_the_longer_of_its_two_times():
    work = [Work("a", 100, 10), Work("b", 10, 100)]
    # 100/50 s of arithmetic for a, 100/20 s of memory for b
    assert images_per_second(work, flop_per_second=50, bytes_per_second=20) == pytest.approx(1 / (2 + 5))


def test_vgg16_is_what_everyone_says():
    with torch.device("meta"):
        features = vgg16(weights=None, init_weights=False).features
    flop = sum(layer.flop for layer in forward_work(features, 224, 4, 1))
    assert flop == pytest.approx(30.7e9, rel=0.01)  # 15.3 G multiplications with additions
