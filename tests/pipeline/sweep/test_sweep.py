"""Many runs as one, held against each run made by itself."""

import dataclasses
import io
import json
import shutil
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.dataset as pads
import pytest

from vbp.errors import InterruptedRunError, UsageError
from vbp.networks import models
from vbp.pipeline import Observer, run
from vbp.pipeline.sweep.sweep import sweep
from vbp.pipeline.sweep.sweepfile import parse_sweep
from vbp.review.output import Output
from vbp.storage.files import Folder
from vbp.storage.record import SWEEP, is_complete

GRID = "grid: {{weights: {{small: {weights}, random: random}}, preset: [paper, reference]}}"
NAMES = [f"weights-{weights}--preset-{preset}" for weights in ("small", "random") for preset in ("paper", "reference")]
EXCEPTED = {"run_id", "seconds", "finished_at", "mask_uri", "overlay_uri"}


class Heard(Observer):
    """Remembers what it is told; may stop the sweep."""

    def __init__(self, stop_after=None):
        self.notes, self.images, self.done, self.stop_after = [], 0, 0, stop_after

    def note(self, text):
        self.notes.append(text)

    def started(self, images, done):
        self.images, self.done = images, done

    def wrote(self, ok, error):
        self.done += ok + error
        if self.stop_after is not None and self.done >= self.stop_after:
            raise KeyboardInterrupt


def parsed(photos, network_file, out, grid=GRID, runner="local", **keys):
    common = f"{{size: 32, precision: float32, runner: {runner}, batch_size: 4, shard_size: 5, mask_format: npy}}"
    lines = {"output": out, "inputs": photos, "common": common} | keys
    text = "\n".join(f"{key}: {value}" for key, value in lines.items())
    return parse_sweep(f"{text}\n{grid.format(weights=network_file)}")


@pytest.fixture
def asked(photos, network_file, tmp_path):
    """A sweep of two networks and two presets over the photos; changes by key of the file."""
    return lambda *args, **changes: parsed(photos, network_file, tmp_path / "out", *args, **changes)


@pytest.fixture(scope="module")
def alone(photos, network_file, tmp_path_factory):
    """The same runs, each by itself."""
    asked = parsed(photos, network_file, tmp_path_factory.mktemp("alone"))
    for one in asked.runs:
        run(one.config)
    return {one.name: one.config.output for one in asked.runs}


def rows_of(folder):
    return {row["key"]: row for row in pads.dataset(Path(folder) / "index").to_table().to_pylist()}


def masks_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder, "masks").rglob("*.npy"))}


def assert_equal_to_single_runs(asked, alone, *, exact=True):
    for one in asked.runs:
        rows, others = rows_of(one.config.output), rows_of(alone[one.name])
        assert rows.keys() == others.keys()
        for key, row in rows.items():
            for name in row.keys() - EXCEPTED:
                wanted = others[key][name]
                close = pytest.approx(wanted, rel=1e-4, abs=1e-5) if isinstance(wanted, float) else wanted
                assert row[name] == close, (one.name, key, name)
        masks, other_masks = masks_of(one.config.output), masks_of(alone[one.name])
        assert masks.keys() == other_masks.keys()
        for name, data in masks.items():
            if exact:
                assert data == other_masks[name]
            pixels, others = np.load(io.BytesIO(data)), np.load(io.BytesIO(other_masks[name]))
            np.testing.assert_allclose(pixels, others, atol=1e-5)


def test_each_run_is_as_if_it_were_alone(asked, alone, tmp_path):
    heard = Heard()
    summary = sweep(asked(), heard)
    assert summary.exit_code == 0
    assert [outcome.run.name for outcome in summary.outcomes] == NAMES
    assert {(o.summary.images, o.summary.ok, o.summary.computed) for o in summary.outcomes} == {(22, 22, 22)}
    assert (heard.images, heard.done) == (88, 88)
    assert_equal_to_single_runs(asked(), alone)

    combined = pads.dataset(tmp_path / "out" / "index").to_table().to_pylist()
    assert len(combined) == 88
    single = {name: rows_of(tmp_path / "out" / "runs" / name) for name in NAMES}
    for row in combined:
        name = row.pop("run")
        assert (row.pop("run_weights"), row.pop("run_preset")) == tuple(part.split("-")[1] for part in name.split("--"))
        assert row == single[name][row["key"]]
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_network_is_loaded_once_for_all_its_runs(asked, monkeypatch):
    loaded = []
    load = models.load_model
    monkeypatch.setattr(
        models, "load_model", lambda model, weights, **k: loaded.append(weights) or load(model, weights, **k)
    )
    one_network = "grid: {{preset: [paper, reference], size: [32, 48]}}\nvariants: {{a: {{weights: {weights}}}}}"
    made = asked(one_network, common="{precision: float32, runner: local, limit: 3}")
    assert sweep(made).exit_code == 0
    assert len(made.runs) == 4
    assert len(loaded) == 1


