"""The average over channels, the evaluation mode, and the pass that averages."""

import weakref

import pytest
import torch
from torch import nn

from vbp.saliency.forward import ForwardPass, averaged, channel_mean, evaluating
from vbp.saliency.trace import trace

from .conftest import small_vgg


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3, 64, 192])
def test_channel_mean_is_a_float32_average(dtype, layout, channels):
    maps = torch.rand(2, channels, 9, 13, generator=torch.Generator().manual_seed(0)).to(dtype)
    maps = maps.contiguous(memory_format=layout)
    found = channel_mean(maps)
    assert found.dtype is torch.float32
    assert found.shape == (2, 1, 9, 13)
    torch.testing.assert_close(found.double(), maps.double().mean(1, keepdim=True), rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [7, 30, 64, 192])
@pytest.mark.parametrize("side", [9, 17, 27])
def test_place_in_the_batch_never_changes_a_bit(dtype, channels, side):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, channels, side, side, generator=generator)
    results = []
    for count, place in [(1, 0), (3, 1), (3, 2), (8, 0), (8, 7)]:
        batch = torch.rand(count, channels, side, side, generator=generator)
        batch[place] = image[0]
        results.append(channel_mean(batch.to(dtype).contiguous(memory_format=torch.channels_last))[place])
    assert all(torch.equal(result, results[0]) for result in results)


def test_infinity_stays_in_its_pixel():
    maps = torch.ones(2, 8, 3, 3, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    maps[0, 3, 1, 1] = torch.inf
    found = channel_mean(maps)
    assert not found[0, 0, 1, 1].isfinite()
    assert found.eq(1).sum() == 17


def test_evaluating_restores_every_module_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(3)), nn.ReLU())
    model[1].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [module.training for module in model.modules()] == before


def forward_pass(model):
    found = trace(model)
    signed_by_tap = {tap: stage.signed for tap, stage in zip(found.taps, found.stages, strict=True)}
    return ForwardPass(model, averaged(found.graph, signed_by_tap, {}))


def test_a_pass_gives_the_output_and_the_average_of_every_stage(vgg, images_BCHW):
    seen = []
    for layer in vgg:
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        found = forward_pass(vgg)(images_BCHW)
        assert torch.equal(found.output, vgg(images_BCHW))
    maps, again = seen[:4], seen[4:]
    assert all(torch.equal(one, other) for one, other in zip(maps, again, strict=True))
    assert all(torch.equal(mean, channel_mean(one)) for mean, one in zip(found.maps_N1HW, maps, strict=True))
    assert (found.switches, found.deepest_NCHW) == ({}, None)


@pytest.mark.parametrize("settings", [{"whole": True}, {"whole": False}, {"differentiable": True}], ids=str)
def test_a_map_is_dropped_as_soon_as_it_was_read(settings):
    model = small_vgg(norm=True)
    made, alive = [], []

    def watch(layer, inputs, output):
        alive.append(sum(map_() is not None for map_ in made))
        made.append(weakref.ref(output))

    for layer in model:
        layer.register_forward_hook(watch)
    with torch.no_grad():
        forward_pass(model)(torch.ones(1, 3, 32, 32), **settings)
    assert len(alive) == (18 if settings.get("whole", True) else 14)
    # the one that the layer reads; what is changed in place is one with it; behind the last tap that map is kept
    assert max(alive[:14]) <= 3


def test_layers_are_looked_up_in_every_pass(vgg, images_BCHW):
    forward = forward_pass(vgg)
    with torch.no_grad():
        before = forward(images_BCHW).output
        vgg[0] = nn.Conv2d(3, 6, 3, padding=1)
        after = forward(images_BCHW).output
        assert torch.equal(after, vgg(images_BCHW))
    assert not torch.equal(after, before)


def test_autograd_records_from_the_last_tap_on(vgg, images_BCHW):
    with torch.no_grad():
        found = forward_pass(vgg)(images_BCHW, differentiable=True)
    assert found.deepest_NCHW.is_leaf
    (gradient,) = torch.autograd.grad(found.output.sum(), found.deepest_NCHW)
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in vgg.parameters())
    assert not found.maps_N1HW[-1].requires_grad
