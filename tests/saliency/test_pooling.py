"""The ways through pooling: one kernel of ones, and unpooling by switches, against loops and against PyTorch's own."""

import os
import random

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from tests import reference
from vbp.errors import UsageError
from vbp.networks.models import load_model
from vbp.saliency import VisualBackProp
from vbp.saliency.geometry import Merged, Pooling, Unpooling, Window

from .conftest import randomise, small_vgg

SEED = int(os.environ.get("VBP_SEED", "500"))


def overlapping():
    """Pools that overlap, with padding and with windows that stick out."""
    return randomise(
        nn.Sequential(
            nn.Conv2d(3, 5, 5, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True),
            nn.Conv2d(6, 6, 1), nn.MaxPool2d(2, 1, dilation=2), nn.ReLU(inplace=True), nn.AvgPool2d(2),
            nn.Conv2d(6, 4, 2), nn.ReLU(),
        )
    )  # fmt: skip


def convolutions(model):
    return [module for module in model if not isinstance(module, nn.AdaptiveAvgPool2d | nn.Flatten | nn.Linear)]


def random_windows(draw):
    """Two or three layers, the size of their input, and the sizes behind each; drawn again where that is too small."""
    layers = [
        {
            "kernel": (draw.randint(1, 4), draw.randint(1, 4)),
            "stride": (draw.randint(1, 3), draw.randint(1, 3)),
            "padding": (draw.randint(0, 2), draw.randint(0, 2)),
            "dilation": (draw.randint(1, 2), draw.randint(1, 2)),
            "ceil_mode": False,
        }
        for _ in range(draw.randint(2, 3))
    ]
    sizes = [(draw.randint(6, 20), draw.randint(6, 20))]
    for layer in layers:
        sizes.append(reference.output_size(sizes[-1], layer))
    return (layers, sizes) if min(map(min, sizes)) > 0 else random_windows(draw)


@pytest.mark.parametrize("number", range(40))
def test_merged_kernel_holds_one_where_the_others_lead(number):
    case = f"VBP_SEED={SEED}, case {number}"
    draw = random.Random(case)
    layers, sizes = random_windows(draw)
    size = sizes[0]
    merged = Merged(tuple(Window(w["kernel"], w["stride"], w["padding"], w["padding"], w["dilation"]) for w in layers))
    assert merged.output_size(size) == sizes[-1]
    plane = np.random.default_rng(draw.randrange(10**9)).random(sizes[-1])
    expected = np.zeros(size)
    for y, x in np.ndindex(*sizes[-1]):
        reached = {(y, x)}  # each position once, in the padding of the layers between too
        for layer in reversed(layers):
            reached = {
                (
                    row * layer["stride"][0] - layer["padding"][0] + i * layer["dilation"][0],
                    column * layer["stride"][1] - layer["padding"][1] + j * layer["dilation"][1],
                )
                for row, column in reached
                for i, j in np.ndindex(*layer["kernel"])
            }
        for row, column in reached:
            if 0 <= row < size[0] and 0 <= column < size[1]:
                expected[row, column] += plane[y, x]
    found = merged.deconvolve(torch.from_numpy(plane)[None, None], size)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-9, err_msg=case)


def ones(mask, side, below, stride, padding):
    bare = [(length - 1) * stride - 2 * padding + side for length in mask.shape[2:]]
    fill = [length - reached for length, reached in zip(below, bare, strict=True)]
    return F.conv_transpose2d(mask, torch.ones(1, 1, side, side).double(), None, stride, padding, fill)


def stretched(mask):
    return (mask - mask.min()) / (mask.max() - mask.min())


def test_merged_pools_of_alexnet_are_its_written_out_chain():
    """Pool 3x3/2 below a convolution 5x5 with padding 2 is one kernel 11x11, stride 2, padding 4; below 3x3, 7x7."""
    features = randomise(torchvision.models.alexnet(weights=None).features)
    image = torch.randn(1, 3, 127, 95, generator=torch.Generator().manual_seed(5))
    maps, value = [], image
    for module in features:
        value = module(value)
        if isinstance(module, nn.ReLU):
            maps.append(value.detach().double().mean(1, keepdim=True))
    sizes = [kept.shape[2:] for kept in maps]
    mask = ones(maps[4], 3, sizes[3], 1, 1) * maps[3]
    mask = ones(mask, 3, sizes[2], 1, 1) * maps[2]
    mask = ones(mask, 7, sizes[1], 2, 2) * maps[1]
    mask = ones(mask, 11, sizes[0], 2, 4) * maps[0]
    mask = ones(mask, 11, (127, 95), 4, 2)
    found = VisualBackProp(features, pooling="merged")(image).double()
    torch.testing.assert_close(found, stretched(mask), atol=1e-5, rtol=0)
    assert (found - VisualBackProp(features)(image)).abs().max() > 1e-3


def test_merging_pools_that_do_not_overlap_changes_nothing(images_BCHW):
    exact, merged = (VisualBackProp(small_vgg(), pooling=pooling) for pooling in ("exact", "merged"))
    torch.testing.assert_close(merged(images_BCHW), exact(images_BCHW), atol=1e-6, rtol=0)
    assert [type(step) for stage in merged.stages for step in stage.steps] == [Window, Window, Merged, Merged]


def unpooled_by_loops(mask, layer, image):
    """Every value goes back to the maximum of its window in each channel; the average over the channels."""
    result = np.zeros(image.shape[1:])
    for y, x in np.ndindex(*mask.shape):
        for channel in image:
            best, place = -np.inf, None
            for i, j in np.ndindex(*layer["kernel"]):
                row = y * layer["stride"][0] - layer["padding"][0] + i * layer["dilation"][0]
                column = x * layer["stride"][1] - layer["padding"][1] + j * layer["dilation"][1]
                inside = 0 <= row < channel.shape[0] and 0 <= column < channel.shape[1]
                if inside and channel[row, column] > best:
                    best, place = channel[row, column], (row, column)
            result[place] += mask[y, x] / len(image)
    return result


