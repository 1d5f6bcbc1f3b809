"""``--precision int8``: calibrated once, from images that chance chose, and never again."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from vbp.errors import UsageError
from vbp.pipeline import Observer, RunConfig, run
from vbp.pipeline.calibrate import _pixels
from vbp.pipeline.dryrun import plan
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.record import Record, fingerprint
from vbp.pipeline.sweep.sweep import sweep
from vbp.pipeline.sweep.sweepfile import parse_sweep
from vbp.saliency.prepared import calibration
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder


class Told(Observer):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def draw(folder, count):
    folder.mkdir(parents=True)
    draws = np.random.default_rng(4)
    for number in range(count):
        levels = draws.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((40, 40)).save(folder / f"{number:02d}.png")


def masks(out):
    return {path.name: path.read_bytes() for path in (out / "masks").rglob("*.png")}


@pytest.mark.long
def test_scales_stay_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "LEAST_CORRELATION", -1.0)  # of random weights
    source = tmp_path / "photos"
    draw(source / "cat", 10)
    (source / "cat" / "broken.png").write_bytes(b"no image")
    fields = {"model": "squeezenet1_1", "weights": "random", "size": 40, "runner": "local", "max_failures": "50%"}
    fields |= {"outputs": ("mask",), "precision": "int8", "device": "cpu", "input": str(source)}
    whole, parts, told = tmp_path / "whole", tmp_path / "parts", Told()
    run(RunConfig(output=str(whole), **fields), told)
    assert "Calibrating int8 on some of the images; the run keeps the scales." in told.notes
    facts = json.loads((whole / "_run/run.json").read_text())
    assert facts["precision"] == "int8"
    digest = hashlib.sha256(json.dumps(facts["scales"], sort_keys=True).encode()).hexdigest()
    assert facts["fingerprint"]["scales_sha256"] == digest

    run(RunConfig(output=str(parts), limit=6, **fields))
    scales = json.loads((parts / "_run/run.json").read_text())["scales"]
    monkeypatch.setattr("vbp.pipeline.listing.calibrated", lambda *_: pytest.fail("calibrated anew"))
    run(RunConfig(output=str(parts), **fields | {"precision": "auto"}))
    assert json.loads((parts / "_run/run.json").read_text())["scales"] == scales
    assert masks(parts).keys() == masks(whole).keys()
    with pytest.raises(UsageError, match="precision was 'int8', now 'float32'"):
        run(RunConfig(output=str(parts), **fields | {"precision": "float32"}))


RESIDUAL = {"model": "timm:test_resnet", "weights": "random", "size": 40, "device": "cpu", "precision": "int8"}


@pytest.mark.long
def test_a_run_whose_scales_know_no_additions_goes_on_without(tmp_path, monkeypatch):
    """It was begun before additions were computed in integers: its masks are those of the version that began it."""
    monkeypatch.setattr(calibration, "LEAST_CORRELATION", -1.0)  # of random weights
    draw(tmp_path / "photos", 8)
    fields = RESIDUAL | {"input": str(tmp_path / "photos"), "runner": "local", "outputs": ("mask",)}
    whole, older, parts = (RunConfig(output=str(tmp_path / name), **fields) for name in ("whole", "older", "parts"))
    run(whole)
    scales = json.loads((tmp_path / "whole/_run/run.json").read_text())["scales"]
    assert scales.pop("additions")
    monkeypatch.setattr("vbp.pipeline.listing.calibrated", lambda *_: scales)
    run(older)
    run(dataclasses.replace(parts, limit=3))
    monkeypatch.setattr("vbp.pipeline.listing.calibrated", lambda *_: pytest.fail("calibrated anew"))
    assert run(parts).computed == 5
    assert json.loads((tmp_path / "parts/_run/run.json").read_text())["scales"] == scales
    assert masks(tmp_path / "parts") == masks(tmp_path / "older")
    assert masks(tmp_path / "older") != masks(tmp_path / "whole")


@pytest.mark.long
def test_workers_of_ray_compute_with_the_scales_of_the_driver(tmp_path, monkeypatch, ray_session):
    monkeypatch.setattr(calibration, "LEAST_CORRELATION", -1.0)  # of random weights
    draw(tmp_path / "photos", 8)
    fields = RESIDUAL | {"input": str(tmp_path / "photos"), "outputs": ("mask",), "batch_size": 4}
    run(RunConfig(output=str(tmp_path / "local"), runner="local", **fields))
    summary = run(RunConfig(output=str(tmp_path / "ray"), runner="ray", workers=1, **fields))
    assert (summary.runner, summary.precision, summary.ok) == ("ray", "int8", 8)
    assert masks(tmp_path / "ray") == masks(tmp_path / "local")
    facts = [json.loads((tmp_path / name / "_run/run.json").read_text()) for name in ("local", "ray")]
    assert facts[0]["scales"] == facts[1]["scales"]


def row(key):
    return ManifestRow(key, f"file:///{key}", key.encode(), None)


def test_few_large_images_are_enough(tmp_path, monkeypatch):
    draw(tmp_path / "photos", 14)
    monkeypatch.setattr("vbp.pipeline.calibrate.ENOUGH_PIXELS", 3 * 40 * 40)
    config = RunConfig(input=str(tmp_path / "photos"), output="out", fit="original")
    recipe = Recipe(
        config=config, run_id="run", device="cpu", precision="int8", batch_size=4, weights_sha256=""
    )  # fmt: skip
    rows = [row(f"{number:02d}.png") for number in range(14)]
    assert [pixels.shape for pixels in _pixels(recipe, rows, 80)] == [(40, 40, 3)] * 10
    assert len(_pixels(recipe, rows, 7)) == 7


FIELDS = {"model": "squeezenet1_1", "weights": "random", "size": 40, "runner": "local", "device": "cpu"}


def test_too_few_images_are_refused_and_leave_nothing(tmp_path):
    draw(tmp_path / "photos", 3)
    with pytest.raises(UsageError, match="3 images are too few"):
        run(RunConfig(input=str(tmp_path / "photos"), output=str(tmp_path / "out"), precision="int8", **FIELDS))
    assert not [path for path in tmp_path.joinpath("out").rglob("*") if path.is_file()]


def test_an_overwrite_that_calibration_refuses_has_cleared_nothing(tmp_path):
    draw(tmp_path / "photos", 3)
    config = RunConfig(input=str(tmp_path / "photos"), output=str(tmp_path / "out"), outputs=("mask",), **FIELDS)
    run(config)
    before = masks(tmp_path / "out")
    with pytest.raises(UsageError, match="3 images are too few"):
        run(dataclasses.replace(config, precision="int8", resume_mode="overwrite"))
    assert masks(tmp_path / "out") == before
    assert run(config).computed == 0


def test_an_overwrite_calibrates_on_the_images_of_a_fresh_run(tmp_path, monkeypatch):
    seen = []

    def calibrated(recipe, model, rows):
        seen.append([each.key for each in rows])
        return {"ranges": {}, "floats": []}

    monkeypatch.setattr("vbp.pipeline.listing.calibrated", calibrated)
    monkeypatch.setattr("vbp.pipeline.runner.Runner.reports", lambda *_: pytest.fail("begun"))
    draw(tmp_path / "photos", 9)
    fields = FIELDS | {"input": str(tmp_path / "photos"), "precision": "int8", "limit": 6}
    for output, mode in (("one", "resume"), ("one", "overwrite"), ("two", "resume")):
        with pytest.raises(pytest.fail.Exception, match="begun"):
            run(RunConfig(output=str(tmp_path / output), resume_mode=mode, **fields))
    assert seen[0] == seen[1] == seen[2]
    assert sorted(seen[0]) == [f"{number:02d}.png" for number in range(6)]


def test_a_listing_without_scales_is_read_again(tmp_path, monkeypatch):
    """Of a run that was killed while it calibrated."""
    draw(tmp_path / "photos", 6)
    seen = []

    def calibrated(recipe, model, rows):
        seen.append([each.key for each in rows])
        raise KeyboardInterrupt

    monkeypatch.setattr("vbp.pipeline.listing.calibrated", calibrated)
    config = RunConfig(input=str(tmp_path / "photos"), output=str(tmp_path / "out"), precision="int8", **FIELDS)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert (tmp_path / "out/_run/manifest.json").exists()
    assert len(seen[0]) == 6
    assert seen[0] == seen[1]


def test_scales_that_have_changed_are_told_in_words(tmp_path):
    recipe = Recipe(
        config=RunConfig(input="photos", output="out"), run_id="run", device="cpu", precision="int8", batch_size=1,
        weights_sha256="", scales={"ranges": {"x": [0.0, 1.0]}, "floats": []},
    )  # fmt: skip
    record = Record(Folder(str(tmp_path)), {"fingerprint": fingerprint(recipe), "config": {}})
    record.refuse_other(recipe)
    other = dataclasses.replace(recipe, scales={"ranges": {"x": [0.0, 2.0]}, "floats": []})
    with pytest.raises(UsageError, match=r"configuration: the scales of int8 in _run/run.json are others than it was"):
        record.refuse_other(other)
    with pytest.raises(UsageError, match=r"configuration: precision was 'int8', now 'float32'\. "):
        record.refuse_other(dataclasses.replace(recipe, precision="float32", scales=None))


@pytest.mark.long
def test_a_plan_of_int8_measures_int8(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "LEAST_CORRELATION", -1.0)  # of random weights
    draw(tmp_path / "photos", 10)
    fields = FIELDS | {"precision": "int8", "batch_size": 10}
    found = plan(RunConfig(input=str(tmp_path / "photos"), output=str(tmp_path / "out"), **fields))
    assert found.precision == "int8"
    assert found.sampled > 0
    assert not found.failures
    assert found.images_per_second
    assert not (tmp_path / "out").exists()


def test_a_sweep_calibrates_before_any_of_its_runs_begins(tmp_path):
    draw(tmp_path / "photos", 3)
    common = "{model: squeezenet1_1, weights: random, size: 40, runner: local, device: cpu}"
    text = f"output: {tmp_path / 'out'}\ninputs: {tmp_path / 'photos'}\ncommon: {common}\n"
    with pytest.raises(UsageError, match=r"run precision-int8: calibration: 3 images are too few"):
        sweep(parse_sweep(text + "grid: {precision: [float32, int8]}"))
    assert not list(tmp_path.joinpath("out").rglob("*.png"))
