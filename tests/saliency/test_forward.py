"""The average over channels, and the evaluation mode."""

import pytest
import torch
from torch import nn

from vbp.saliency.forward import channel_mean, evaluating


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
