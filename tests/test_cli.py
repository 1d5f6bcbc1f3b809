"""The command line parses, calls, and turns exceptions into sentences and exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import pyarrow.dataset as pads
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

import vbp.pipeline.job
from vbp.cli import explain, main
from vbp.errors import InterruptedRunError, StorageError


def vbp_explain(*arguments):
    return CliRunner().invoke(main, ["explain", *map(str, arguments)])


@pytest.fixture
def small(network_file):
    return ["--weights", network_file, "--size", 32, "--precision", "float32"]


def test_the_summary_table(photos, small, tmp_path):
    result = vbp_explain(photos, tmp_path / "out", *small)
    assert result.exit_code == 0, result.output
    for text in ("images", "22", "local runner", "folders are class names", str(tmp_path / "out")):
        assert text in result.stdout


def test_json_is_all_that_stands_on_standard_output(photos, small, tmp_path):
    result = vbp_explain(photos, tmp_path / "out", *small, "--json")
    summary = json.loads(result.stdout)
    assert (summary["images"], summary["ok"], summary["succeeded"], summary["runner"]) == (22, 22, True, "local")


def test_what_ray_prints_does_not_stand_there(photos, small, tmp_path, monkeypatch):
    real = vbp.pipeline.job.run

    def run(config, observer):
        sys.stdout.write("(raylet) A worker died or was killed while executing a task\n")
        return real(config, observer)

    monkeypatch.setattr("vbp.pipeline.job.run", run)
    result = vbp_explain(photos, tmp_path / "out", *small, "--json")
    assert json.loads(result.stdout)["ok"] == 22
    assert "(raylet)" in result.stderr


def test_too_many_failures_exit_3(photos, small, tmp_path):
    tree = tmp_path / "photos"
    shutil.copytree(photos, tree)
    (tree / "cat" / "bad.png").write_bytes(b"no image")
    result = vbp_explain(tree, tmp_path / "out", *small)
    assert result.exit_code == 3
    assert "1 x decode: NotAnImageError" in result.stdout
    assert "no _SUCCESS" in result.stdout
    assert vbp_explain(tree, tmp_path / "out", *small, "--max-failures", 1).exit_code == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["INPUT and OUTPUT"]),
        (["photos"], ["INPUT and OUTPUT"]),
        (["nowhere", "out"], ["nowhere", "does not exist"]),
        (["a", "a/b"], ["inside INPUT"]),
        (["a", "b", "--preset", "papper"], ["papper"]),
        (["a", "b", "--batch-size", "many"], ["many", "auto"]),
        (["a", "b", "--outputs", "movie"], ["movie", "overlay"]),
        (["a", "b", "--storage-options", "{"], ["not JSON"]),
        (["a", "b", "--no-such-option"], ["--no-such-option"]),
        (["a", "b", "--dir", "c"], ["--dir"]),
    ],
)
def test_usage_errors_exit_2_with_a_sentence(arguments, words):
    result = vbp_explain(*arguments)
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InterruptedRunError("The store is gone."), 4, "The store is gone. Run the same command again to continue."),
        (KeyboardInterrupt(), 4, "Interrupted. Run the same command again to continue."),
        (StorageError("Broken."), 1, "Broken."),
    ],
)
def test_exit_codes_of_exceptions(monkeypatch, photos, small, tmp_path, error, code, said):
    def raising(config, observer):
        raise error

    monkeypatch.setattr("vbp.pipeline.job.run", raising)
    result = vbp_explain(photos, tmp_path / "out", *small)
    assert (result.exit_code, result.stderr.strip()) == (code, f"vbp: {said}")


def test_flags_of_the_reference_project(photos, network_file, tmp_path, monkeypatch):
    """``--dir photos --cp model.pth --bs 64 --ms 7`` writes to results/, with the inputs among the outputs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    torch.save({"model": {f"module.{k}": v for k, v in load_file(network_file).items()}}, "model.pth")
    command = ["--dir", "photos", "--cp", "model.pth", "--bs", "64", "--ms", "7"]
    result = CliRunner().invoke(explain, command)
    assert result.exit_code == 0, result.output
    rows = pads.dataset("results/index").to_table().to_pylist()
    assert len(rows) == 22
    for row in rows:
        with Image.open(f"results/inputs/{row['key']}.png") as image:
            assert image.size == (224, 224)
    config = json.loads((tmp_path / "results" / "_run" / "run.json").read_text())["config"]
    assert (config["batch_size"], config["seed"], config["model"]) == (64, 7, "vgg16")


