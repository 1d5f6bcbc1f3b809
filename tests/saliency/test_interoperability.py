"""Networks in any state and context: hooks, modes, autocast, compiled, shared and in-place layers."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import reference
from vbp.saliency import VisualBackProp

from .conftest import randomise, small_vgg


def test_hooks_of_the_network_run_and_stay(vgg, images_BCHW):
    expected = VisualBackProp(vgg)(images_BCHW)
    calls = []
    nested = nn.Sequential(vgg[:10], vgg[10:])
    nested[0][3].register_forward_hook(lambda module, inputs, output: calls.append(tuple(output.shape)))
    nested[0][0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    nested[0].register_forward_hook(lambda module, inputs, output: None)
    vbp = VisualBackProp(nested)
    calls.clear()
    assert torch.equal(vbp(images_BCHW / 2), expected)
    assert calls == [(3, 6, 32, 40)]
    modules = [nested[0], nested[0][0], nested[0][3]]
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules] == [1, 1, 1]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_of_autograd_make_no_difference(vgg, images_BCHW, mode):
    vbp = VisualBackProp(vgg)
    expected = vbp(images_BCHW)
    with mode():
        result = vbp.explain(images_BCHW)
    assert torch.equal(result.mask, expected)
    assert not result.mask.requires_grad
    assert not result.output.requires_grad


def test_autocast_reaches_the_network_but_not_the_mask(vgg, images_BCHW):
    expected = VisualBackProp(vgg).explain(images_BCHW)
    with torch.autocast("cpu", torch.bfloat16):
        result = VisualBackProp(vgg).explain(images_BCHW, target=1)
        plain = VisualBackProp(vgg).explain(images_BCHW)
    assert plain.output.dtype is torch.bfloat16
    assert {tensor.dtype for tensor in (plain.mask, result.mask, *plain.maps, *plain.masks)} == {torch.float32}
    assert (plain.mask - expected.mask).abs().max() < 0.05
    exact = VisualBackProp(vgg)(images_BCHW, target=1)
    assert (result.mask - exact).abs().max() < 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("settings", [{}, {"pooling": "unpool", "multiply_input": True}])
def test_mask_is_float32_whatever_the_network_is(images_BCHW, dtype, tolerance, settings):
    expected = VisualBackProp(small_vgg(), **settings)(images_BCHW)
    result = VisualBackProp(small_vgg().to(dtype), **settings).explain(images_BCHW.to(dtype))
    assert {tensor.dtype for tensor in (result.mask, *result.maps, *result.masks)} == {torch.float32}
    assert (result.output.dtype, result.log10_max.dtype) == (dtype, torch.float64)
    # Where two channels are nearly equal, rounding may move a maximum.
    found, wanted = result.mask.flatten(1), expected.flatten(1)
    share_off = ((found - wanted).abs() > tolerance).float().mean()
    assert share_off <= (0.02 if settings else 0)


def test_compiled_network_is_explained_as_the_original(vgg, images_BCHW):
    vbp = VisualBackProp(torch.compile(vgg, backend="eager"))
    assert vbp.model is vgg
    assert torch.equal(vbp(images_BCHW), VisualBackProp(vgg)(images_BCHW))


@pytest.mark.long
def test_compiled_caller_gets_the_same_masks(vgg, images_BCHW):
    vbp = VisualBackProp(vgg)

    @torch.compile(backend="eager")
    def brightest(images):
        return vbp(images * 2).amax((2, 3))

    torch.testing.assert_close(brightest(images_BCHW), vbp(images_BCHW * 2).amax((2, 3)))


def test_shared_layers_are_explained_call_by_call(images_BCHW):
    stem, shared, relu = (randomise(nn.Conv2d(*shape, 3, padding=1)) for shape in ((3, 4), (4, 4))), None, nn.ReLU()
    first, shared = stem
    model = nn.Sequential(first, relu, shared, relu, nn.MaxPool2d(2), shared, relu)
    mask, _ = reference.paper_mask(reference.layers_of(model), images_BCHW[0].double().numpy())
    np.testing.assert_allclose(VisualBackProp(model)(images_BCHW)[0, 0], mask, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"pooling": "unpool"}, {"multiply_input": True}, {"smooth": 2}])
def test_in_place_layers_make_no_difference(images_BCHW, settings):
    """With the first layer in place, even the caller's images are overwritten by the network."""
    masks = []
    for in_place in (False, True):
        layers = [
            nn.ReLU(in_place), nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1, in_place), nn.MaxPool2d(2), nn.ReLU6(in_place),
            nn.Conv2d(4, 5, 3), nn.ReLU(in_place), nn.Hardtanh(0, 0.1, in_place), nn.Flatten(), nn.Linear(1105, 4),
        ]  # fmt: skip
        vbp = VisualBackProp(randomise(nn.Sequential(*layers)), **settings)
        masks.append([vbp(images_BCHW.clone()), vbp(images_BCHW.clone(), target=2)])
    assert all(torch.equal(one, other) for one, other in zip(*masks, strict=True))


def fifty_stages(image, largest):
    """Every activation's maximum is `largest`."""
    channels = [3, *[4] * 50]
    layers = []
    for inputs, outputs in zip(channels, channels[1:], strict=False):
        convolution = randomise(nn.Conv2d(inputs, outputs, 3, padding=1), seed=len(layers))
        convolution.bias.data.zero_()
        convolution.weight.data *= largest / convolution(image).max()
        layers += [convolution, nn.ReLU()]
        image = convolution(image).relu().detach()
    return nn.Sequential(*layers)


def test_activations_of_1e4_through_50_stages_do_not_overflow():
    """The raw product passes 1e200; the oracle computes it in float64, which ends at 1e308."""
    image = torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(3))
    model = fifty_stages(image, 1e4)
    mask, log10_max = reference.paper_mask(reference.layers_of(model), image[0].double().numpy())
    assert 200 < log10_max < 300
    result = VisualBackProp(model).explain(image)
    assert len(result.maps) == 50
    assert all(kept.max() > 1e3 for kept in result.maps)
    np.testing.assert_allclose(result.mask[0, 0], mask, atol=1e-5)
    assert result.log10_max.item() == pytest.approx(log10_max, abs=1e-4)


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("settings", [{}, {"multiply_input": True}, {"smooth": 2}, {"target": 1}])
def test_no_input_gives_nan(vgg, preset, settings):
    """Constant, zero, huge and infinite images: a mask in [0, 1] or zeros that say why."""
    images = torch.stack([torch.full((3, 32, 32), value) for value in (0, 1, -1, 1e30, torch.inf, torch.nan)])
    target = settings.get("target")
    vbp = VisualBackProp(vgg, preset, **{name: value for name, value in settings.items() if name != "target"})
    result = vbp.explain(images, target=target)
    assert result.mask.isfinite().all()
    assert result.mask.min() >= 0
    assert result.finite[:3].all()
    assert not result.finite[4:].any()
    for mask, flat, finite in zip(result.mask, result.flat, result.finite, strict=True):
        assert mask.max() == (1 if finite and not flat else 0)
