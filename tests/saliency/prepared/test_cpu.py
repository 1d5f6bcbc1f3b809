"""Packed convolutions: the same masks, the same nodes, and nothing packed that may not be."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from vbp.saliency import VisualBackProp
from vbp.saliency.forward import last_tap, positive_mean
from vbp.saliency.prepared.cpu import (
    PackedConvolution,
    can_pack,
    packed,
    positive_mean_of_activation,
)
from vbp.saliency.prepared.layouts import LAYOUTS

from ..conftest import randomise, small_vgg

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch lacks oneDNN's fused convolution")


def packed_copy(model, **settings):
    vbp = VisualBackProp(model, **settings)
    vbp.prepare(torch.device("cpu"), "float32")
    return vbp


def packed_layers(vbp):
    return [module for module in vbp._forward.model.modules() if isinstance(module, PackedConvolution)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_batch_norm_every_bit_stays(dtype):
    network = torchvision.models.vgg16(weights=None).features.to(dtype, memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    plain, fast = VisualBackProp(network), packed_copy(network)
    assert len(packed_layers(fast)) == (13 if can_pack(dtype) else 0)
    with torch.inference_mode():
        expected, found = plain.explain(images.clone()), fast.explain(images.clone())
    for name in ("mask", "log10_max", "output"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v2", "googlenet", "densenet121", "squeezenet1_1", "convnext_tiny", "vgg11_bn"]
    + ["mobilenet_v3_small", "efficientnet_b0"],
)
def test_masks_of_other_networks_are_the_same(name):
    settings = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    network = randomise(torchvision.models.get_model(name, weights=None, **settings))
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(4))
    plain, fast = VisualBackProp(network), packed_copy(network)
    with torch.inference_mode():
        expected, found = plain.explain(images.clone()), fast.explain(images.clone())
    assert packed_layers(fast)
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-4)
    np.testing.assert_allclose(found.log10_max, expected.log10_max, atol=1e-4)
    spread = expected.output.std().item()
    np.testing.assert_allclose(found.output, expected.output, atol=1e-4 * spread, rtol=1e-3)


class Activated(nn.Module):
    """A convolution, batch norm and an activation, as layers or as functions."""

    def __init__(self, activation):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.activation = activation

    def forward(self, images):
        x = self.activation(self.first(images))
        return self.activation(self.norm(self.second(x)))


ACTIVATIONS = {
    "swish": [nn.SiLU(), nn.SiLU(inplace=True), F.silu],
    "hardswish": [nn.Hardswish(), nn.Hardswish(inplace=True), F.hardswish],
    "relu": [nn.ReLU(), F.relu, torch.relu_],
    "none": [nn.ReLU6(), nn.GELU(), nn.LeakyReLU()],
}


@pytest.mark.parametrize(
    ("name", "activation"),
    [(name, each) for name, several in ACTIVATIONS.items() for each in several],
    ids=lambda value: getattr(value, "__name__", str(value)),  # without addresses, which differ between processes
)
def test_activations_are_computed_with_the_convolution(name, activation):
    network = randomise(Activated(activation))
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(9))
    plain, fast = VisualBackProp(network), packed_copy(network)
    kinds = [type(fast._forward.model.get_submodule(f"packed_{number}")) for number in (0, 1)]
    assert kinds == [PackedConvolution, PackedConvolution]
    assert fast._forward.model.packed_0._activation == name
    with torch.inference_mode():
        expected, found = plain.explain(images.clone()), fast.explain(images.clone())
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-5)
    np.testing.assert_allclose(found.output, expected.output, atol=1e-5)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.Hardswish()], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_noticed(activation, value):
    network = randomise(Activated(activation))
    images = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(9))
    images[0, 1, 5, 6] = value
    with torch.inference_mode():
        expected, found = VisualBackProp(network).explain(images.clone()), packed_copy(network).explain(images.clone())
    assert not expected.finite.item()
    assert not found.finite.item()


def test_the_mean_of_an_activation_has_the_same_bits():
    planar_NCHW = F.silu(torch.randn(2, 40, 9, 11, generator=torch.Generator().manual_seed(8)))
    for map_NCHW in (planar_NCHW, planar_NCHW.to(memory_format=torch.channels_last)):
        for dtype in (torch.float32, torch.bfloat16):
            assert torch.equal(positive_mean_of_activation(map_NCHW.to(dtype)), positive_mean(map_NCHW.to(dtype)))


def test_batch_norm_folded_loses_nothing_in_bfloat16():
    network = small_vgg(norm=True)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    exact = VisualBackProp(network)(images)
    rough = network.to(torch.bfloat16)
    for module in rough.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    with torch.inference_mode():
        unpacked = VisualBackProp(rough)(images.bfloat16())
        folded = packed_copy(rough)(images.bfloat16())
    assert (folded - exact).abs().mean() < 1.5 * (unpacked - exact).abs().mean()


class Odd(nn.Module):
    """Convolutions that others read, too, that pad by reflection, by name, or are of a class of the user's."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Conv2d(3, 8, 3, padding=1)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.named = nn.Conv2d(8, 8, 3, padding="same")
        self.own = type("Own", (nn.Conv2d,), {})(8, 8, 1)
        self.last = nn.Conv2d(8, 8, 3, bias=False)

    def forward(self, images):
        x = self.shared(images)
        x = F.relu(x) + x
        x = F.relu(self.mirrored(x))
        x = F.relu(self.named(x))
        x = F.relu(self.own(x))
        return torch.relu(self.last(x))


