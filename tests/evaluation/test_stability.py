"""Change under noise: by hand, by captum, and for methods that are known to be stable or not."""

import numpy as np
import pytest
import torch
from captum.metrics import sensitivity_max

from vbp.evaluation.randomness import noisy
from vbp.evaluation.similarity import moved, ssim, stretched
from vbp.evaluation.stability import STABILITY, change, stability

SEED = 40


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(SEED).standard_normal((2, 3, 16, 15)).astype(np.float32))


def brightness(images):
    return images.abs().mean(1).numpy()


def centre(images):
    return np.broadcast_to(np.eye(16, 15), (len(images), 16, 15))


def by_metric(scores):
    return {score.metric: score for score in scores}


def test_change_by_hand():
    before, after = np.array([[0.0, 4, 2]]), np.array([[10.0, 10, 20]])  # stretched: 0 1 0.5 and 0 0 1
    assert change(before, after) == pytest.approx(np.sqrt(1.25 / 1.25))
    assert change(before, 3 * before + 1) == 0
    assert np.isnan(change(np.ones((2, 2)), before))


def test_max_sensitivity_against_captum(images):
    """captum gets the same noise, and the stretched maps; it takes the norm over all channels of an image."""

    def explain(pixels):
        return (torch.from_numpy(np.stack([stretched(each) for each in brightness(pixels[0])])),)

    copies = noisy(images, 4, 0.05, 500)

    def perturb(_, radius):
        return (torch.stack([copy[image] for image in range(2) for copy in copies]),)

    theirs = sensitivity_max(explain, images, perturb_func=perturb, n_perturb_samples=4)
    for found, expected in zip(stability(images, brightness, copies=4), theirs, strict=True):
        assert by_metric(found)["max-sensitivity"].value == pytest.approx(float(expected), rel=1e-5)


def test_means_over_the_noisy_copies(images):
    copies = [brightness(copy) for copy in noisy(images, 3, 0.2, 7)]
    for image, found in enumerate(stability(images, brightness, copies=3, noise=0.2, seed=7)):
        before = brightness(images)[image]
        scores = by_metric(found)
        likeness = [ssim(before, copy[image]) for copy in copies]
        changes = [change(before, copy[image]) for copy in copies]
        assert scores["noise-ssim"].value == pytest.approx(np.mean(likeness))
        assert scores["avg-sensitivity"].value == pytest.approx(np.mean(changes))
        assert scores["max-sensitivity"].value == pytest.approx(max(changes))
        assert scores["noise-ssim"].chance == ssim(before, moved(before))
        assert scores["max-sensitivity"].chance == change(before, moved(before))
        assert scores["noise-ssim"].settings == "3 copies with noise 0.2, seed 7"


def test_a_map_that_never_looks_is_perfectly_stable(images):
    scores = by_metric(stability(images, centre)[1])
    assert {name: score.value for name, score in scores.items()} == {
        "noise-ssim": pytest.approx(1),
        "avg-sensitivity": 0,
        "max-sensitivity": 0,
    }
    assert scores["noise-ssim"].chance < 0.9
    assert scores["avg-sensitivity"].chance > 1


def test_more_noise_is_more_change(images):
    little, much = (by_metric(stability(images, brightness, noise=noise)[0]) for noise in (0.01, 0.2))
    assert little["noise-ssim"].value > 0.98 > 0.8 > much["noise-ssim"].value
    assert little["avg-sensitivity"].value < 0.1 < 0.3 < much["avg-sensitivity"].value


def test_an_image_is_scored_as_it_would_be_alone(images):
    assert stability(images[1:], brightness)[0] == stability(images, brightness)[1]


def test_scores_come_in_the_order_asked_for(images):
    names = list(reversed(STABILITY))
    assert [score.metric for score in stability(images, centre, names)[0]] == names
