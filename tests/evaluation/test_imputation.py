"""Imputation against the authors' code in pytorch-grad-cam, a dense system, and images whose filling is known."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer

from vbp.evaluation.imputation import impute

SEED = 22


@pytest.fixture
def pixels():
    return np.random.default_rng(SEED).standard_normal((3, 11, 14)).astype(np.float32)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # their code gives tensors to NumPy's functions
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_the_authors_code_fills_in_the_same(pixels, share):
    removed = np.random.default_rng(SEED).random((11, 14)) < share
    theirs = NoisyLinearImputer(noise=0)(torch.from_numpy(pixels), torch.from_numpy((~removed).astype(np.float32)))
    np.testing.assert_allclose(impute(pixels, removed), theirs.numpy(), atol=1e-5)


def test_each_removed_pixel_is_the_weighted_mean_of_its_neighbours(pixels):
    removed = np.zeros((11, 14), bool)
    removed[:6, :9] = True  # touches two borders and a corner
    filled = impute(pixels, removed)
    np.testing.assert_array_equal(filled[:, ~removed], pixels[:, ~removed])
    for row, column in zip(*np.nonzero(removed), strict=True):
        total, weights = np.zeros(3), 0.0
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                y, x = row + down, column + right
                if (down, right) != (0, 0) and 0 <= y < 11 and 0 <= x < 14:
                    weight = 2 if 0 in (down, right) else 1
                    total, weights = total + weight * filled[:, y, x], weights + weight
        np.testing.assert_allclose(filled[:, row, column], total / weights, atol=1e-5)


def test_a_plain_image_stays_plain():
    removed = np.ones((6, 5), bool)
    removed[3, 2] = False
    np.testing.assert_allclose(impute(np.full((2, 6, 5), 0.7, np.float32), removed), 0.7, atol=1e-6)


def test_nothing_removed_is_the_image_itself(pixels):
    np.testing.assert_array_equal(impute(pixels, np.zeros((11, 14), bool)), pixels)


def test_an_image_without_any_pixel_is_refused(pixels):
    with pytest.raises(ValueError, match="keeps no pixel"):
        impute(pixels, np.ones((11, 14), bool))
