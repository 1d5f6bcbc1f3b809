"""The measurements of scale, on a few files: that they run, and that the table says what they found."""

import json

import pytest

from vbp.evidence import scale
from vbp.evidence.scale import Figure, markdown
from vbp.pipeline import RunConfig


def test_listing(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "FILES_A_FOLDER", 20)
    listed, memory, again = scale.listing(tmp_path, 50)
    record = json.loads((tmp_path / "listed" / "_run" / "manifest.json").read_text())
    assert (record["images"], record["labels"]) == (50, ["class00000", "class00001", "class00002"])
    assert listed.name == "50 files listed to the manifest"
    assert memory.reached
    assert " MB" in again.value


def test_resume(tmp_path):
    pending, progress, command = scale.resume(tmp_path, 30, None, {})
    assert pending.name == "pending_shards of 30 finished images on a disk"
    assert progress.target == ""
    assert command.target == "10 s"
    assert (tmp_path / "finished" / "_SUCCESS").exists()


def test_memory_is_what_a_process_has_to_itself():
    found = scale._measured(_hold, 50)
    assert found.value == 50 << 20
    assert 50 < found.own < 1000
    assert found.workers == 0


def _hold(megabytes):
    import time

    held = b"\1" * (megabytes << 20)
    time.sleep(1)
    return len(held)


def test_flags_are_what_differs_from_the_defaults():
    config = RunConfig(input="in", output="out", size=32, storage_options={"s3://b": {"anon": True}})
    assert scale._flags(config) == ["--size", "32", "--storage-options", '{"s3://b": {"anon": true}}']


@pytest.mark.parametrize(("reached", "word"), [(True, "reached"), (False, "falls short"), (None, "")])
def test_the_table(reached, word):
    line = markdown([Figure("resume", "3 s", "10 s", reached)]).splitlines()[-1]
    assert line == f"| resume | 3 s | 10 s | {word} |"
