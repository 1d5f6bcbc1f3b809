"""Integers instead of floats: the arithmetic against NumPy's, whole networks against float32."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from vbp.errors import ModelError, UsageError
from vbp.explainer import Explainer
from vbp.networks.models import load_model
from vbp.saliency import VisualBackProp
from vbp.saliency.prepared import calibration
from vbp.saliency.prepared.int8 import (
    ByteMean,
    BytePooling,
    QuantisedConvolution,
    Scales,
    Step,
    ToBytes,
    quantised,
    quantised_weight,
)

from ..conftest import randomise, small_vgg

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def drawn_bytes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )


def convolved(bytes_NCHW, weight, padding, zero):
    """The sums of products as whole numbers, in NumPy."""
    steps = np.pad(bytes_NCHW.astype(np.int64) - zero, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(steps, weight.shape[2:], (2, 3))
    return np.einsum("nchwij,kcij->nkhw", windows, weight.astype(np.int64))


@pytest.mark.parametrize("source", [Step(0.02, 0), Step(0.03, 128)])
@pytest.mark.parametrize("norm", [False, True])
def test_a_layer_computes_whole_numbers(source, norm):
    layers = randomise(nn.Sequential(nn.Conv2d(24, 16, 3, padding=1), nn.BatchNorm2d(16)))
    layer = QuantisedConvolution(layers[0], layers[1] if norm else None, "relu", source, None)
    map_NCHW = drawn_bytes(2, 24, 9, 7)
    weight, bias = layers[0].weight.detach(), layers[0].bias.detach()
    if norm:
        factor = layers[1].weight / (layers[1].running_var + layers[1].eps).sqrt()
        weight = (weight * factor.view(-1, 1, 1, 1)).detach()
        bias = ((bias - layers[1].running_mean) * factor + layers[1].bias).detach()
    steps, scales = quantised_weight(weight)
    assert steps.abs().max() == 63
    sums = convolved(map_NCHW.numpy(), steps.numpy(), 1, source.zero)
    expected = sums * (scales.double().numpy() * source.scale).reshape(1, -1, 1, 1)
    expected = np.maximum(expected + bias.double().numpy().reshape(1, -1, 1, 1), 0)
    np.testing.assert_allclose(layer(map_NCHW).numpy(), expected, rtol=1e-6, atol=1e-5)
    step = Step(float(expected.max()) / 200, 0)
    in_bytes = QuantisedConvolution(layers[0], layers[1] if norm else None, "relu", source, step)(map_NCHW)
    assert in_bytes.dtype is torch.uint8
    assert np.abs(in_bytes.numpy() - expected / step.scale).max() <= 0.5001


def test_bytes_that_would_overflow_16_bits_do_not():
    layer = nn.Conv2d(64, 1, 1, bias=False)
    nn.init.constant_(layer.weight, 63.0)
    map_NCHW = torch.full((1, 64, 4, 4), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    found = QuantisedConvolution(layer, None, "none", Step(1.0, 0), None)(map_NCHW)
    assert (found == 255 * 63 * 64).all()


def test_weights_are_laid_out_once_for_each_size(monkeypatch):
    """Told no size, oneDNN would take another order and lay them out again in every call."""
    prepack, sizes = torch.ops.onednn.qconv_prepack, []

    def watched(*settings):
        sizes.append(settings[-1])
        return prepack(*settings)

    monkeypatch.setattr(torch.ops.onednn, "qconv_prepack", watched)
    layer, mean = QuantisedConvolution(nn.Conv2d(8, 8, 3), None, "relu", Step(1.0, 0), Step(1.0, 0)), ByteMean(8, 1.0)
    for side in (9, 12, 9, 12):
        mean(layer(drawn_bytes(2, 8, side, side)))
    assert sizes == [[2, 8, side, side] for side in (9, 7, 12, 10)]


def test_the_average_is_that_of_the_whole_numbers():
    map_NCHW = drawn_bytes(3, 37, 5, 6)
    expected = map_NCHW.numpy().astype(np.int64).sum(1, keepdims=True) * (0.25 / 37)
    np.testing.assert_allclose(ByteMean(37, 0.25)(map_NCHW).numpy(), expected, rtol=2e-7)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 1, 1)])
def test_pooling_of_bytes_is_pooling(kernel, stride, padding):
    map_NCHW = drawn_bytes(2, 5, 23, 18)
    expected = nn.functional.max_pool2d(map_NCHW.float(), kernel, stride, padding)
    found = BytePooling((kernel, kernel), (stride, stride), (padding, padding))(map_NCHW)
    assert torch.equal(found.float(), expected)


def test_bytes_reach_from_the_least_to_the_largest_value():
    assert Step.over(0.0, 51.0) == (pytest.approx(0.2), 0)
    assert Step.over(-12.7, 3.0) == (pytest.approx(0.1), 128)
    values = torch.tensor([-20.0, -12.7, 0.0, 0.04, 0.06, 12.7, 20.0]).view(1, 1, 1, -1)
    assert ToBytes(Step.over(-12.7, 3.0))(values).flatten().tolist() == [0, 1, 128, 128, 129, 255, 255]


def test_scales_are_plain_data():
    scales = Scales({"x": (-1.5, 2.25), "relu": (0.0, 3.0)}, ("conv",))
    again = Scales.from_json(json.loads(json.dumps(scales.as_json())))
    assert again == scales


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


def test_layers_go_back_to_float32_until_the_masks_are_right(monkeypatch):
    vbp = small_pass()
    monkeypatch.setattr(calibration, "LEAST_CORRELATION", 0.0)
    assert vbp.calibrate(small_images(10)).floats == ()
    found = iter([0.5] * 2 * 2 + [1.0] * 100)
    monkeypatch.setattr(calibration, "LEAST_CORRELATION", 0.999)
    monkeypatch.setattr(calibration, "_correlation", lambda *masks: next(found))
    assert len(vbp.calibrate(small_images(10)).floats) == 2


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


@pytest.mark.long
def test_a_processor_without_vnni_computes_the_same():
    """Two processes, one of which acts as an older processor; the average of every map must agree to the bit."""
    code = """
import sys, numpy as np, torch
sys.path.insert(0, "tests")
from saliency.prepared.test_int8 import drawn_bytes
from vbp.saliency.prepared.int8 import ByteMean, QuantisedConvolution, Step
torch.manual_seed(3)
layer = torch.nn.Conv2d(32, 16, 3, padding=1)
layer.weight.data.copy_(torch.randint(-63, 64, layer.weight.shape))
layer.bias.data.zero_()
found = QuantisedConvolution(layer, None, "relu", Step(1.0, 0), None)(drawn_bytes(2, 32, 12, 12))
means = ByteMean(32, 1.0)(drawn_bytes(2, 32, 12, 12))
print(found.double().sum().item(), found.double().square().sum().item(), means.double().sum().item())
"""
    told = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **settings}, check=True, capture_output=True, text=True
        ).stdout
        for settings in ({}, AVX2)
    ]
    assert told[0] == told[1]
