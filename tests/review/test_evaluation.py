"""Tables of an evaluation, from values by hand."""

import numpy as np
import pytest

from vbp.review.evaluation import tables_of

RNG = np.random.default_rng(11)
VBP = RNG.uniform(0.4, 0.8, 60)
VALUES = {
    "pointing-game": {
        "vbp": VBP,
        "eigencam": VBP + 0.1 + RNG.normal(0, 0.02, 60),
        "centre": VBP + RNG.normal(0, 0.2, 60),
        "edge": np.where(np.arange(60) < 40, VBP - 0.3, np.nan),
    }
}
CHANCES = {"pointing-game": {method: np.full(60, 0.25) for method in VALUES["pointing-game"]}}


@pytest.fixture(scope="module")
def lines():
    (table,) = tables_of(VALUES, CHANCES, {"pointing-game": ""})
    return {line.method: line for line in table.lines}


def test_means_are_over_the_images_with_a_value(lines):
    assert lines["edge"].images == 40
    assert lines["edge"].mean == pytest.approx((VBP - 0.3)[:40].mean())
    assert lines["vbp"].images == 60
    assert all(line.chance == 0.25 for line in lines.values())
    assert all(line.low < line.mean < line.high for line in lines.values())


def test_methods_are_compared_with_vbp_image_by_image(lines):
    assert (lines["vbp"].difference, lines["vbp"].p, lines["vbp"].verdict) == (None, None, "")
    assert lines["eigencam"].difference == pytest.approx(0.1, abs=0.02)
    assert lines["edge"].difference == pytest.approx(-0.3)
    assert [lines[name].verdict for name in ("eigencam", "edge", "centre")] == ["better", "worse", "alike"]


def test_places_count_from_the_best(lines):
    assert lines["eigencam"].rank == 1
    assert lines["edge"].rank == 4
    assert lines["vbp"].rank_low <= lines["vbp"].rank <= lines["vbp"].rank_high


def test_the_interval_is_that_of_the_mean(lines):
    """Within a few percent of the normal one, which holds for 60 values of this kind."""
    half = 1.96 * VBP.std(ddof=1) / np.sqrt(60)
    assert lines["vbp"].low == pytest.approx(VBP.mean() - half, abs=0.2 * half)
    assert lines["vbp"].high == pytest.approx(VBP.mean() + half, abs=0.2 * half)


def test_where_less_is_better_the_smaller_method_is_better():
    values = {"deletion": {"vbp": VBP, "eigencam": VBP - 0.3}}
    chances = {"deletion": {name: np.full(60, np.nan) for name in values["deletion"]}}
    (table,) = tables_of(values, chances, {"deletion": "steps 28"})
    assert (table.lines[1].verdict, table.lines[1].chance, table.settings) == ("better", None, "steps 28")


def test_more_comparisons_ask_for_clearer_differences():
    few, many = (
        tables_of({"pointing-game": {"vbp": VBP, **rivals}}, {"pointing-game": {n: VBP for n in ("vbp", *rivals)}}, {})
        for rivals in (
            {"centre": VBP + RNG.normal(0.05, 0.15, 60)},
            {"centre": VBP + 0.0, "edge": VBP + 0.0},
        )
    )
    assert few[0].lines[1].p < 1
    assert {line.p for line in many[0].lines[1:]} == {1.0}


def test_places_on_the_axis_are_shares_of_its_length():
    (table,) = tables_of(VALUES, CHANCES, {})
    assert (table.place(0), table.place(0.5), table.place(1)) == (0, 50, 100)
