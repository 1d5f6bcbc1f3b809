"""What an image loses, and what it gets instead."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from vbp.evaluation.removal import Losses, ranks

SEED = 4


@pytest.fixture
def image():
    return np.random.default_rng(SEED).standard_normal((3, 28, 36)).astype(np.float32)


@pytest.fixture
def losses(image):
    return Losses(image, seed=7)


def test_ranks_by_hand():
    saliency = np.array([[0.2, 0.8], [0.2, 0.1]])
    pixels = np.arange(4).reshape(2, 2)
    np.testing.assert_array_equal(ranks(saliency, pixels, np.array([[0, 0], [1, 0]])), [[2, 0], [1, 3]])
    np.testing.assert_array_equal(ranks(saliency, pixels, np.array([[1, 0], [0, 0]])), [[1, 0], [2, 3]])


def test_a_unit_is_as_bright_as_the_mean_of_its_pixels():
    saliency = np.array([[0.9, 0.0, 0.0, 0.4]])
    np.testing.assert_array_equal(ranks(saliency, np.array([[0, 0, 0, 1]]), np.zeros((1, 4))), [[1, 1, 1, 0]])


@pytest.mark.parametrize("removal", ["zeroed", "blurred", "coloured", "averaged", "imputed"])
def test_only_what_is_removed_changes(losses, image, removal):
    gone = np.random.default_rng(SEED).random((2, 28, 36)) < 0.4
    found = losses.without(gone, removal)
    assert found.shape == (2, 3, 28, 36)
    assert found.dtype == np.float32
    for altered, each in zip(found, gone, strict=True):
        np.testing.assert_array_equal(altered[:, ~each], image[:, ~each])
        assert (altered[:, each] != image[:, each]).mean() > 0.99


def test_what_takes_the_place(losses, image):
    assert not losses.emptied("zeroed").any()
    np.testing.assert_allclose(losses.emptied("averaged")[:, 3, 4], image.mean((1, 2)), atol=1e-6)
    colours = losses.emptied("coloured")
    for channel in range(3):
        lowest, highest = image[channel].min(), image[channel].max()
        assert lowest <= colours[channel].min() < lowest + 0.1
        assert highest - 0.1 < colours[channel].max() <= highest


def test_the_blur_is_rises_at_224_pixels():
    """A Gaussian of 5 pixels in a kernel of 11 by 11; here by torchvision, whose border differs."""
    image = np.random.default_rng(SEED).standard_normal((3, 224, 224)).astype(np.float32)
    blurred = gaussian_blur(torch.from_numpy(image), [11, 11], [5.0, 5.0]).numpy()
    inner = (slice(None), slice(6, -6), slice(6, -6))
    np.testing.assert_allclose(Losses(image, 0).emptied("blurred")[inner], blurred[inner], atol=1e-5)


def test_imputed_pixels_have_a_little_noise():
    plain = np.full((3, 28, 28), 0.5, np.float32)
    gone = np.ones((1, 28, 28), bool)
    gone[0, 0] = False
    (found,) = Losses(plain, 1).without(gone, "imputed")
    assert np.std(found[:, 1:] - 0.5) == pytest.approx(0.01, rel=0.1)


def test_units(losses):
    assert losses.units("zeroed").max() + 1 == losses.units("imputed").max() + 1 == 28 * 36
    assert losses.units("coloured").max() + 1 == 25 * 32  # of 9/227 of 28 pixels
    assert 100 < losses.units("averaged").max() + 1 <= 240


def test_chance_is_smooth_and_differs_between_images_and_seeds(losses, image):
    np.testing.assert_array_equal(losses.noise_HW, Losses(image.copy(), 7).noise_HW)
    fields = [losses.noise_HW, Losses(image + 1, 7).noise_HW, Losses(image, 8).noise_HW]
    correlations = np.corrcoef([field.ravel() for field in fields])
    assert np.abs(correlations - np.eye(3)).max() < 0.6
    step = np.diff(losses.noise_HW, axis=0).std() / losses.noise_HW.std()
    assert 0.2 < step < 0.6  # 1.4 for noise that is not smoothed
