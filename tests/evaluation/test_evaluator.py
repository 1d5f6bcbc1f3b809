"""Scores of several methods of a batch of images."""

import numpy as np
import pytest
import torch

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
