"""Workers that many runs share: each row by its own run's step, each network once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vbp.errors import StorageError
from vbp.pipeline import RunConfig
from vbp.pipeline.evaluation import Evaluation
from vbp.pipeline.failures import RunFailedError, on_behalf_of
from vbp.pipeline.loading import Networks
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.shared import UNITS_A_RUN, ByRun, Recipes, UnitWork, shape, unit
from vbp.pipeline.steps import objects
from vbp.storage.manifest.manifest import MAX_SHARDS


def config(**changes):
    return RunConfig(**{"input": "photos", "output": "out"} | changes)


def recipe(device="cpu", **changes):
    made = config(**changes)
    facts = {"run_id": "a", "device": device, "precision": "float32", "batch_size": 8, "weights_sha256": "0"}
    return Recipe(config=made, preprocessing=made.preprocessing(), **facts)


def test_units_are_distinct():
    assert UNITS_A_RUN > MAX_SHARDS
    assert divmod(unit(3, 17), UNITS_A_RUN) == (3, 17)


def test_each_row_goes_through_the_step_of_its_run():
    made = []

    def make(run):
        made.append(run)
        return lambda batch: batch | {"value": batch["value"] * 10**run}

    step = ByRun(make)
    mixed = {"run": np.array([1, 0, 1, 2]), "value": np.array([1, 2, 3, 4])}
    done = step(mixed)
    assert sorted(zip(done["run"].tolist(), done["value"].tolist(), strict=True)) == [
        (0, 2),
        (1, 10),
        (1, 30),
        (2, 400),
    ]
    step({"run": np.array([2]), "value": np.array([1])})
    assert sorted(made) == [0, 1, 2]


def test_only_the_newest_steps_are_kept():
    made = []
    step = ByRun(lambda run: made.append(run) or dict, 2)
    for run in (0, 1, 0, 1, 2, 1, 0):
        step({"run": np.array([run])})
    assert made == [0, 1, 2, 0]


def test_calls_at_the_same_time_share_a_step():
    made, all_there = [], threading.Barrier(3)

    def make(run):
        made.append(run)
        time.sleep(0.05)  # as a network is loaded, meanwhile others ask for it
        return dict

    def call(step):
        all_there.wait(30)
        step({"run": np.array([7])})

    step = ByRun(make)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(call, [step] * 3))
    assert made == [7]


def test_masks_of_two_sizes_stay_whole():
    step = ByRun(lambda run: lambda batch: batch | {"mask": np.ones((len(batch["run"]), 2 + run, 2))})
    masks = step({"run": np.array([0, 1, 0])})["mask"]
    assert sorted(mask.shape for mask in masks) == [(2, 2), (2, 2), (3, 2)]
    ragged = ByRun(lambda run: lambda batch: {"mask": objects([np.ones((1, 1))]) if run else np.ones((1, 4, 4))})
    assert [mask.shape for mask in ragged({"run": np.array([0, 1])})["mask"]] == [(4, 4), (1, 1)]


@pytest.mark.parametrize("failed", [0, 1])
def test_a_run_whose_images_all_failed_has_no_maps_and_the_other_keeps_its_own(failed):
    maps = {1 - failed: {"map_00": np.ones((1, 2, 2))}, failed: {}}
    step = ByRun(lambda run: lambda batch: batch | maps[run])
    found = step({"run": np.array([0, 1])})
    assert found["map_00"][failed] is None
    np.testing.assert_array_equal(found["map_00"][1 - failed], np.ones((2, 2)))


class Unreadable:
    def singles(self, step):
        raise StorageError("no mark can be written")
        yield

    batches = singles


@pytest.mark.parametrize("kind", ["singles", "batches"])
def test_a_unit_that_cannot_be_read_fails_its_own_run(kind):
    """Also while a unit of another run is open, which was opened later."""
    work = UnitWork(Unreadable(), 3, None)
    with pytest.raises(RunFailedError) as caught, on_behalf_of(7):
        list(work.singles(dict) if kind == "singles" else work.batches(4))
    assert caught.value.run == 3


@pytest.mark.parametrize(
    ("changes", "equal"),
    [
        ({"preset": "reference", "weights": "demo", "model": "vgg11"}, True),
        ({"size": 64}, False),
        ({"decode": "gpu"}, False),
        ({"frame": "image"}, False),
        ({"outputs": ("mask",)}, False),
        ({"layout": "none"}, False),
    ],
)
def test_which_rows_have_one_shape(changes, equal):
    assert (shape(recipe()) == shape(recipe(**changes))) is equal
    assert shape(recipe(outputs=("maps",))) != shape(recipe(outputs=("maps",), model="vgg11"))


def test_masks_as_they_are_stored_are_of_one_type():
    assert shape(recipe("cpu")) == shape(recipe("cpu", mask_format="png16"))
    assert shape(recipe("cuda")) != shape(recipe("cuda", mask_format="png16"))


def test_pixels_have_sizes_of_their_own_if_those_of_any_run_have():
    made = [recipe(), recipe(size=64)]
    assert not Recipes(made, Networks()).own_sizes
    assert Recipes([*made, recipe(fit="original")], Networks()).own_sizes


def test_what_runs_read_together():
    """All that any of them reads, and whose each row is."""
    made = [recipe(), recipe(decode="gpu")]
    assert Recipes(made, Networks()).read_by_explain == made[1].read_by_explain | {"run"}
    evaluated = recipe(evaluation=Evaluation())
    assert Recipes([*made, evaluated], Networks()).read_by_explain is None
