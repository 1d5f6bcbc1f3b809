"""What goes wrong around a run: other runs, servers, disks, late writers."""

import dataclasses
import errno
import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from tests.servers import S3Server
from vbp.errors import InterruptedRunError, UsageError
from vbp.networks.preprocessing import IMAGENET
from vbp.pipeline import Observer, RunConfig, run
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.record import Record, fingerprint
from vbp.storage.files import Folder
from vbp.storage.ledger import lease
from vbp.storage.ledger.compaction import compact
from vbp.storage.ledger.parts import write_part
from vbp.storage.manifest.manifest import Manifest
from vbp.storage.stores import local as local_store


def config(photos, out, network_file, **changes):
    fields = {"input": str(photos), "output": str(out), "weights": network_file, "size": 32, "precision": "float32"}
    return RunConfig(**fields | {"runner": "local", "batch_size": 4, "shard_size": 4} | changes)


def keys_of(folder):
    tables = [pq.read_table(io.BytesIO(folder.read(path)), columns=["key"]) for path in folder.list("index")]
    return sorted(key for table in tables for key in table["key"].to_pylist())


def test_two_runs_started_at_once_share_the_work_and_double_nothing(photos, network_file, tmp_path):
    made = config(photos, tmp_path / "out", network_file)
    arguments = [sys.executable, "-m", "vbp.cli", "explain", made.input, made.output, "--weights", network_file]
    arguments += ["--size", "32", "--batch-size", "4", "--shard-size", "4", "--precision", "float32", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
        while not (tmp_path / "out" / "_run" / "lease.json").exists():
            assert other.poll() is None, other.communicate()
            time.sleep(0.01)
        summary = run(made)
        stdout, stderr = other.communicate(timeout=300)
    theirs = json.loads(stdout)
    assert (theirs["ok"], theirs["computed"], theirs["succeeded"]) == (22, 22, True), stderr
    assert (summary.ok, summary.computed, summary.succeeded) == (22, 0, True)
    keys = keys_of(Folder(tmp_path / "out"))
    assert len(keys) == len(set(keys)) == 22


STOPS_ITSELF = """
import os, signal, sys
from vbp.pipeline import Observer, RunConfig, run
class Stopping(Observer):
    def wrote(self, ok, error):
        if not self.stopped:
            self.stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)
    stopped = False
source, output, weights = sys.argv[1:]
try:
    run(RunConfig(input=source, output=output, weights=weights, size=32, precision="float32", runner="local",
                  batch_size=4, shard_size=4), Stopping())
except Exception as error:
    print(type(error).__name__, error)
"""


def results_of(out):
    """All files but the marks of work in hand."""
    files = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith(("begun-", "alone-")))
    return {path: path.read_bytes() for path in files}


