"""Change under noise: by hand, by captum, and for methods that are known to be stable or not."""

import numpy as np
import pytest
import torch
from captum.metrics import sensitivity_max

from vbp.evaluation.randomness import noisy
from vbp.evaluation.similarity import ssim, stretched, turned
from vbp.evaluation.stability import STABILITY, change, stability

SEED = 40


@pytest.fixture
def pixels():
    return np.random.default_rng(SEED).integers(0, 256, (2, 16, 15, 3), dtype=np.uint8)


def brightness(pixels):
    return pixels.astype(float).mean(3)


def centre(pixels):
    return np.broadcast_to(np.eye(16, 15), (len(pixels), 16, 15))


def by_metric(scores):
    return {score.metric: score for score in scores}


def test_change_by_hand():
    before, after = np.array([[0.0, 4, 2]]), np.array([[10.0, 10, 20]])  # stretched: 0 1 0.5 and 0 0 1
    assert change(before, after) == pytest.approx(np.sqrt(1.25 / 1.25))
    assert change(before, 3 * before + 1) == 0
    assert np.isnan(change(np.ones((2, 2)), before))


def test_max_sensitivity_against_captum(pixels):
    """captum gets the same noise, and the stretched maps."""

    def explain(given):
        return (torch.from_numpy(np.stack([stretched(each) for each in brightness(given[0].numpy())])),)

    copies = noisy(pixels, 4, 0.05, 500)

    def perturb(_, radius):
        return (torch.from_numpy(np.stack([copy[image] for image in range(2) for copy in copies])),)

    theirs = sensitivity_max(explain, torch.from_numpy(pixels), perturb_func=perturb, n_perturb_samples=4)
    for found, expected in zip(stability(pixels, brightness, copies=4), theirs, strict=True):
        assert by_metric(found)["max-sensitivity"].value == pytest.approx(float(expected), rel=1e-5)


def test_means_over_the_noisy_copies(pixels):
    copies = [brightness(copy) for copy in noisy(pixels, 3, 0.2, 7)]
    for image, found in enumerate(stability(pixels, brightness, copies=3, noise=0.2, seed=7)):
        before = brightness(pixels)[image]
        scores = by_metric(found)
        likeness = [ssim(before, copy[image]) for copy in copies]
        changes = [change(before, copy[image]) for copy in copies]
        assert scores["noise-ssim"].value == pytest.approx(np.mean(likeness))
        assert scores["avg-sensitivity"].value == pytest.approx(np.mean(changes))
        assert scores["max-sensitivity"].value == pytest.approx(max(changes))
        assert scores["noise-ssim"].chance == ssim(before, turned(before))
        assert scores["max-sensitivity"].chance == change(before, turned(before))
        assert scores["noise-ssim"].settings == "3 copies with noise 0.2, seed 7"


def test_a_map_that_never_looks_is_perfectly_stable(pixels):
    scores = by_metric(stability(pixels, centre)[1])
    assert {name: score.value for name, score in scores.items()} == {
        "noise-ssim": pytest.approx(1),
        "avg-sensitivity": 0,
        "max-sensitivity": 0,
    }
    assert scores["noise-ssim"].chance < 0.9
    assert scores["avg-sensitivity"].chance > 1


def test_more_noise_is_more_change(pixels):
    little, much = (by_metric(stability(pixels, brightness, noise=noise)[0]) for noise in (0.01, 0.2))
    assert little["noise-ssim"].value > 0.98 > 0.8 > much["noise-ssim"].value
    assert little["avg-sensitivity"].value < 0.05 < 0.15 < much["avg-sensitivity"].value


def test_an_image_is_scored_as_it_would_be_alone(pixels):
    assert stability(pixels[1:], brightness)[0] == stability(pixels, brightness)[1]


def test_scores_come_in_the_order_asked_for(pixels):
    names = list(reversed(STABILITY))
    assert [score.metric for score in stability(pixels, centre, names)[0]] == names
