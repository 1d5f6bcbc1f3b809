"""The measurement of a listing, on a few files, without Ray: that they list all, and what is estimated from them."""

import json

import pytest

from vbp.evidence import listing
from vbp.evidence.scale import touch
from vbp.storage.spreading import here


def test_a_tree_is_listed_as_by_a_run_and_its_tasks_are_clocked(tmp_path, monkeypatch):
    monkeypatch.setattr("vbp.evidence.scale.FILES_A_FOLDER", 20)
    touch(tmp_path / "tree", 150)
    for name in ("one", "tasks"):
        work = listing._tasks if name == "tasks" else lambda *arguments: listing._write(*arguments, None)
        took = work(str(tmp_path / "tree"), str(tmp_path / name), {}, 150)
        record = json.loads((tmp_path / name / "_run" / "manifest.json").read_text())
        assert (record["images"], len(record["labels"])) == (150, 8)
        listing._refresh(str(tmp_path / "tree"), str(tmp_path / name), {}, 150, here)
    assert took > 0


@pytest.mark.parametrize(("ours", "minutes"), [(0.0, 312.5 / 60), (4e-6, 400 / 60)])
def test_what_is_estimated_from_seconds_a_file(monkeypatch, ours, minutes):
    """The workers' CPU is divided among them, the driver's is not."""
    monkeypatch.setattr(listing.stretches, "ALONE", 0)
    alone, shared = listing._estimates(1e-4, 1e-4, ours, "on a disk")
    assert alone.values == [pytest.approx(1e4 / 60)]
    assert shared.values == [pytest.approx(minutes)]
    assert alone.detail == "not measured"
