"""Smoothing over noise: the right average, which depends on neither an image's batch nor its place in it."""

import pytest
import torch

from vbp.errors import UsageError
from vbp.saliency import VisualBackProp, smoothing
from vbp.saliency.smoothing import noisy_copies

from .conftest import small_vgg


def test_noise_has_the_deviation_that_was_asked_for():
    images = torch.rand(2, 3, 200, 200, generator=torch.Generator().manual_seed(0)) * torch.tensor([[[[1.0]]], [[[8]]]])
    first, second = (copies - images for copies in noisy_copies(images, 2, 0.1, seed=3))
    for number, image in enumerate(images):
        wanted = 0.1 * (image.max() - image.min())
        assert abs(first[number].std() / wanted - 1) < 0.01
        assert abs(first[number].mean() / wanted) < 0.01
    assert abs(torch.corrcoef(torch.stack([first[0].flatten(), second[0].flatten()]))[0, 1]) < 0.02


def test_noise_depends_on_the_seed_alone():
    one, two = torch.rand(1, 3, 9, 9), torch.rand(4, 3, 9, 9)
    two[2] = one[0]
    for alone, together in zip(noisy_copies(one, 3, 0.2, seed=1), noisy_copies(two, 3, 0.2, seed=1), strict=True):
        assert torch.equal(alone[0], together[2])
    other = next(noisy_copies(one, 1, 0.2, seed=2))
    assert not torch.equal(next(noisy_copies(one, 1, 0.2, seed=1)), other)


def test_noise_is_drawn_once_for_batches_of_a_size(monkeypatch):
    drawn, draw = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda shape, **settings: drawn.append(shape) or draw(shape, **settings))
    images = torch.rand(2, 3, 11, 13, generator=torch.Generator().manual_seed(0))
    first, again = (list(noisy_copies(images, 3, 0.2, seed=77)) for _ in range(2))
    assert len(drawn) == 3
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    monkeypatch.setattr(smoothing, "KEPT_BYTES", 100)
    anew = list(noisy_copies(images, 3, 0.2, seed=77))
    assert len(drawn) == 6
    assert all(torch.equal(one, other) for one, other in zip(first, anew, strict=True))


@pytest.mark.parametrize("target", [None, 2])
def test_mask_is_the_stretched_average(vgg, images_BCHW, target):
    plain = VisualBackProp(vgg)
    total = sum(plain(copies, target=target) for copies in noisy_copies(images_BCHW, 5, 0.3, seed=11))
    least, largest = total.amin((1, 2, 3), True), total.amax((1, 2, 3), True)
    result = VisualBackProp(vgg, smooth=5, noise=0.3, seed=11).explain(images_BCHW, target=target)
    torch.testing.assert_close(result.mask, (total - least) / (largest - least), atol=1e-6, rtol=0)
    exact = plain.explain(images_BCHW, target=target)
    assert torch.equal(result.output, exact.output)
    assert torch.equal(result.log10_max, exact.log10_max)
    assert all(torch.equal(one, other) for one, other in zip(result.maps, exact.maps, strict=True))
    assert (result.mask - exact.mask).abs().max() > 0.01


def test_predicted_class_is_that_of_the_image_itself(vgg, images_BCHW):
    vbp = VisualBackProp(vgg, smooth=4, noise=2)
    predicted = vgg(images_BCHW).argmax(1)
    noisy = [vgg(copies).argmax(1).tolist() for copies in noisy_copies(images_BCHW, 4, 2, seed=500)]
    assert any(classes != predicted.tolist() for classes in noisy)
    expected = vbp(images_BCHW, target=predicted)
    assert torch.equal(vbp(images_BCHW, target="predicted"), expected)
    with torch.inference_mode():  # as every run does
        assert torch.equal(vbp(images_BCHW, target="predicted"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_place_and_neighbours_never_change_a_bit(images_BCHW, dtype):
    vbp = VisualBackProp(small_vgg().to(dtype), smooth=3)
    images = torch.cat([images_BCHW, images_BCHW[:1]]).to(dtype)
    expected = vbp(images)
    assert torch.equal(expected[0], expected[3])
    images[0], images[1] = torch.nan, 1e30
    result = vbp.explain(images)
    assert torch.equal(result.mask[2:], expected[2:])
    assert result.finite.tolist() == [False, result.finite[1].item(), True, True]
    assert result.mask[0].eq(0).all()


def test_an_even_image_has_no_noise(vgg):
    image = torch.full((1, 3, 32, 32), 0.3)
    smoothed, plain = (VisualBackProp(vgg, smooth=count)(image) for count in (3, 0))
    torch.testing.assert_close(smoothed, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", [{"smooth": -1}, {"smooth": 2, "noise": 0}])
def test_bad_settings_are_named(vgg, settings):
    with pytest.raises(UsageError, match=r"smooth \(=.*\) must be at least 0, and noise \(=.*\) more than 0"):
        VisualBackProp(vgg, **settings)
