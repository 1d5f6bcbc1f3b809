"""How a recipe follows from the configuration."""

from dataclasses import replace

import pytest

from vbp.pipeline import RunConfig, steps
from vbp.pipeline.evaluation import Evaluation
from vbp.pipeline.recipe import PASSES, Recipe


def recipe(device="cpu", resolved=2, **config):
    return Recipe(
        config=RunConfig(input="in", output="out", **config),
        run_id="r",
        device=device,
        precision="float32",
        batch_size=resolved,
        weights_sha256="",
        threads=3,
    )


def test_every_core_has_batches_of_its_own():
    made = recipe()
    assert made.rows == 2 * 3 * PASSES
    assert made.explain_arguments()["engine"]["side_by_side"]


@pytest.mark.parametrize(
    ("made", "rows"),
    [
        pytest.param(recipe("cuda", 128), 128, id="on a GPU"),
        pytest.param(recipe(resolved=64, batch_size=64), 64, id="of a size that was asked for"),
    ],
)
def test_large_batches_run_alone(made, rows):
    assert made.rows == rows
    assert not made.explain_arguments()["engine"]["side_by_side"]


def test_images_of_their_own_size_run_alone():
    assert not recipe(fit="original").side_by_side


def test_pixels_have_sizes_of_their_own_where_images_keep_theirs():
    assert not recipe("cuda", 128).own_sizes
    assert recipe(fit="original").own_sizes


def test_images_of_an_evaluation_are_slow():
    assert not recipe().is_slow
    assert recipe(evaluation=Evaluation()).is_slow


def test_what_the_third_step_reads():
    read = recipe().read_by_explain
    assert {"key", "pixels", "label", "error_stage"} <= read
    assert not read & {"uri", "sha256", "width", "data"}
    assert recipe(decode="gpu").read_by_explain > read | {"width", "data"}
    assert recipe(evaluation=Evaluation()).read_by_explain is None  # metrics may read all


def test_a_process_alone_with_a_gpu_has_its_cores_for_images(monkeypatch):
    asked = []
    monkeypatch.setattr(steps, "_mapping", asked.append)
    for made in (replace(recipe("cuda"), alone=True), recipe("cuda"), replace(recipe("cpu"), alone=True)):
        made.decode()
        made.encode()
    assert asked == [True, True, False, False, False, False]
