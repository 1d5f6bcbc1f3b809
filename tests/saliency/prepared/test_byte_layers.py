"""Layers on bytes: the arithmetic against NumPy's."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from vbp.saliency.prepared.byte_layers import (
    ByteMean,
    BytePooling,
    FromBytes,
    QuantisedAddition,
    QuantisedConvolution,
    Step,
    ToBytes,
    quantised_weight,
)

from ..conftest import randomise

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


@pytest.mark.parametrize("zero", [0, 128])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_an_addition_is_rounded_once(kernel, stride, zero):
    layers = randomise(nn.Sequential(nn.Conv2d(24, 16, kernel, stride, kernel // 2), nn.BatchNorm2d(16)))
    source, added = Step(0.02, 0), Step(0.05, zero)
    map_NCHW = drawn_bytes(2, 24, 9, 7)
    convolved_NCHW = QuantisedConvolution(layers[0], layers[1], "none", source, None)(map_NCHW)
    other_NCHW = drawn_bytes(*convolved_NCHW.shape, seed=1)
    expected = convolved_NCHW.double().numpy() + (other_NCHW.numpy().astype(float) - zero) * 0.05
    step = Step(float(expected.max()) / 200, 0)
    layer = QuantisedAddition(layers[0], layers[1], source, added, step)
    before = other_NCHW.clone()
    found = layer(map_NCHW, other_NCHW)
    assert torch.equal(other_NCHW, before)
    assert np.abs(found.numpy() - np.maximum(expected, 0) / step.scale).max() <= 0.5001
    layer.overwrites = True
    assert torch.equal(layer(map_NCHW, other_NCHW), found)


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
    in_bytes = ToBytes(Step.over(-12.7, 3.0))(values)
    assert in_bytes.flatten().tolist() == [0, 1, 128, 128, 129, 255, 255]
    again = FromBytes(Step.over(-12.7, 3.0))(in_bytes).flatten().tolist()
    assert again == pytest.approx([-12.8, -12.7, 0, 0, 0.1, 12.7, 12.7])


@pytest.mark.long
def test_a_processor_without_vnni_computes_the_same(tmp_path):
    """Two processes, one of which acts as an older processor: sums agree to the bit, what is rounded to a step."""
    code = """
import sys, torch
sys.path.insert(0, "tests")
from saliency.prepared.test_byte_layers import drawn_bytes
from vbp.saliency.prepared.byte_layers import ByteMean, QuantisedAddition, QuantisedConvolution, Step
torch.manual_seed(3)
layer, source = torch.nn.Conv2d(32, 16, 3, padding=1), drawn_bytes(2, 32, 12, 12)
sums = QuantisedConvolution(layer, None, "relu", Step(0.02, 0), Step(0.01, 0))(source)
sums = [sums, QuantisedAddition(layer, None, Step(0.02, 0), Step(0.013, 128), Step(0.017, 0))(source, sums)]
layer.weight.data.copy_(torch.randint(-63, 64, layer.weight.shape))
layer.bias.data.zero_()
exact = [QuantisedConvolution(layer, None, "relu", Step(1.0, 0), None)(source), ByteMean(32, 1.0)(source)]
torch.save((sums, exact), sys.argv[1])
"""
    for name, settings in {"here": {}, "older": AVX2}.items():
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], env={**os.environ, **settings}, check=True)
    here, older = (torch.load(tmp_path / name) for name in ("here", "older"))
    for one, other in zip(here[1], older[1], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(here[0], older[0], strict=True):
        assert one.unique().numel() > 100
        assert (one.int() - other.int()).abs().max() <= 1
