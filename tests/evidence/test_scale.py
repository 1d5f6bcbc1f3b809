"""The measurements of scale, on a few files: that they run, and that the table says what they found."""

import json
import subprocess
import sys

import pytest

from vbp.evidence import scale
from vbp.evidence.scale import markdown
from vbp.pipeline import RunConfig
from vbp.pipeline.earlier import finished_earlier


@pytest.mark.long
def test_listing(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "FILES_A_FOLDER", 20)
    listed, memory, again = scale.listing(tmp_path, 50)
    record = json.loads((tmp_path / "listed" / "_run" / "manifest.json").read_text())
    assert (record["images"], record["labels"]) == (50, ["class00000", "class00001", "class00002"])
    assert listed.name == "50 files listed to the manifest"
    assert memory.reached
    assert again.unit == "s"
    assert again.detail.endswith(" MB")


def test_resume(tmp_path):
    """The finished run is such a one that its command needs no network to know that nothing is left."""
    pending, progress, command = scale.resume(tmp_path, 30, None, {})
    config = RunConfig(
        input=str(tmp_path / "few"), output=str(tmp_path / "finished"), weights=scale.CHECKPOINT, size=32,
        precision="float32", device="cpu", batch_size=scale.BATCH, runner="local",
    )  # fmt: skip
    assert finished_earlier(config).images == 30
    assert pending.name == "pending_shards of 30 finished images on a disk"
    assert progress.target is None
    assert (command.target, command.at_most) == (10, True)
    assert (tmp_path / "finished" / "_SUCCESS").exists()


def test_flags_are_what_differs_from_the_defaults():
    config = RunConfig(input="in", output="out", size=32, storage_options={"s3://b": {"anon": True}})
    assert scale._flags(config) == ["--size", "32", "--storage-options", '{"s3://b": {"anon": true}}']


def test_names_are_in_folders():
    assert list(scale.named(1001))[999:] == ["class00000/image00000999.jpg", "class00001/image00001000.jpg"]


def test_the_table():
    figures = [scale.figure("resume", 3, "s", 10, "1 s of CPU"), scale.figure("memory", 1.2, "", 1.1)]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in markdown(figures, ["resume", "ray"]).splitlines()[-2:]
    ]
    assert lines == [
        ["resume", "3.00 s", "", "", "at most 10.0 s", "reached", "1 s of CPU"],
        ["memory", "1.20", "", "", "at most 1.10", "falls short", ""],
    ]


@pytest.mark.long
def test_the_command_measures_the_driver(tmp_path):
    """Ray's workers know what they are given by the names of their modules, which differ where one is the command."""
    table = tmp_path / "scale.md"
    command = [sys.executable, "-m", "vbp.evidence.scale", table, "--parts", "driver", "--divide", "10000"]
    subprocess.run(command, check=True, timeout=300)
    assert "| Ray, 10 shards without work: first result after |" in table.read_text()
