"""The check as a whole, dry: on a CPU, where nothing can be imported that a bare GPU machine lacks."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vbp import cli
from vbp.errors import UsageError
from vbp.evidence.expected import expectations
from vbp.evidence.gpucheck.check import BATCH, DRY_BATCH, _whole, gpu_check
from vbp.evidence.gpucheck.rates import ON_DEVICE
from vbp.evidence.gpucheck.scope import Piece, Scope
from vbp.evidence.gpucheck.sections import SECTIONS
from vbp.evidence.inputs import write_photos
from vbp.evidence.page import page
from vbp.evidence.timing import Figure

ROOT = Path(__file__).parents[3]
ABSENT = (
    "adlfs", "captum", "cv2", "gcsfs", "imagecodecs", "obstore", "paramiko", "pytorch_grad_cam", "s3fs", "simplejpeg",
    "zennit",
)  # fmt: skip
"""What no machine need have for the check and for runs on its own disk."""
WITH_RAY = ("job", "worker")
"""Sections with tests of their own, since starting Ray takes as long as all others."""
BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def bare(tmp_path):
    """The environment of processes that cannot import what is absent."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}


def dry(environment, folder, *names):
    command = [sys.executable, "-m", "jobs.gpu_check", "--dry", "--sections", ",".join(names), "--output", folder]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder.parent)


def is_known(expected, figures):
    """Whether the dry check has a figure of that name."""
    name = expected.name.replace(f"batches of {BATCH}", f"batches of {DRY_BATCH}")
    return any(
        (each["part"], each["unit"]) == (expected.part, expected.unit) and each["name"].startswith(name)
        for each in figures
    )


def test_the_command_knows_all_sections():
    assert tuple(SECTIONS) == cli.CHECKED


def test_a_section_that_does_not_exist_is_named():
    with pytest.raises(UsageError, match="--sections names 'rate', which is none of machine, correctness, rates,"):
        gpu_check(["machine", "rate"], seconds=1, is_dry=True, weights=None, report=print)


@pytest.mark.long
def test_all_sections_without_ray_are_whole_on_a_bare_machine(bare, tmp_path):
    names = [name for name in SECTIONS if name not in WITH_RAY]
    done = dry(bare, tmp_path / "out", *names)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    found = json.loads(last)
    assert list(found["sections"]) == names
    assert {figure["part"] for figure in found["figures"]} == set(names)
    assert [note for note in found["notes"] if "is not whole" in note or "failed" in note] == []
    wrong = [each["name"] for each in found["figures"] if each["part"] == "correctness" and not each["reached"]]
    assert wrong == []
    unknown = [
        each.name for each in expectations() if each.part not in WITH_RAY and not is_known(each, found["figures"])
    ]
    assert unknown == [f"{ON_DEVICE}, as a CUDA graph"]
    assert json.loads((tmp_path / "out" / "gpu-check.json").read_text()) == found
    assert done.stdout.startswith((tmp_path / "out" / "gpu-check.md").read_text())
    assert page(found) in done.stdout


WORKERS_IMPORT = """
from vbp.pipeline.on_ray import dataset, preflight, reports, workers
from vbp.pipeline import RunConfig, run
assert run(RunConfig(input="photos", output="out", weights="demo", size=64, runner="local")).succeeded
"""