def test_a_run_that_was_cut_off_and_comes_back_commits_nothing_more(photos, network_file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", STOPS_ITSELF, str(photos), str(out), network_file]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    monkeypatch.setattr(lease, "Lease", functools.partial(lease.Lease, take_over_after=2.0))
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as cut_off:
        try:
            os.waitpid(cut_off.pid, os.WUNTRACED)
            summary = run(config(photos, out, network_file))
            assert summary.succeeded
            assert summary.computed < 22
            before = results_of(out)
            cut_off.send_signal(signal.SIGCONT)
            said, _ = cut_off.communicate(timeout=120)
        finally:
            cut_off.kill()  # else a test that failed would wait for a process that stands still
    assert said.startswith("InterruptedRunError")
    assert "lost" in said
    assert results_of(out) == before
    assert run(config(photos, out, network_file)).computed == 0


def test_a_late_write_of_an_attempt_that_was_given_up_doubles_no_row(photos, network_file, tmp_path):
    """It may pass the lease's check and write its part much later: its rows are those that are there."""
    folder = Folder(tmp_path / "out")
    run(config(photos, folder.url, network_file))
    keys = keys_of(folder)
    for path in folder.list("_run/parts"):
        rows = pq.read_table(io.BytesIO(folder.read(path)))
        write_part(folder, rows.drop_columns("shard"), rows["shard"][0].as_py(), "given-up")
    totals = compact(folder, Manifest.load(folder))
    assert (totals.ok, totals.missing) == (22, 0)
    assert keys_of(folder) == keys
    assert run(config(photos, folder.url, network_file)).computed == 0


OTHER_VALUES = {
    "model": "vgg11", "preset": "reference", "size": 64, "fit": "pad", "frame": "image", "select": "correct",
    "classes": "names.txt", "outputs": ("mask",), "mask_format": "npy", "overlay_style": "red", "layout": "none",
    "fast_decode": True, "decode": "gpu", "input": "elsewhere", "weights": "0" * 64, "precision": "bfloat16",
    "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "channels": "bgr",
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_a_resumed_run_with_another_configuration_names_the_field_that_differs(tmp_path, name):
    made = RunConfig(input="photos", output=str(tmp_path))
    recipe = Recipe(config=made, run_id="a", device="cpu", precision="float32", batch_size=8, weights_sha256="f" * 64)
    record = Record(Folder(tmp_path), {"fingerprint": fingerprint(recipe)})
    record.refuse_other(recipe)
    own = {"weights": "weights_sha256", "precision": "precision"}
    if name in own:
        other = dataclasses.replace(recipe, **{own[name]: OTHER_VALUES[name]})
    elif name in IMAGENET.as_json():
        seen = dataclasses.replace(IMAGENET, **{name: OTHER_VALUES[name]})
        other = dataclasses.replace(recipe, preprocessing=seen)
    else:
        other = dataclasses.replace(recipe, config=dataclasses.replace(made, **{name: OTHER_VALUES[name]}))
    with pytest.raises(UsageError, match=f"another configuration: {name} was [^;]*, now [^;]*$"):
        record.refuse_other(other)


def test_every_field_of_the_fingerprint_has_its_test(tmp_path):
    made = RunConfig(input="photos", output=str(tmp_path))
    recipe = Recipe(config=made, run_id="a", device="cpu", precision="float32", batch_size=8, weights_sha256="f" * 64)
    missing = set(fingerprint(recipe)) - set(OTHER_VALUES) - {"method"}
    assert not missing & {"model", "preset", "size", "fit", "frame", "select", "outputs", "mask_format", "layout"}
    differing = [field for field in ("batch_size", "shard_size", "workers", "limit") if field in fingerprint(recipe)]
    assert differing == []


def test_a_full_disk_interrupts_and_the_next_run_continues(photos, network_file, tmp_path, monkeypatch):
    fill, filled = local_store._fill, []

    def full(descriptor, data):
        filled.append(data)
        if len(filled) > 40:
            os.close(descriptor)
            raise OSError(errno.ENOSPC, "No space left on device")
        fill(descriptor, data)

    monkeypatch.setattr(local_store, "_fill", full)
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError, match="No space left on device.*run the same command again"):
        run(config(photos, out, network_file))
    assert not (out / "_SUCCESS").exists()
    assert not list(out.rglob("*.tmp"))
    kept = sum(pads.dataset(part).count_rows() for part in out.glob("_run/parts/*/*.parquet"))
    monkeypatch.undo()
    summary = run(config(photos, out, network_file))
    assert (summary.ok, summary.computed) == (22, 22 - kept)


@pytest.mark.parametrize("fault", ["paused", "killed and started again"])
def test_a_server_that_is_away_for_a_while(photos, network_file, tmp_path_factory, s3_server, fault):
    server = S3Server(tmp_path_factory.mktemp("own-s3"))
    server.start()
    folder = Folder(server.new_url(), server.storage_options)
    for path in photos.rglob("*.*"):
        folder.write(f"photos/{path.relative_to(photos)}", path.read_bytes())
    timers = []

    class Away(Observer):
        def wrote(self, ok, error):
            if not timers:
                server.pause() if fault == "paused" else server.kill()
                timers.append(threading.Timer(3, server.resume if fault == "paused" else server.start))
                timers[0].start()

    made = config(folder.uri("photos"), folder.uri("out"), network_file, storage_options=server.storage_options)
    try:
        for _ in range(3):
            try:
                summary = run(made, Away())
                break
            except InterruptedRunError:  # it was away for longer than is waited for
                timers[0].join()
                if server.process.poll() is not None:  # a busy machine may take longer than a start may
                    server.start()
        assert (summary.ok, summary.error, summary.succeeded) == (22, 0, True)
        keys = keys_of(folder.child("out"))
        assert len(keys) == len(set(keys)) == 22
    finally:
        timers[0].join()
        server.kill()
