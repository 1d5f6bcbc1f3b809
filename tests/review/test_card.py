"""The answers of a card, from scores by hand."""

import re

import numpy as np
import pytest

from vbp.review.card import Card, answered
from vbp.review.evaluation import Scores
from vbp.review.reference import Figure, Reference

SEED, IMAGES = 7, 60
PLACES = ("energy-inside", "rank-accuracy", "pointing-game")
REFERENCE = Reference(
    title="Scenes", images=32, seconds=0.5,
    figures=(Figure(metric="energy-inside", mean=0.8, low=0.7, high=0.9, twin=0.1, chance=0.03),),
)  # fmt: skip


def scores(levels, chances=None, images=IMAGES):
    """`levels` by metric and method; the chance levels by metric."""
    draws = np.random.default_rng(SEED)
    values = {
        metric: {name: np.clip(level + draws.normal(0, 0.05, images), -1, 1) for name, level in own.items()}
        for metric, own in levels.items()
    }
    values["seconds"] = {"vbp": np.full(images, 0.25)}
    found = {
        metric: {name: np.full(images, (chances or {}).get(metric, np.nan)) for name in own}
        for metric, own in values.items()
    }
    return Scores(values=values, chances=found, settings=dict.fromkeys(values, ""), images=images)


def answers(*arguments, **more):
    _, found = answered(scores(*arguments, **more), "cpu", [REFERENCE])
    return dict(zip(("objects", "training", "stability", "cost"), found, strict=True))


def located(own, **others):
    return {metric: {"vbp": own, **others} for metric in PLACES}


CHANCES = dict.fromkeys(PLACES, 0.3)


@pytest.mark.parametrize(
    ("levels", "verdict", "remark"),
    [
        (located(0.8, centre=0.5, edge=0.4), "yes", None),
        (
            located(0.8, centre=0.81),
            "in part",
            "Not clearly better than the centre of the image by energy-inside, rank",
        ),
        (located(0.8, centre=0.5, eigencam=0.95), "yes", "eigencam is better by energy-inside, rank-accuracy and poin"),
        (located(0.3, centre=0.1), "no", "Not clearly better than chance by energy-inside, rank-accuracy and pointing"),
        (located(0.1), "no", "Not clearly better than chance"),
    ],
    ids=["all", "centre", "rival", "chance", "below"],
)
def test_whether_objects_are_found(levels, verdict, remark):
    found = answers(levels, CHANCES)["objects"]
    assert found.verdict == verdict
    assert (remark is None) == (found.remarks == ())
    assert remark is None or any(each.startswith(remark) for each in found.remarks)
    assert found.sentence.endswith("by chance it is 0.30.")


def test_one_metric_above_chance_is_not_all_of_them():
    levels = located(0.3) | {"energy-inside": {"vbp": 0.8}}
    assert answers(levels, CHANCES)["objects"].verdict == "in part"


def test_without_a_truth_it_says_what_to_give():
    found = answers({"noise-ssim": {"vbp": 0.9}}, {"noise-ssim": 0.3})["objects"]
    assert found.verdict == "unknown"
    assert "--truth" in found.sentence


@pytest.mark.parametrize(
    ("twin", "verdict"), [(0.4, "yes"), (0.8, "no"), (0.95, "no")], ids=["worse", "alike", "better"]
)
def test_whether_training_matters_where_objects_are_known(twin, verdict):
    found = answers(located(0.8, **{"random-twin": twin}), CHANCES)["training"]
    assert found.verdict == verdict
    assert (verdict == "no") == any("with random weights" in remark for remark in found.remarks)


def test_training_that_matters_by_one_metric_matters_in_part():
    levels = located(0.8, **{"random-twin": 0.8}) | {"energy-inside": {"vbp": 0.8, "random-twin": 0.4}}
    found = answers(levels, CHANCES)["training"]
    assert found.verdict == "in part"
    assert "by rank-accuracy and pointing-game." in found.remarks[0]


def test_with_a_classifier_alone_its_metrics_decide():
    levels = {"insertion": {"vbp": 0.6, "random-twin": 0.3}, "deletion": {"vbp": 0.2, "random-twin": 0.2}}
    found = answers(levels, {"insertion": 0.3, "deletion": 0.3})
    assert (found["objects"].verdict, found["training"].verdict) == ("unknown", "in part")
    assert any("--truth" in remark for remark in found["training"].remarks)


@pytest.mark.parametrize(
    ("randomised", "noisy", "verdict"),
    [(0.3, 0.9, "yes"), (0.1, 0.1, "yes"), (0.3, 0.1, "unknown"), (0.6, 0.9, "in part"), (0.9, 0.9, "no")],
    ids=["chance", "below chance", "chance and unstable", "some", "all"],
)
def test_with_neither_the_likeness_to_random_weights_decides(randomised, noisy, verdict):
    """The level of chance is 0.3."""
    levels = {"mprt-last-ssim": {"vbp": randomised}, "noise-ssim": {"vbp": noisy}}
    found = answers(levels, {"mprt-last-ssim": 0.3, "noise-ssim": 0.3})["training"]
    assert found.verdict == verdict
    assert ("image's doing" in found.sentence) == (randomised > 0.3)
    assert any("give --truth, or weights with a classifier" in remark for remark in found.remarks)


@pytest.mark.parametrize(("level", "verdict"), [(0.9, "yes"), (0.5, "in part"), (0.3, "no"), (0.1, "no")])
def test_stable_is_what_is_nearer_to_itself_than_to_chance(level, verdict):
    found = answers({"noise-ssim": {"vbp": level, "random-twin": 0.95}}, {"noise-ssim": 0.3})["stability"]
    assert found.verdict == verdict
    assert re.search(r"Random weights have 0\.9\d\.$", found.remarks[0])


def test_the_cost_has_no_verdict():
    found = answers(located(0.8), CHANCES)["cost"]
    assert (found.verdict, found.rows[0].cells) == ("", ("0.25",))
    assert found.sentence.startswith("0.25 seconds a mask on cpu, 4 masks a second")
    assert found.references[0].cells == ("0.5",)


def test_published_figures_stand_below():
    found = answers(located(0.8), CHANCES)["objects"]
    (row,) = found.references
    assert row.name == "Scenes, 32 images"
    assert row.cells == ("0.80 (0.70 to 0.90); twin 0.10, chance 0.03", "", "")


@pytest.mark.parametrize("images", [1, 8])
def test_few_images_answer_nothing_for_sure(images):
    found = answers(located(0.8), CHANCES, images=images)["objects"]
    assert any(remark.startswith(f"Only {images} image") for remark in found.remarks)
    if images == 1:
        assert found.verdict == "not shown"
        assert "nan" not in str(found)


def test_the_worst_comes_first():
    levels = located(0.8, **{"random-twin": 0.8}) | {"noise-ssim": {"vbp": 0.9}}
    tables, found = answered(scores(levels, CHANCES | {"noise-ssim": 0.3}), "cpu", [])
    card = Card(output="o", images=IMAGES, failed=0, answers=found, tables=tables, facts={})
    assert [each.verdict for each in card.answers] == ["yes", "no", "yes", ""]
    assert [each.verdict for each in card.first_the_worst] == ["no", "yes", "yes", ""]


def test_without_a_twin_nothing_is_said_of_training():
    assert answers(located(0.8, centre=0.5), CHANCES)["training"].verdict == "unknown"