def test_what_cannot_be_packed_is_left_alone():
    network = randomise(Odd())
    images = torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(6))
    plain, fast = VisualBackProp(network), packed_copy(network)
    assert [layer._activation for layer in packed_layers(fast)] == ["none", "relu"]
    with torch.inference_mode():
        np.testing.assert_allclose(fast(images), plain(images), atol=1e-6)


class ChangedBetween(nn.Module):
    """A map is changed in place after a convolution has read it, and before the ReLU of that convolution."""

    def __init__(self, change):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.same = nn.Dropout()
        self.change = change

    def forward(self, images):
        below = F.relu(self.first(images))
        above = self.second(below)
        self.change(self, below)
        return F.relu(above) + below


CHANGES = {
    "itself": lambda self, x: x.sub_(0.5),
    "by a setting": lambda self, x: F.hardtanh(x, 0, 0.1, True),
    "as the output": lambda self, x: torch.mul(x, 0.5, out=x),
    "what layers return": lambda self, x: self.same(x).mul_(0.5),
    "a view": lambda self, x: x.transpose(2, 3).mul_(0.5),
    "a part": lambda self, x: x[:, 2:5].mul_(0.5),
    "a view by a method that tracing does not know": lambda self, x: x.narrow(1, 2, 3).mul_(0.5),
    "a change of a change": lambda self, x: self.same(x.mul_(0.5)).add_(0.5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_map_that_is_changed_in_place_is_read_before(change):
    network = randomise(ChangedBetween(change))
    images = torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        expected, found = network(images), packed_copy(network).explain(images).output
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_other_maps_may_be_changed_meanwhile():
    network = randomise(ChangedBetween(lambda self, x: self.first(torch.ones(1, 3, 9, 9)).mul_(2)))
    assert [layer._activation for layer in packed_layers(packed_copy(network))][:2] == ["relu", "relu"]


def test_the_network_is_not_changed_and_its_hooks_run():
    network = small_vgg(norm=True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    seen = []
    network[3].register_forward_hook(lambda *_: seen.append("convolution"))
    network[2].register_forward_hook(lambda *_: seen.append("relu"))
    fast = packed_copy(network)
    assert len(packed_layers(fast)) == 3
    with torch.inference_mode():
        fast(torch.ones(1, 3, 32, 32))
    assert seen == ["relu", "convolution"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(isinstance(module, PackedConvolution) for module in network.modules())


def test_gradients_flow_behind_the_last_stage():
    network = randomise(torchvision.models.squeezenet1_1(weights=None))
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(7))
    expected = VisualBackProp(network, stages="last")(images, target=3)
    found = packed_copy(network, stages="last")(images, target=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_layout_for_every_size_and_few_are_kept(monkeypatch):
    reorder, sizes = torch.ops.mkldnn._reorder_convolution_weight, []

    def watched(weight, *settings):
        sizes.append(settings[-1])
        return reorder(weight, *settings)

    network = small_vgg()
    fast = packed_copy(network)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", watched)
    with torch.inference_mode():
        for side in (32, 48, 32, 48, 64, 32):
            images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
            assert torch.equal(fast(images.clone()), packed_copy(network)(images))
    # each time once by the pass that keeps its layouts, and by the fresh one beside it
    first = [size[2] for size in sizes if size[1] == 3]
    assert first == [32, 32, 48, 48, 32, 48, 64, 64, 32, 32]
    assert all(len(layer._weight_for._made) <= LAYOUTS for layer in packed_layers(fast))


def test_nodes_that_are_read_stay():
    network = small_vgg(norm=True)
    forward = VisualBackProp(network)._forward
    found = packed(forward)
    assert last_tap(found.graph).name == last_tap(forward.graph).name
    # 4 convolutions and 4 batch norms went into 4 ReLUs
    assert len(found.graph.nodes) == len(forward.graph.nodes) - 8


@pytest.mark.parametrize("place", ["layer1.0.conv1.weight", "layer4.1.bn1.running_mean", "layer2.0.conv2.weight"])
def test_weights_that_are_not_finite_are_not_hidden(place):
    """Within a branch, where no map is averaged."""
    network = randomise(torchvision.models.resnet18(weights=None))
    network.state_dict()[place].fill_(torch.nan)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    assert not packed_copy(network).explain(images).finite.any()
