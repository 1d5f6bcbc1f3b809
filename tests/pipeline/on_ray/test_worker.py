"""The worker of a GPU under Ray, on a stand-in for the device: batches overlap, and rows are the local chain's."""

import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.jpegs import decoder
from tests.late_device import PromptDevice
from vbp.networks.models import load_model
from vbp.pipeline import RunConfig
from vbp.pipeline.classes import ClassMap
from vbp.pipeline.finishing import Finishing
from vbp.pipeline.local import Chain, rows_of
from vbp.pipeline.on_ray import dataset
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.resources import Resources
from vbp.pipeline.steps import DecodeOnDevice, Encode, Explain, objects
from vbp.staging import Staged

ROWS, SIDE = 4, 64
SECONDS = 60
KEPT = (
    "key", "shard", "position", "error_stage", "file_mask", "file_overlay", "flat", "prediction", "predicted_label",
    "correct", "mask_area", "peak_x", "peak_y", "mask_width", "mask_height", "image_peak_x", "image_peak_y",
)  # fmt: skip
CLOSE = ("log10_max", "mask_mean", "probability")


class WaitingDevice(PromptDevice):
    """Lets nobody have results before a second batch is in hand."""

    def __init__(self):
        super().__init__()
        self.begun, self.second = 0, threading.Event()

    def enqueue(self, stream, work, after, done):
        super().enqueue(stream, work, after, done)
        if after is None:
            self.begun += 1
        if self.begun == 2:
            self.second.set()

    def waited_for(self):
        assert self.second.wait(SECONDS), "the batches do not overlap"


class Photos:
    """Shards of photos, of which the last is short."""

    def __init__(self, root):
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        self.shards = [paths[:12], paths[12:22]]

    @contextmanager
    def open(self, number):
        yield Work(self.shards[number], number)


class Work:
    def __init__(self, paths, shard):
        self.paths, self.shard = paths, shard

    def singles(self, step):
        return iter(())

    def batches(self, rows):
        for first in range(0, len(self.paths), rows):
            paths = self.paths[first : first + rows]
            yield {
                "key": objects([path.name for path in paths]),
                "uri": objects([str(path) for path in paths]),
                "label": objects([path.parent.name for path in paths]),
                "shard": np.full(len(paths), self.shard, np.int32),
                "position": np.arange(first, first + len(paths), dtype=np.int32),
            }


class Steps:
    """The steps of a run, of which Explain computes on that device; or those of the local chain. Nothing is stored."""

    batch_size = rows = ROWS
    is_slow = False

    def __init__(self, recipe, *, on_device):
        self.recipe, self.on_device = recipe, on_device
        self.own_sizes, self.read_by_explain = recipe.own_sizes, recipe.read_by_explain

    def source(self):
        return Photos(Path(self.recipe.config.input))

    def fetch(self):
        return self.recipe.fetch()

    def decode(self):
        return self.recipe.decode()

    def explain(self):
        explain = self.explain_pixels()
        decode = DecodeOnDevice(decoder, SIDE)
        return explain if self.recipe.config.decode == "cpu" else lambda batch: explain(decode(batch))

    def explain_pixels(self):
        if not self.on_device:
            return Explain(**self.recipe.explain_arguments())
        step = Explain(**self.recipe.explain_arguments() | {"finishing": Finishing(overlay_style="heat")})
        step.explainer._staged = Staged(step.explainer._compute, WaitingDevice())
        return lambda batch: step(batch) | {"together": np.full(len(batch["key"]), len(batch["key"]))}

    def encode(self):
        return Encode(finished=self.on_device)

    def write(self):
        return lambda batch: {name: values for name, values in batch.items() if name in {*KEPT, *CLOSE, "together"}}


def by_key(rows):
    return {row["key"]: row for row in rows}


@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_batches_overlap_and_rows_are_the_local_chains(photos, network_file, ray_session, decode):
    """With ``gpu`` files go to the worker, whose decoder has a stand-in too."""
    fields = {"weights": network_file, "size": SIDE, "precision": "float32", "batch_size": ROWS, "decode": decode}
    config = RunConfig(input=str(photos), output="out", **fields)
    recipe = Recipe(
        config=config,
        run_id="r",
        device="cpu",
        precision="float32",
        batch_size=ROWS,
        weights_sha256=load_model(**config.network).sha256,
        preprocessing=config.preprocessing(),
        classes=ClassMap({"bird": 0, "cat": 1, "dog": 2}, ["bird", "cat", "dog"], "named"),
        threads=1,
    )
    expected = by_key(
        row for batch in Chain(Steps(recipe, on_device=False))({"shard": [0, 1]}) for row in rows_of(batch)
    )
    given = Resources(workers=1, num_cpus=0, num_gpus=0, threads=1, calls=3)
    reports = dataset.plan(Steps(recipe, on_device=True), [0, 1], given, spread=True)
    found = by_key(reports.iter_rows())
    assert found.keys() == expected.keys()
    for key, row in found.items():
        for name in KEPT:
            assert row[name] == expected[key][name], (key, name)
        for name in CLOSE:
            assert row[name] == pytest.approx(expected[key][name], rel=2e-7), (key, name)
    assert sorted(row["together"] for row in found.values()) == [2, 2] + [4] * 20  # no batch was cut
