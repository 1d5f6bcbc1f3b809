"""The paper's own statements: its theorem on a tiny network, its authors' driving network, and AlexNet's chain."""

import itertools

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from vbp.saliency import VisualBackProp

from .conftest import randomise


def test_mask_is_the_sum_over_all_paths():
    """Theorem 1 but for its factors c and gamma: the sum over all paths of the product of activations on the way.

    A path leads from a pixel to the last layer, through any channel of every layer, along the network's connections.
    """
    model = randomise(
        nn.Sequential(
            nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 3, (3, 2)), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.ReLU()
        ),
        seed=3,
    )  # fmt: skip
    image = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(2))
    activations, value = [], image
    for module in model:
        value = module(value)
        if isinstance(module, nn.ReLU):
            activations.append(value[0].detach().double().numpy())
    geometry = [((3, 3), 1), ((3, 2), 0), ((2, 2), 0)]  # kernel and padding

    def paths(layer, row, column):
        """The sum over all paths from one pixel of a layer upwards."""
        if layer == len(activations):
            return 1.0
        (rows, columns), padding = geometry[layer]
        channels, height, width = activations[layer].shape
        total = 0.0
        for channel, i, j in itertools.product(range(channels), range(rows), range(columns)):
            y, x = row + padding - i, column + padding - j
            if 0 <= y < height and 0 <= x < width:
                total += activations[layer][channel, y, x] * paths(layer + 1, y, x)
        return total

    sums = np.array([[paths(0, row, column) for column in range(6)] for row in range(5)])
    result = VisualBackProp(model).explain(image)
    np.testing.assert_allclose(result.mask[0, 0], (sums - sums.min()) / (sums.max() - sums.min()), atol=1e-5)
    # The averages leave out one factor a layer: its number of channels.
    assert abs(result.log10_max.item() - np.log10(sums.max() / (2 * 3 * 2))) < 1e-5
    whole = sums * image[0].mean(0).clamp(min=0).double().numpy()
    result = VisualBackProp(model, multiply_input=True).explain(image)
    np.testing.assert_allclose(result.mask[0, 0], whole / whole.max(), atol=1e-5)
    assert abs(result.log10_max.item() - np.log10(whole.max() / (2 * 3 * 2))) < 1e-5


WIDTHS = [1, 8, 8, 16, 16, 24, 24, 36, 36, 48, 48]


def driving_network():
    """BN-Conv-ReLU, ten times: 3x3 without padding, strides 1 and 2 in turn; then a last batch norm and a head."""
    modules = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
        modules += [nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride=1 + number % 2), nn.ReLU()]
    head = [nn.BatchNorm2d(48), nn.Flatten(), nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, 16), nn.Linear(16, 1)]
    return nn.Sequential(*modules, *head)


def authors_mask(maps, strides, size):
    """The authors' Lua code: sums over channels, `SpatialFullConvolution` of ones with an adjustment, one stretch."""
    mask = maps[-1].sum(0)
    for depth in range(len(maps) - 1, -1, -1):
        stride = strides[depth]
        target = maps[depth - 1].shape[1:] if depth else size
        adjust = [target[axis] - ((mask.shape[axis] - 1) * stride + 3) for axis in (0, 1)]
        assert min(adjust) >= 0
        wide = np.zeros(target)
        for i, j in itertools.product(range(3), range(3)):
            rows, columns = ((length - 1) * stride + 1 for length in mask.shape)
            wide[i : i + rows : stride, j : j + columns : stride] += mask
        mask = wide * maps[depth - 1].sum(0) if depth else wide
    return (mask - mask.min()) / (mask.max() - mask.min())


def test_driving_network_of_the_authors():
    model = driving_network()
    model(torch.zeros(2, 1, 125, 640))
    randomise(model)
    image = torch.rand(1, 1, 125, 640, generator=torch.Generator().manual_seed(4))
    vbp = VisualBackProp(model)
    result = vbp.explain(image)
    maps, value = [], image.double()
    for module in model.double()[:30]:
        value = module(value)
        if isinstance(module, nn.ReLU):
            maps.append(value[0].detach().numpy())
    assert len(vbp.stages) == len(maps) == 10
    assert maps[-1].shape == (48, 1, 17)
    expected = authors_mask(maps, [1, 2] * 5, (125, 640))
    np.testing.assert_allclose(result.mask[0, 0], expected, atol=1e-5)


def test_overlapping_pools_of_alexnet():
    """Pools of 3x3 with stride 2 are led through on their own, not merged with the convolution above."""
    features = randomise(torchvision.models.alexnet(weights=None).features)
    image = torch.randn(1, 3, 127, 95, generator=torch.Generator().manual_seed(5))
    maps, value = [], image
    for module in features:
        value = module(value)
        if isinstance(module, nn.ReLU):
            maps.append(value.detach().double().mean(1, keepdim=True))

    def ones(mask, side, below, stride=1, padding=0):
        bare = [(length - 1) * stride - 2 * padding + side for length in mask.shape[2:]]
        fill = [length - reached for length, reached in zip(below, bare, strict=True)]
        return F.conv_transpose2d(mask, torch.ones(1, 1, side, side).double(), None, stride, padding, fill)

    sizes = [kept.shape[2:] for kept in maps]
    assert [tuple(size) for size in sizes] == [(31, 23), (15, 11), (7, 5), (7, 5), (7, 5)]
    mask = ones(maps[4], 3, sizes[3], padding=1) * maps[3]
    mask = ones(mask, 3, sizes[2], padding=1) * maps[2]
    mask = ones(ones(mask, 3, (7, 5), padding=1), 3, sizes[1], stride=2) * maps[1]
    mask = ones(ones(mask, 5, (15, 11), padding=2), 3, sizes[0], stride=2) * maps[0]
    mask = ones(mask, 11, (127, 95), stride=4, padding=2)
    mask = (mask - mask.min()) / (mask.max() - mask.min())
    torch.testing.assert_close(VisualBackProp(features)(image).double(), mask, atol=1e-5, rtol=0)
