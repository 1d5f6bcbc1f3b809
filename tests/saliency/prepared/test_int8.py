"""Whole networks in integers against float32."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vbp.errors import ModelError, UsageError
from vbp.explainer import Explainer
from vbp.networks.models import load_model
from vbp.saliency import VisualBackProp
from vbp.saliency.prepared import calibration, int8
from vbp.saliency.prepared.int8 import Scales, quantised

from ..conftest import randomise, small_vgg


def test_scales_are_plain_data():
    scales = Scales({"x": (-1.5, 2.25), "relu": (0.0, 3.0)}, ("conv",), ("add",))
    again = Scales.from_json(json.loads(json.dumps(scales.as_json())))
    assert again == scales
    older = {"ranges": {"x": [-1.5, 2.25]}, "floats": ["conv"]}
    assert Scales.from_json(older) == Scales({"x": (-1.5, 2.25)}, ("conv",), ())


def drawn_pixels(count, seed=0):
    """Smooth patches, for a network of random weights sees nothing in noise."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, 3, 6, 6))
    fine = nn.functional.interpolate(torch.from_numpy(coarse), (48, 48), mode="bilinear")
    return fine.permute(0, 2, 3, 1).numpy().astype(np.uint8)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_masks_are_nearly_those_of_float32_whatever_comes_with_an_image(name, monkeypatch):
    monkeypatch.setattr(calibration, "LEAST_CORRELATION", 0.99)  # of random weights
    model = load_model(name, "random")
    pixels = drawn_pixels(3, seed=1)
    exact = Explainer(model, device="cpu", precision="float32")(pixels)
    explainer = Explainer(model, device="cpu", precision="int8", calibration=drawn_pixels(8))
    found = explainer(pixels)
    for mask_HW, expected_HW in zip(found.mask_BHW, exact.mask_BHW, strict=True):
        assert np.corrcoef(mask_HW.ravel(), expected_HW.ravel())[0, 1] > 0.98
    alone = np.concatenate([explainer(pixels[i : i + 1]).mask_BHW for i in range(3)])
    np.testing.assert_array_equal(alone, found.mask_BHW)
    again = Explainer(model, device="cpu", precision="int8", calibration=explainer.scales)(pixels)
    np.testing.assert_array_equal(again.mask_BHW, found.mask_BHW)


def small_pass(network=None):
    return VisualBackProp(network or small_vgg(norm=True))


def small_images(count):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(1, 3, 32, 32, generator=generator).clone for _ in range(count)]


def test_what_can_be_in_integers_is():
    vbp = small_pass()
    forward = vbp._forward
    names = {node.name: (-4.0, 4.0) if node.op == "placeholder" else (0.0, 4.0) for node in forward.graph.nodes}
    kinds = [type(module).__name__ for module in quantised(forward, Scales(names)).model.children()]
    assert kinds.count("QuantisedConvolution") == 4
    assert kinds.count("ToBytes") == 1
    assert kinds.count("BytePooling") == 2
    assert kinds.count("ByteMean") == 3  # of the deepest map, which the classifier reads too, in float32
    convolution = next(node.name for node in forward.graph.nodes if node.target == "3")
    left = quantised(forward, Scales(names, (convolution,)))
    assert [type(module).__name__ for module in left.model.children()].count("QuantisedConvolution") == 3


class Residual(nn.Module):
    """Two blocks, the first with a convolution on its other way; then two that read a map again, or none."""

    def __init__(self, again=False):
        super().__init__()
        self.again = again
        self.first, self.shortcut = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.a, self.b, self.c, self.d, self.e, self.f, self.last = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(7))
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.first(x))
        y = self.norm(self.b(self.relu(self.a(x))))
        y += self.shortcut(x)
        y = self.relu(y)
        z = self.relu(self.d(self.relu(self.c(y))) + y)
        if self.again:
            z = self.relu(self.e(z) + y)
            z = self.relu(self.f(z) + z)
        return self.relu(self.last(z))


class ChangedMeanwhile(nn.Module):
    """A convolution reads a map, whose view is then changed; another convolution and pooling read the changed map."""

    def __init__(self):
        super().__init__()
        self.first, self.side, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.pool, self.last, self.relu = nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()

    def forward(self, x):
        x = self.relu(self.first(x))
        y = self.relu(self.side(x))
        x.transpose(2, 3).mul_(0.05)
        y = self.pool(y + self.relu(self.other(x))) + self.pool(x)
        return self.relu(self.last(y))


def test_bytes_of_a_map_are_not_read_after_a_change_of_the_map():
    vbp = small_pass(randomise(ChangedMeanwhile()))
    scales = vbp.calibrate(small_images(10), least=-1)
    integers = quantised(vbp._forward, scales)
    kinds = [type(module).__name__ for module in integers.model.children()]
    assert kinds.count("QuantisedConvolution") == 3
    assert "BytePooling" not in kinds
    image = small_images(1)[0]()
    with torch.inference_mode():
        exact, found = vbp._forward(image).maps_N1HW[-1], integers(image).maps_N1HW[-1]
    np.testing.assert_allclose(found, exact, atol=0.05 * float(exact.max()))


def additions_of(vbp, scales):
    layers = quantised(vbp._forward, scales).model.children()
    return [layer for layer in layers if type(layer).__name__ == "QuantisedAddition"]


