"""Variants are chosen on one half of the images and judged on the other."""

import numpy as np
import pytest

from vbp.demo.scenes import write_tree
from vbp.evidence.quality import LOCALISATION, Case
from vbp.evidence.variants import MAKERS, MEANINGS, Judged, choice, half_of, judged, page, verdicts


def case(tmp_path, **fields):
    return Case("demo", "Scenes", "about", tmp_path / "scenes", tmp_path / "truth", (), (), **fields)


def found(tmp_path, gains, images=40):
    """All variants have 0.5 on each image, but for what they gain on the choosing and on the judging half."""
    names = list(MAKERS)
    rows = {half: [0.5 + gains.get(name, (0, 0))[half] for name in names] for half in (0, 1)}
    noise = np.linspace(-0.01, 0.01, images)[:, None]
    scores = {(half, metric): noise + rows[half] for half in (0, 1) for metric in LOCALISATION}
    return Judged(case(tmp_path), names, scores)


def test_every_variant_has_its_meaning():
    assert MEANINGS.keys() == MAKERS.keys()


def test_halves_are_about_equal_and_depend_on_the_key_alone():
    keys = [f"cat/{number}.jpg" for number in range(1000)]
    halves = [half_of(key) for key in keys]
    assert 400 < sum(halves) < 600
    assert [half_of(key) for key in reversed(keys)] == halves[::-1]


def test_the_first_half_chooses_and_the_second_judges(tmp_path):
    lucky = {"without-floor": (0.3, -0.1), "minus-twin": (0.1, 0.4)}
    one = found(tmp_path, lucky)
    name, ranks = choice([one])
    assert name == "without-floor"
    assert ranks["minus-twin"] == 2
    told = verdicts([one], name)
    assert set(told) == {("demo", metric) for metric in LOCALISATION}
    assert [round(each.mean, 6) for each in told.values()] == [-0.1] * len(LOCALISATION)
    text = "\n".join(page([one]))
    assert "`without-floor` is better in 0 of 3 comparisons, alike in 0, worse in 3." in text
    assert "`paper` stays the default" in text


def test_what_is_better_everywhere_is_said_to_be(tmp_path):
    assert "alike in 0, worse in 0: overwhelming." in "\n".join(page([found(tmp_path, {"minus-twin": (0.2, 0.2)})]))


def test_where_the_paper_is_chosen_nothing_is_judged(tmp_path):
    assert choice([found(tmp_path, {"paper": (0.1, 0)})])[0] == "paper"
    assert "nothing to judge" in "\n".join(page([found(tmp_path, {"paper": (0.1, 0)})]))


def test_what_does_not_suit_every_network_is_not_chosen(tmp_path):
    one = found(tmp_path, {"reference": (0.3, 0.3)})
    kept = [number for number, name in enumerate(MAKERS) if name != "reference"]
    scores = {name: values[:, kept] for name, values in one.scores.items()}
    other = Judged(one.case, [name for name in MAKERS if name != "reference"], scores)
    assert choice([one])[0] == "reference"
    assert choice([one, other])[0] != "reference"


@pytest.mark.long
def test_scenes_are_scored_in_their_halves(tmp_path):
    write_tree(tmp_path / "scenes", tmp_path / "truth", 4, 7)
    one = judged(case(tmp_path, settings={"weights": "demo"}), None)
    keys = [path.relative_to(tmp_path / "scenes").as_posix() for path in sorted((tmp_path / "scenes").rglob("*.png"))]
    for metric in LOCALISATION:
        assert [len(one.scores[half, metric]) for half in (0, 1)] == [
            sum(half_of(key) == half for key in keys) for half in (0, 1)
        ]
    together = np.concatenate([one.scores[half, "rank-accuracy"] for half in (0, 1)])
    assert together.shape == (4, len(MAKERS))
    assert ((together >= 0) & (together <= 1)).all()
    assert together[:, 0].mean() > 0.5
