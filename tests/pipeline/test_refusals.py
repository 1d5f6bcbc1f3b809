"""A refused run leaves the output as it was, whatever it was refused for."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vbp.errors import UsageError
from vbp.pipeline import RunConfig, prepare, run


@pytest.fixture
def one_photo(tmp_path):
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("no image")
    (tmp_path / "twice.csv").write_text("uri,key\na.png,k\nb.png,k\n")
    (tmp_path / "late.csv").write_text('uri\na.png\n""\n')
    return tmp_path


REFUSALS = {
    "a device that is not there": {"device": "cuda"},
    "an input that is not there": {"input": "nothing"},
    "an input without anything": {"input": "empty"},
    "an input without images": {"input": "texts"},
    "two images of one key": {"input": "twice.csv"},
    "a manifest that is broken further down": {"input": "late.csv"},
    "weights that are not there": {"weights": "nothing.pth"},
    "a class file that is not there": {"classes": "nothing.txt"},
    "classes that nobody knows": {"weights": "demo", "select": "misclassified"},
    "a size that does not suit": {"size": 1},
    "a stage that is none": {"stages": "nothing"},
}


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("output", ["new/deep/out", "there"])
def test_a_refused_run_leaves_no_trace(one_photo, network_file, monkeypatch, kind, output):
    if kind == "a device that is not there" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    own = one_photo / "there" / "masks"  # of the user's
    own.mkdir(parents=True)
    (own / "truth.png").write_bytes(b"1")
    monkeypatch.chdir(one_photo)
    before = sorted(one_photo.rglob("*"))
    fields = {"input": "photos", "output": output, "weights": network_file, "size": 32, "runner": "local"}
    with pytest.raises(UsageError):
        run(RunConfig(**fields | REFUSALS[kind]))
    assert sorted(one_photo.rglob("*")) == before


@pytest.mark.parametrize("kind", ["a class file that does not match", "two images of one key"])
def test_a_refused_overwrite_clears_nothing(one_photo, network_file, kind):
    (one_photo / "names.txt").write_text("bird\ncats\ndog\n")
    asked = RunConfig(
        input=str(one_photo / "photos"), output=str(one_photo / "out"), weights=network_file, size=32, runner="local",
        outputs=("mask",),
    )  # fmt: skip
    run(asked)
    before = {path: path.stat().st_mtime_ns for path in (one_photo / "out").rglob("*") if path.is_file()}
    other = {"input": str(one_photo / "twice.csv")} if "key" in kind else {"classes": str(one_photo / "names.txt")}
    with pytest.raises(UsageError, match="two images|do not match"):
        run(dataclasses.replace(asked, resume_mode="overwrite", **other))
    assert {path: path.stat().st_mtime_ns for path in (one_photo / "out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("output", ["texts/a.md", "texts/a.md/below/it"])
def test_an_output_that_can_be_no_folder_is_refused_first(one_photo, output):
    places = {"input": str(one_photo / "photos"), "output": str(one_photo / output)}
    with pytest.raises(UsageError, match=r"OUTPUT \(=.*\) cannot be a folder: .*a\.md is none; choose another"):
        run(RunConfig(**places, weights="nothing.pth"))


@pytest.mark.parametrize("lost", [["run.json", "manifest.json"], ["run.json"]])
def test_a_refused_run_keeps_a_ledger_without_its_record(one_photo, network_file, lost):
    output = one_photo / "out"
    asked = RunConfig(
        input=str(one_photo / "photos"), output=str(output), weights=network_file, size=32, runner="local",
        outputs=("mask",),
    )  # fmt: skip
    run(asked)
    for name in lost:
        (output / "_run" / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="is gone"):
        run(asked)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_a_refused_run_keeps_what_others_put_into_its_own_folder(one_photo, network_file):
    notes = one_photo / "out" / "_run" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("of somebody else")
    places = {"input": str(one_photo / "texts"), "output": str(one_photo / "out")}
    with pytest.raises(UsageError, match="holds no images"):
        run(RunConfig(**places, weights=network_file, size=32, runner="local"))
    assert notes.exists()


def test_a_refresh_that_is_refused_for_a_folder_takes_nothing_of_it_on(one_photo, network_file):
    """Taken away again, the folder that is no class has left no trace; an image that changed is done again."""
    photos, output = one_photo / "photos", one_photo / "out"
    asked = RunConfig(
        input=str(photos), output=str(output), weights=network_file, size=32, runner="local", outputs=("mask",)
    )
    run(asked)
    (photos / "stray").mkdir()
    shutil.copy(photos / "cat" / "a.png", photos / "stray" / "b.png")
    os.utime(photos / "cat" / "a.png", ns=(1, 1))
    for _ in range(2):
        with pytest.raises(UsageError, match="'stray'"):
            run(dataclasses.replace(asked, refresh=True))
    shutil.rmtree(photos / "stray")
    summary = run(dataclasses.replace(asked, refresh=True))
    assert (summary.images, summary.ok) == (1, 1)
    assert (output / "_SUCCESS").exists()


def test_a_submitted_job_has_no_place_of_its_own(monkeypatch, tmp_path):
    prepare.absolute(RunConfig(input="photos", output="out"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for places in ({"input": "photos", "output": "/shared/out"}, {"input": "s3://b/photos", "output": "out"}):
        with pytest.raises(UsageError, match="PUT .*counts from the folder that Ray made for this job"):
            prepare.absolute(RunConfig(**places))
    config = RunConfig(input="s3://b/photos", output="/shared/out", weights="sent/along.pth")
    assert prepare.absolute(config).output == "/shared/out"