@pytest.mark.parametrize("again", [False, True])
def test_residual_additions_are_in_integers(again):
    vbp = small_pass(randomise(Residual(again)))
    scales = vbp.calibrate(small_images(10), least=-1)
    overwrites = [layer.overwrites for layer in additions_of(vbp, scales)]
    assert overwrites == ([True, False, True, False] if again else [True, True])
    image = small_images(1)[0]()
    exact, found = vbp._forward(image), quantised(vbp._forward, scales)(image)
    older = quantised(vbp._forward, replace(scales, additions=()))(image)
    for one, other, before in zip(exact.maps_N1HW, found.maps_N1HW, older.maps_N1HW, strict=True):
        assert (one - other).norm() < 0.03 * one.norm()
        assert (other - before).norm() < 0.02 * one.norm()
    assert not additions_of(vbp, replace(scales, additions=()))


def test_what_is_read_later_is_not_overwritten():
    """The results of layers that keep everything."""
    vbp = small_pass(randomise(Residual(again=True)))
    scales = vbp.calibrate(small_images(10), least=-1)
    image = small_images(1)[0]()
    found, careful = quantised(vbp._forward, scales), quantised(vbp._forward, scales)
    for layer in careful.model.children():
        if type(layer).__name__ == "QuantisedAddition":
            layer.overwrites = False
    for one, other in zip(found(image).maps_N1HW, careful(image).maps_N1HW, strict=True):
        assert torch.equal(one, other)


def test_where_torch_cannot_add_integers_additions_stay_in_float32(monkeypatch):
    vbp = small_pass(randomise(Residual()))
    scales = vbp.calibrate(small_images(10), least=-1)
    for module in (calibration, int8):
        monkeypatch.setattr(module, "can_add", lambda: False)
    assert vbp.calibrate(small_images(10), least=-1) == replace(scales, additions=())
    with pytest.raises(UsageError, match="cannot add within a convolution of integers here"):
        quantised(vbp._forward, scales)


class Pooled(Residual):
    """A sum that only a pooling reads, and an addend that something else reads as well."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.relu(self.first(x))
        y = self.shortcut(x)
        x = self.relu(self.b(self.relu(self.a(x))) + y)
        x = self.relu(self.c(x) * y.sigmoid())
        x = self.pool(self.relu(self.d(x) + x))
        return self.relu(self.last(x))


def test_signed_bytes_go_into_an_addition_alone_and_a_sum_without_a_range_stays_in_float32():
    vbp = small_pass(randomise(Pooled()))
    scales = vbp.calibrate(small_images(10), least=-1)
    assert len(scales.additions) == 2
    assert not additions_of(vbp, scales)


def test_an_addition_whose_convolution_stays_in_float32_stays_too():
    vbp = small_pass(randomise(Residual()))
    scales = vbp.calibrate(small_images(10), least=-1)
    names = {str(node.target): node.name for node in vbp._forward.graph.nodes if node.op == "call_module"}
    assert len(additions_of(vbp, scales.leaving([names["b"]]))) == 1
    assert len(additions_of(vbp, scales.leaving([names["shortcut"], names["d"]]))) == 0
    image = small_images(1)[0]()
    assert torch.isfinite(quantised(vbp._forward, scales.leaving([names["shortcut"]]))(image).maps_N1HW[-1]).all()


def test_layers_go_back_to_float32_until_the_masks_are_right(monkeypatch):
    vbp = small_pass()
    monkeypatch.setattr(calibration, "LEAST_CORRELATION", 0.0)
    assert vbp.calibrate(small_images(10)).floats == ()
    found = iter([0.5] * 2 * 2 + [1.0] * 100)
    monkeypatch.setattr(calibration, "LEAST_CORRELATION", 0.999)
    monkeypatch.setattr(calibration, "_correlation", lambda *masks: next(found))
    assert len(vbp.calibrate(small_images(10)).floats) == 2


def test_additions_go_back_to_float32_if_no_number_of_layers_helps(monkeypatch):
    vbp, tried = small_pass(randomise(Residual())), []

    def watched(forward, scales):
        tried.append((len(scales.floats), len(scales.additions)))
        return quantised(forward, scales)

    monkeypatch.setattr(calibration, "quantised", watched)
    monkeypatch.setattr(calibration, "_correlation", lambda *masks: float(tried[-1] == (1, 0)))
    scales = vbp.calibrate(small_images(10))
    assert (len(scales.floats), scales.additions) == (1, ())
    assert tried == [(0, 2), (1, 2), (2, 2), (3, 2), (0, 0), (1, 0)]


def test_a_network_that_integers_do_not_suit_is_refused(monkeypatch):
    monkeypatch.setattr(calibration, "_correlation", lambda *masks: 0.5)
    with pytest.raises(
        ModelError, match=r"does not suit this network: with 2 of 4 convolutions in float32, .* 0\.5000"
    ):
        small_pass().calibrate(small_images(10))


def test_requests_that_cannot_be_met_are_refused():
    with pytest.raises(UsageError, match="precision 'int8' needs calibration: about 80 images"):
        Explainer("squeezenet1_1", "random", device="cpu", precision="int8")
    with pytest.raises(UsageError, match="4 images are too few; give at least 5"):
        Explainer("squeezenet1_1", "random", device="cpu", precision="int8", calibration=drawn_pixels(4))
    with pytest.raises(UsageError, match="has no scale; these scales are of another network"):
        Explainer("squeezenet1_1", "random", device="cpu", precision="int8", calibration=Scales({}))
    network = small_vgg()
    network[0].weight.data.fill_(torch.inf)
    with pytest.raises(ModelError, match="infinity or NaN"):
        VisualBackProp(network).calibrate(small_images(5))