def test_a_second_time_nothing_is_left_to_do(asked, tmp_path):
    made = asked("grid: {{preset: [paper, reference]}}\nvariants: {{a: {{weights: {weights}}}}}")
    sweep(made)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    heard = Heard()
    summary = sweep(made, heard)
    assert heard.notes == ["Nothing left to do: every image has its row."]
    assert (summary.exit_code, {outcome.summary.computed for outcome in summary.outcomes}) == (0, {0})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("images", [1, 50])
def test_interrupted_it_goes_on(asked, tmp_path, monkeypatch, images):
    monkeypatch.setattr("vbp.pipeline.local.COMMIT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        sweep(asked(), Heard(stop_after=images))
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert not list(tmp_path.rglob("lease.json"))
    done = sum(
        json.loads(path.read_text())["summary"]["ok"]
        for path in tmp_path.rglob("run.json")
        if "summary" in path.read_text()
    )
    heard = Heard()
    summary = sweep(asked(), heard)
    assert (summary.exit_code, heard.images, heard.done) == (0, 88, 88)
    computed = sum(outcome.summary.computed for outcome in summary.outcomes)
    assert 88 - images - 8 <= computed <= 88 - images
    assert done <= images
    assert pads.dataset(tmp_path / "out" / "index").count_rows() == 88


def test_a_run_that_is_refused_stops_all_before_any_work(asked, tmp_path):
    sweep(asked("grid: {{preset: [paper]}}\nvariants: {{a: {{weights: {weights}}}}}"))
    shutil.rmtree(tmp_path / "out" / "runs" / "variant-a--preset-paper" / "index")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    other = "variants: {{a: {{weights: {weights}, size: 48}}}}\ngrid: {{preset: [paper, reference]}}"
    with pytest.raises(UsageError, match="run variant-a--preset-paper: .* size was 32, now 48"):
        sweep(asked(other))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_one_run_that_fails_leaves_the_others_alone(asked, tmp_path):
    """Where its first mask goes, there is a folder."""
    blocked = tmp_path / "out" / "runs" / NAMES[1] / "masks" / "bird" / "00.jpg.npy"
    blocked.mkdir(parents=True)
    summary = sweep(asked())
    assert summary.exit_code == 4
    codes = {outcome.run.name: outcome.exit_code for outcome in summary.outcomes}
    assert codes == {name: 4 if name == NAMES[1] else 0 for name in NAMES}
    (failed,) = [outcome for outcome in summary.outcomes if outcome.summary is None]
    assert "masks" in failed.reason
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert not list(tmp_path.rglob("lease.json"))
    blocked.rmdir()
    repaired = sweep(asked())
    assert repaired.exit_code == 0
    assert [outcome.summary.computed for outcome in repaired.outcomes] == [0, 22, 0, 0]
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_crash_in_one_run_leaves_the_others_alone(asked, monkeypatch):
    """Such as the memory of a GPU that does not suffice for one size."""
    from vbp.pipeline.steps import Explain

    real = Explain.run

    def crashing(self, batch):
        if batch["pixels"].shape[1] == 48:
            raise RuntimeError("CUDA out of memory")
        return real(self, batch)

    monkeypatch.setattr(Explain, "run", crashing)
    common = "{precision: float32, runner: local, limit: 3, weights: %s}"
    made = asked("grid: {{size: [32, 48, 64]}}", common=common % "demo")
    summary = sweep(made)
    assert [outcome.exit_code for outcome in summary.outcomes] == [0, 1, 0]
    assert (summary.exit_code, summary.outcomes[1].reason) == (1, "RuntimeError: CUDA out of memory")


def test_too_many_failures_in_one_run(asked, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "bad")
    (tmp_path / "bad" / "cat" / "01.png").write_bytes(b"no image")
    made = asked(inputs=f"{{good: {photos}, bad: {tmp_path / 'bad'}}}", grid="variants: {{a: {{weights: {weights}}}}}")
    summary = sweep(made)
    assert (summary.exit_code, [outcome.exit_code for outcome in summary.outcomes]) == (3, [0, 3])
    assert pads.dataset(tmp_path / "out" / "index").count_rows() == 44
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert [outcome.summary.computed for outcome in sweep(made).outcomes] == [0, 0]


def test_an_input_is_listed_once_also_for_runs_that_come_later(asked, photos, tmp_path):
    """So that all runs are of the same images."""
    shutil.copytree(photos, tmp_path / "tree")
    sweep(asked("grid: {{preset: [paper]}}\nvariants: {{a: {{weights: {weights}}}}}", inputs=tmp_path / "tree"))
    shutil.copy(photos / "cat" / "01.png", tmp_path / "tree" / "cat" / "new.png")
    more = asked(
        "grid: {{preset: [paper, reference]}}\nvariants: {{a: {{weights: {weights}}}}}", inputs=tmp_path / "tree"
    )
    summary = sweep(more)
    assert [(o.summary.images, o.summary.computed) for o in summary.outcomes] == [(22, 0), (22, 22)]


@pytest.mark.parametrize("by_another_name", [False, True])
def test_a_run_that_changed_by_itself(asked, photos, tmp_path, by_another_name):
    """By its own name it takes the promise of the whole back; by another, its own promise is not the promised one."""
    tree, sweep_folder = tmp_path / "tree", Folder(tmp_path / "out")
    shutil.copytree(photos / "cat", tree)
    made = asked("grid: {{preset: [paper, reference]}}\nvariants: {{a: {{weights: {weights}}}}}", inputs=tree)
    sweep(made)
    assert is_complete(sweep_folder, SWEEP)
    shutil.copy(photos / "dog" / "02.bmp", tree)
    config = dataclasses.replace(made.runs[0].config, refresh=True)
    if by_another_name:
        (tmp_path / "alias").symlink_to(config.output)
        config = dataclasses.replace(config, output=str(tmp_path / "alias"))
    assert run(config).computed == 1
    assert Path(sweep_folder.url, "_SUCCESS").exists() == by_another_name
    assert not is_complete(sweep_folder, SWEEP)
    with pytest.raises(UsageError, match=r"a sweep's, of 2 runs, its index not complete: run vbp sweep again"):
        Output.at(sweep_folder)
    assert sweep(made).exit_code == 0
    assert is_complete(sweep_folder, SWEEP)
    with pytest.raises(UsageError, match="a sweep's, of 2 runs, its index complete; give"):
        Output.at(sweep_folder)
    rows = pads.dataset(tmp_path / "out" / "index").to_table(columns=["run", "key"]).to_pylist()
    images = [sum(row["run"] == one.name for row in rows) for one in made.runs]
    assert images == [8, 7]


def test_the_budget_ends_the_sweep_and_counts_all_attempts(asked, tmp_path, monkeypatch):
    made = asked(budget="{max_cost: 0.001, price_per_hour: 3.6}")  # one second
    moments = iter(range(10**6))
    clock = SimpleNamespace(monotonic=lambda: next(moments) / 10, perf_counter=time.perf_counter)
    monkeypatch.setattr("vbp.pipeline.sweep.sweep.time", clock)
    summary = sweep(made)
    assert summary.exit_code == 4
    reasons = {outcome.reason for outcome in summary.outcomes if outcome.summary is None}
    (reason,) = reasons
    assert reason.startswith("budget.max_cost (=0.001) is spent")
    assert "Raise it, and run the same command again" in reason
    assert summary.cost >= 0.001
    with pytest.raises(InterruptedRunError, match="max_cost"):
        sweep(made)
    assert sweep(asked()).exit_code == 0


def test_on_ray_with_shared_workers(asked, alone, tmp_path, ray_session):
    """One of the runs fails, and is done by the same command later."""
    blocked = tmp_path / "out" / "runs" / NAMES[2] / "masks" / "bird" / "00.jpg.npy"
    blocked.mkdir(parents=True)
    made = asked(runner="ray, workers: 1")
    summary = sweep(made)
    assert [outcome.exit_code for outcome in summary.outcomes] == [0, 0, 4, 0]
    assert "masks" in summary.outcomes[2].reason
    blocked.rmdir()
    summary = sweep(made)
    assert [(o.summary.runner, o.summary.computed) for o in summary.outcomes] == [("ray", n) for n in (0, 0, 22, 0)]
    assert_equal_to_single_runs(made, alone, exact=False)


def test_in_the_shape_for_gpus(asked, alone, ray_session, monkeypatch):
    """Batches have images of several runs, whose shards have few."""
    import vbp.pipeline.on_ray.dataset as plans

    monkeypatch.setattr(plans, "plan", partial(plans.plan, spread=True))
    made = asked(runner="ray, workers: 1")
    assert sweep(made).exit_code == 0
    assert_equal_to_single_runs(made, alone, exact=False)