@pytest.mark.long
def test_a_reference_checkpoint_with_batch_norm_finds_its_network(photos, tmp_path, monkeypatch):
    import torchvision

    monkeypatch.chdir(tmp_path)
    state = torchvision.models.vgg16_bn(weights=None).features.state_dict()
    torch.save({"model": {f"module.features.{key}": value for key, value in state.items()}}, "model.pth")
    result = CliRunner().invoke(explain, ["--dir", str(photos), "--cp", "model.pth", "--limit", "2", "--size", "32"])
    assert result.exit_code == 0, result.output
    assert pads.dataset("results/index").to_table()["model"].to_pylist() == ["vgg16_bn"] * 2


SLOW = """
import os, sys, threading, time
from vbp.cli import main
from vbp.pipeline import local
from vbp.pipeline.steps import Encode, Explain

local.COMMIT_SECONDS = 3600  # the first batch waits for its part
explain, encode, go = Explain.run, Encode.run, sys.argv.pop(1)
begun, is_encoded = [], threading.Event()

def slow(self, batch):
    begun.append(batch)
    if len(begun) == 2:
        is_encoded.wait()
        time.sleep(0.5)
        print("in flight", file=sys.stderr, flush=True)
        while not os.path.exists(go):
            time.sleep(0.05)
    return explain(self, batch)

def seen(self, batch):
    made = encode(self, batch)
    is_encoded.set()
    return made

Explain.run, Encode.run = slow, seen
main()
"""


@pytest.fixture
def second_batch_in_flight(photos, network_file, tmp_path):
    """``vbp explain`` at work on its second batch, which goes on once there is a file ``go``."""
    command = ["explain", photos, tmp_path / "out", "--weights", network_file, "--size", 32, "--batch-size", 2]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, [tmp_path / "go", *command])],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # what a shell starts in the background ignores Ctrl-C, and so would all that it starts
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        wait_for(process, "in flight")
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process, words):
    """Read what the process says on standard error up to a line with these words."""
    said = ""
    for line in process.stderr:
        said += line
        if words in line:
            return
    pytest.fail(f"{words!r} was not said: {said}")


@pytest.mark.parametrize(("signum", "said"), [(signal.SIGINT, "Interrupted."), (signal.SIGTERM, "Stopped by SIGTERM.")])
def test_a_signal_is_answered_at_once_and_ends_with_the_batch_in_flight(second_batch_in_flight, tmp_path, signum, said):
    process = second_batch_in_flight
    process.send_signal(signum)
    wait_for(process, "vbp: Stopping: ")
    (tmp_path / "go").touch()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 4, stderr
    assert f"{said} Run the same command again to continue." in stderr
    parts = (tmp_path / "out").glob("_run/parts/*/*.parquet")
    assert sum(pads.dataset(part).count_rows() for part in parts) == 4
    assert not (tmp_path / "out" / "_run" / "lease.json").exists()
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(second_batch_in_flight, first):
    process = second_batch_in_flight
    process.send_signal(first)
    wait_for(process, "vbp: Stopping: ")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 4, stderr
    assert "Run the same command again to continue." in stderr


def test_public_names():
    assert callable(vbp.pipeline.run)
    assert vbp.pipeline.RunConfig.__name__ == "RunConfig"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vbp.pipeline.nothing  # noqa: B018