def mask_by_loops(model, image):
    """The paper's mask with unpooling, layer by layer; `reference` does the forward pass and the convolutions."""
    maps, ways, way, value = [], [], [], image[None]
    for module in convolutions(model):
        below, value = value, module(value)
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            (layer,) = reference.layers_of([module])
            way.append((layer, below[0].double().detach().numpy()))
        convolved = any(layer["kind"] == "conv" for layer, _ in way)
        if isinstance(module, nn.ReLU) and convolved:
            maps.append(value[0].double().detach().numpy().mean(0))
            ways.append(way)
            way = []
    mask = maps[-1]
    for depth in range(len(maps) - 1, -1, -1):
        for layer, below in reversed(ways[depth]):
            if layer["kind"] == "max":
                mask = unpooled_by_loops(mask, layer, below)
            else:
                mask = reference.spread(mask, layer, below.shape[1:])
        mask = mask * maps[depth - 1] if depth else mask
    return reference.stretch(mask)


@pytest.mark.parametrize("make", [small_vgg, overlapping])
def test_unpooled_masks_equal_loops(make):
    model = make()
    images = torch.randn(2, 3, 59, 50, generator=torch.Generator().manual_seed(6))
    found = VisualBackProp(model, pooling="unpool")(images)
    for image, mask in zip(images, found, strict=True):
        np.testing.assert_allclose(mask[0], mask_by_loops(model, image.clone()), atol=1e-5)
    assert (found - VisualBackProp(model)(images)).abs().max() > 0.01


def test_unpooling_is_pytorchs_where_windows_do_not_overlap():
    pooling = Pooling((2, 3), (2, 3), maximum=True)
    map_NCHW = torch.randn(2, 5, 8, 9, generator=torch.Generator().manual_seed(7))
    mask = torch.rand(2, 1, 4, 3, generator=torch.Generator().manual_seed(8))
    _, index = F.max_pool2d(map_NCHW, (2, 3), return_indices=True)
    expected = F.max_unpool2d(mask.expand(-1, 5, -1, -1), index, (2, 3)).mean(1, keepdim=True)
    switches = pooling.switches(map_NCHW)
    assert torch.equal(switches.sum(1), torch.ones(2, 4, 3))
    torch.testing.assert_close(Unpooling(pooling, switches).deconvolve(mask, (8, 9)), expected)


class Inception(nn.Module):
    """A pool between two convolutions, and one in a branch."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.point = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x).relu(), 3, 2)
        return torch.cat([self.wide(x).relu(), self.point(F.max_pool2d(x, 3, 1, 1)).relu()], 1)


def test_pools_in_branches_are_undone_too():
    model = randomise(Inception())
    image = torch.randn(1, 3, 19, 16, generator=torch.Generator().manual_seed(9))
    stem = model.stem(image).relu().detach()
    pooled = F.max_pool2d(stem, 3, 2)
    top = model(image).detach().double().numpy()[0].mean(0)
    pools = [
        {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)},
        {"kernel": (3, 3), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)},
    ]
    wide = reference.spread(top, pools[0], top.shape)
    branch = unpooled_by_loops(top, pools[0], pooled[0].double().numpy())
    mask = unpooled_by_loops((wide + branch) / 2, pools[1], stem[0].double().numpy())
    mask = mask * stem[0].double().numpy().mean(0)
    mask = reference.spread(mask, pools[0] | {"padding": (0, 0)}, (19, 16))
    found = VisualBackProp(model, pooling="unpool")(image)
    np.testing.assert_allclose(found[0, 0], reference.stretch(mask), atol=1e-5)


@pytest.mark.parametrize("stages", ["all", ["4", "11"]])
@pytest.mark.parametrize("pooling", ["merged", "unpool"])
def test_every_way_leaves_neighbours_alone(pooling, stages):
    vbp = VisualBackProp(overlapping(), pooling=pooling, stages=stages)
    images = torch.randn(4, 3, 60, 53, generator=torch.Generator().manual_seed(10))
    expected = vbp(images)
    torch.testing.assert_close(torch.cat([vbp(image[None]) for image in images]), expected, atol=1e-6, rtol=0)
    images[0], images[1], images[3] = torch.nan, 0, 1e30
    assert torch.equal(vbp(images)[2], expected[2])


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "squeezenet1_1", "densenet121"])
def test_families_with_pools_are_explained_every_way(name):
    """Their pools lie before a split or a 1x1 convolution, so there is nothing to merge, but much to undo."""
    network = load_model(name, "random").network
    image = torch.randn(1, 3, 64, 81, generator=torch.Generator().manual_seed(0))
    exact, merged, unpooled = (VisualBackProp(network, pooling=way)(image) for way in ("exact", "merged", "unpool"))
    assert torch.equal(exact, merged)
    assert (unpooled.min(), unpooled.max(), unpooled.shape) == (0, 1, (1, 1, 64, 81))
    assert (unpooled - exact).abs().max() > 1e-3


def test_pooling_is_checked(vgg):
    with pytest.raises(UsageError, match="'unpooled' is none of exact, merged, unpool"):
        VisualBackProp(vgg, pooling="unpooled")
    with pytest.raises(UsageError, match=r"kernel of its own, so pooling \(=merged\) has no effect"):
        VisualBackProp(vgg, "reference", pooling="merged")