@pytest.mark.long
def test_the_main_job_runs_locally_on_a_bare_machine(bare, tmp_path):
    write_photos(tmp_path / "photos", 2)
    done = subprocess.run(
        [sys.executable, "-c", WORKERS_IMPORT], env=bare, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 2


@pytest.mark.slow
def test_the_main_job_runs_through_ray_on_a_bare_machine(bare, tmp_path):
    done = dry(bare, tmp_path / "out", *WITH_RAY)
    assert done.returncode == 0, done.stderr
    assert [figure["name"] for figure in json.loads(done.stdout.splitlines()[-1])["figures"]][:1] == [
        "main job through Ray, 1 worker"
    ]


class Pretended:
    """A clock that only sections move, which have no process of their own."""

    now = 1000.0

    def monotonic(self):
        return self.now

    def limited(self, work, argument, seconds, receive):
        if isinstance(argument, Scope):
            return self.section(argument, seconds, receive)
        receive({"cores": 16})
        return ""


class Watch(Pretended):
    """What each section was allowed and yielded."""

    def __init__(self, taken):
        self.taken, self.allowed = taken, []

    def section(self, scope, seconds, receive):
        self.allowed.append(round(seconds, 6))
        self.now += min(seconds, self.taken.pop(0))
        receive(Figure("machine", "rate", [2.0], "GB/s"))
        receive("a note")
        return "stopped" if len(self.allowed) == 2 else ""


def test_each_section_has_its_time_and_what_those_before_it_left(monkeypatch):
    watch = Watch(taken=[5, 500, 1])
    monkeypatch.setattr("vbp.evidence.gpucheck.check.limited", watch.limited)
    monkeypatch.setattr("time.monotonic", watch.monotonic)
    lines = []
    names = ["rates", "codecs", "machine"]
    whole = sum(SECTIONS[name].seconds for name in names)
    found = gpu_check(names, seconds=2 * whole, is_dry=True, weights=None, report=lambda _, line: lines.append(line))
    machine, rates, codecs = (2 * SECTIONS[name].seconds for name in ("machine", "rates", "codecs"))
    assert watch.allowed == [machine, machine + rates - 5, codecs]
    assert found["sections"] == {"machine": 5, "rates": machine + rates - 5, "codecs": 1}
    notes = ["machine: a note", "rates: a note", "rates is not whole: stopped.", "codecs: a note"]
    assert found["notes"][1:] == notes
    assert len(found["figures"]) == 3
    assert lines == ["machine: 5.0 s", f"rates: {machine + rates - 5.0} s, stopped", "codecs: 1.0 s"]


class Fragile(Pretended):
    """Sections of pieces, of which some end their process; each process takes a second."""

    def __init__(self, pieces, deadly):
        self.pieces, self.deadly, self.begun = pieces, deadly, []

    def section(self, scope, seconds, receive):
        self.now += 1
        self.begun.append(list(scope.behind))
        for piece in self.pieces:
            if piece in scope.behind:
                continue
            receive(Piece(piece))
            if piece in self.deadly:
                return f"its process died (exit code {self.deadly[piece]})"
            receive(Figure("rates", piece, [2.0]))
        return ""


def checked(monkeypatch, pieces, deadly, seconds=60):
    fragile = Fragile(pieces, deadly)
    monkeypatch.setattr("vbp.evidence.gpucheck.check.limited", fragile.limited)
    monkeypatch.setattr("time.monotonic", fragile.monotonic)
    found = gpu_check(["rates"], seconds=seconds, is_dry=True, weights=None, report=lambda *_: None)
    return [each["name"] for each in found["figures"]], found["notes"][1:], fragile.begun


def test_a_piece_that_ends_its_process_costs_only_itself(monkeypatch):
    figures, notes, begun = checked(monkeypatch, ["bare", "fused", "pools", "means"], {"fused": -11})
    assert figures == ["bare", "pools", "means"]
    assert notes == ["rates is not whole: its process died (exit code -11), in fused."]
    assert begun == [[], ["bare", "fused"]]


def test_each_such_piece_is_named(monkeypatch):
    figures, notes, _ = checked(monkeypatch, ["bare", "fused", "pools", "means"], {"fused": -11, "means": -6})
    assert figures == ["bare", "pools"]
    assert notes == [
        "rates is not whole: its process died (exit code -11), in fused; its process died (exit code -6), in means."
    ]


def test_where_no_time_is_left_no_process_begins(monkeypatch):
    figures, _, begun = checked(monkeypatch, ["bare", "fused", "pools"], {"bare": 1, "fused": 1}, seconds=2)
    assert (figures, len(begun)) == ([], 2)


def test_a_section_without_pieces_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(Fragile, "limited", lambda self, work, argument, *_: self.begun.append(argument) or "failed")
    fragile = Fragile([], {})
    scope = Scope(device="cpu", batch_size=2, size=32, rounds=1, weights=None, is_dry=True)
    monkeypatch.setattr("vbp.evidence.gpucheck.check.limited", fragile.limited)
    assert _whole("codecs", SECTIONS["codecs"], scope, time.monotonic() + 60, print) == "failed"
    assert len(fragile.begun) == 1


def test_a_machine_that_cannot_be_asked_is_told(monkeypatch):
    monkeypatch.setattr("vbp.evidence.gpucheck.check.limited", lambda *_: "failed: OSError: libcuda")
    with pytest.raises(UsageError, match=r"could not be found out \(failed: OSError: libcuda\): see above"):
        gpu_check(["machine"], seconds=1, is_dry=False, weights=None, report=print)


def test_no_gpu_is_told_before_any_work(monkeypatch):
    monkeypatch.setattr(
        "vbp.evidence.gpucheck.check.limited", lambda work, argument, seconds, receive: receive(None) or ""
    )
    with pytest.raises(UsageError, match="torch sees no CUDA device: vbp gpu-check needs one; --dry tries it"):
        gpu_check(["machine"], seconds=1, is_dry=False, weights=None, report=print)
