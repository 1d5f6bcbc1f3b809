"""Scores of several methods of a batch of images."""

import numpy as np
import pytest
import torch

from vbp.choices import METRIC_NAMES
from vbp.evaluation.evaluator import Evaluator

METRICS = ("pointing-game", "energy-inside")


class Maps:
    """A method that gives the first channel of the images, and one that gives NaN; keeps the sizes of its batches."""

    def __init__(self):
        self.asked = []

    def __call__(self, method, images_BCHW, pixels_BHWC, classes_B):
        self.asked.append((method, len(images_BCHW), None if classes_B is None else classes_B.tolist()))
        maps_BHW = images_BCHW[:, 0].numpy()
        return np.full_like(maps_BHW, np.nan) if method == "odd" else maps_BHW


@pytest.fixture
def maps():
    return Maps()


def evaluated(maps, methods, count=3, classes=None, regions=None):
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    masks = rng.random((count, 6, 8), dtype=np.float32)
    inside = np.zeros((6, 8), bool)
    inside[:3] = True
    evaluator = Evaluator(
        maps, lambda pixels_BHWC: torch.tensor(pixels_BHWC).permute(0, 3, 1, 2).float(), methods, METRICS, batch_size=2
    )
    found = evaluator(pixels, masks, classes, [inside] * count if regions is None else regions)
    return pixels, masks, inside, [[score for score in scores if score[1] != "seconds"] for scores in found]


def test_vbp_is_the_masks_and_others_are_made(maps):
    pixels, masks, inside, found = evaluated(maps, ["vbp", "channel"])
    for i, scores in enumerate(found):
        assert [(method, metric) for method, metric, *_ in scores] == [
            (method, metric) for method in ("vbp", "channel") for metric in METRICS
        ]
        for (*_, energy, chance, _), values in zip(scores[1::2], (masks[i], pixels[i, ..., 0]), strict=True):
            stretched = values.astype(float) - values.min()
            assert energy == pytest.approx(stretched[inside].sum() / stretched.sum())
            assert chance == 0.5


def test_batches_are_filled_to_one_size(maps):
    evaluated(maps, ["channel"], count=3, classes=np.array([5, 6, 7]))
    assert maps.asked == [("channel", 2, [5, 6]), ("channel", 2, [7, 0])]


def test_an_image_without_a_visible_object_has_no_score_of_it(maps):
    *_, found = evaluated(maps, ["vbp"], count=2, regions=[None, np.zeros((6, 8), bool)])
    assert found == [[], []]


def test_a_map_that_is_not_finite_has_no_score(maps):
    *_, found = evaluated(maps, ["odd", "vbp"], count=1)
    assert {score[0] for score in found[0]} == {"vbp"}


def test_the_cost_of_each_method_is_there(maps):
    pixels = np.zeros((1, 6, 8, 3), np.uint8)
    evaluator = Evaluator(maps, lambda p: torch.tensor(p).permute(0, 3, 1, 2).float(), ["channel"], METRICS)
    [(method, metric, value, chance, _)] = evaluator(pixels, pixels[..., 0] / 1.0, None, [None])[0]
    assert (method, metric, chance) == ("channel", "seconds", None)
    assert value > 0


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_every_metric_is_measured(maps, metric):
    """Of a method, an image with an object, a classifier, and a copy of the network."""
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    inside = np.zeros((20, 24), bool)
    inside[:9] = True
    evaluator = Evaluator(
        maps,
        lambda pixels_BHWC: torch.tensor(pixels_BHWC).permute(0, 3, 1, 2).float() / 255,
        ["channel"],
        [metric],
        random=[("stem", lambda method, images_BCHW, *_: images_BCHW[:, 2].numpy())],
        classify=lambda images_BCHW: images_BCHW.mean((2, 3)).softmax(1),
        batch_size=2,
    )
    found = evaluator(pixels, pixels[..., 0] / 255.0, np.array([0, 1]), [inside] * 2)
    for scores in found:
        (score,) = [score for score in scores if score[1] != "seconds"]
        assert score[:2] == ("channel", metric)
        assert score[2] is not None


def test_changed_networks_and_images_are_explained_for_the_same_class(maps):
    random = Maps()
    pixels = np.random.default_rng(4).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    evaluator = Evaluator(
        maps,
        lambda pixels_BHWC: torch.tensor(pixels_BHWC).permute(0, 3, 1, 2).float(),
        ["vbp"],
        ["mprt-ssim", "noise-ssim"],
        random=[("stem", random)],
        batch_size=2,
    )
    evaluator(pixels, pixels[..., 0] / 255.0, np.array([3, 8]), [None] * 2)
    assert all(asked == ("vbp", 2, [3, 8]) for asked in (*random.asked, *maps.asked))
    assert len(random.asked) == 1


def test_what_costs_passes_is_measured_of_some_methods_alone(maps):
    pixels = np.random.default_rng(4).integers(0, 256, (1, 12, 12, 3), dtype=np.uint8)
    evaluator = Evaluator(
        maps,
        lambda pixels_BHWC: torch.tensor(pixels_BHWC).permute(0, 3, 1, 2).float() / 255,
        ["vbp", "channel", "other"],
        ["energy-inside", "deletion", "mprt-last-ssim", "noise-ssim", "sparseness"],
        random=[("stem", maps)],
        classify=lambda images_BCHW: torch.full((len(images_BCHW), 2), 0.5),
        costly_for=["channel"],
    )
    inside = np.arange(144).reshape(12, 12) > 70
    (found,) = evaluator(pixels, pixels[..., 0] / np.float32(255), np.array([1]), [inside])
    measured = {
        method: {metric for name, metric, *_ in found if name == method} - {"seconds"}
        for method in ("vbp", "channel", "other")
    }
    assert measured["vbp"] == measured["other"] == {"energy-inside", "sparseness"}
    assert measured["channel"] == {"energy-inside", "sparseness", "deletion", "mprt-last-ssim", "noise-ssim"}
