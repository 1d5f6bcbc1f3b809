"""Jobs on a real head that asks for a token: by ``ray job submit`` and by ``--address``, as a user types them."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
import pyarrow.dataset as pads
import pytest
from click.testing import CliRunner
from ray.job_submission import JobStatus, JobSubmissionClient

from vbp.cli import explain
from vbp.pipeline import RunConfig, run

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOKEN = secrets.token_hex(32)
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
ENVIRONMENT = os.environ | {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # the job's `python` is the head's
}


METRICS_PORTS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
"""Else each Ray of a machine takes the same two, and lists them even if another has them."""
DISCOVERY = "prom_metrics_service_discovery.json"
NOT_HERE = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_manager_unexpected_worker_failure_total"}
"""What the dashboard asks for and a node without a GPU, where nothing dies, has not."""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def ray_folder():
    """Where the head keeps its session, and the list of what Prometheus is to ask; its sockets want a short path."""
    with tempfile.TemporaryDirectory(prefix="vbp-ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def head(tmp_path_factory, ray_folder):
    """A Ray head with a dashboard, on this machine alone; yields its address for jobs."""
    port, dashboard, client, agent, *metrics = free_ports(6)
    log = (tmp_path_factory.mktemp("head") / "log").open("wb")
    process = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            f"--temp-dir={ray_folder}",
        ],
        env=ENVIRONMENT | dict(zip(METRICS_PORTS, map(str, metrics), strict=True)), stdout=log, stderr=log,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None, Path(log.name).read_text()
            try:
                # refused before the node's agent is there
                JobSubmissionClient(address, headers=HEADERS).submit_job(entrypoint="true")
                break
            except Exception:
                assert time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.3)
        yield address
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in psutil.Process(process.pid).children(recursive=True):  # SIGTERM would drain for 30 s
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        process.kill()
        process.wait()
        log.close()


@pytest.fixture
def arguments(photos, network_file, tmp_path):
    return [str(photos), str(tmp_path / "out"), "--weights", network_file, "--size", "64", "--precision", "float32"]


@pytest.fixture
def submitted(head):
    """What ``python -m jobs.explain ARGUMENTS --address`` leads to, as from a laptop with that token."""

    def submit(*arguments, token=TOKEN):
        environment = {"RAY_AUTH_TOKEN": token, "RAY_ADDRESS": "http://127.0.0.1:1"}  # the address that is given counts
        return CliRunner().invoke(explain, [*arguments, "--address", head], env=environment)

    return submit


def exported(ray_folder):
    """(name, labels, value) of all that Prometheus gets from the addresses that Ray lists for it and that answer."""
    for each in json.loads((ray_folder / DISCOVERY).read_text()):
        for target in each["targets"]:
            try:
                with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
                    text = answer.read().decode()
            except OSError:  # not up yet, or down: Prometheus too goes on to the next
                continue
            for name, labels, value in re.findall(r"^(\w+)(?:{(.*)})? (\S+)$", text, re.MULTILINE):
                yield name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)


def check_metrics(head, ray_folder):
    """What the last job told Prometheus, and that all that the dashboard asks for is there, within a minute."""
    job = max(JobSubmissionClient(head, headers=HEADERS).list_jobs(), key=lambda info: info.start_time).job_id
    deadline = time.monotonic() + 60
    while True:
        try:
            return check_scraped(job, list(exported(ray_folder)))
        except AssertionError:  # Prometheus too asks again
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def check_scraped(job, metrics):
    ours = {
        (name, labels.get("stage"), labels.get("type")): value
        for name, labels, value in metrics
        if name.startswith("ray_vbp_") and labels["WorkerId"].startswith(job)
    }
    assert ours.pop(("ray_vbp_images_total", None, None), None) == 23
    assert ours.pop(("ray_vbp_images_left", None, None), None) == 0
    assert ours.pop(("ray_vbp_failures_total", "decode", "NotAnImageError"), None) == 1
    stages = ("fetch", "decode", "explain", "encode", "write")
    assert set(ours) == {("ray_vbp_stage_seconds_total", stage, None) for stage in stages}
    assert all(seconds > 0 for seconds in ours.values())
    board = (ROOT / "cluster" / "monitoring" / "grafana.json").read_text()
    asked = set(re.findall(r"\b(ray_(?:node|vbp)_[a-z_]+)(?={)", board))  # Ray Data tells its own 10 s later
    assert asked - {name for name, _, _ in metrics} <= NOT_HERE


def test_the_main_job(head, submitted, ray_folder, photos, network_file, arguments, tmp_path):
    tree, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, tree)
    (tree / "cat" / "bad.jpg").write_bytes(b"no image")
    arguments[0] = str(tree)

    done = submitted(*arguments, "--max-failures", "1", "--node-labels", "zone=!far", "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)  # and nothing else
    assert (summary["ok"], summary["error"], summary["computed"], summary["runner"]) == (22, 1, 23, "ray")
    assert "Submitted to" in done.stderr
    assert (
        "Running on Ray: 2 workers with 1 CPU thread each, on nodes with zone=!far; float32 on CPU with " in done.stderr
    )
    assert pads.dataset(out / "index").count_rows() == 23
    check_metrics(head, ray_folder)

    fields = {"weights": network_file, "size": 64, "precision": "float32", "runner": "local"}
    run(RunConfig(input=str(tree), output=str(tmp_path / "local"), **fields))
    masks = [
        {path.relative_to(place / "masks"): path.read_bytes() for path in (place / "masks").rglob("*.png")}
        for place in (out, tmp_path / "local")
    ]
    assert len(masks[0]) == 22
    assert masks[0] == masks[1]

    # what is finished is not done again, and ends with the exit code and the promise that it deserves now
    written = {path: path.stat().st_mtime_ns for path in (out / "masks").rglob("*.png")}
    done = submitted(*arguments, "--max-failures", "0")
    assert done.exit_code == 3, done.output
    assert not (out / "_SUCCESS").exists()
    assert "1 x decode: NotAnImageError" in done.stdout
    entrypoint = ["python", "-m", "jobs.explain", *arguments, "--max-failures", "1"]
    done = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", head, "--working-dir", ".", "--", *entrypoint],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "_SUCCESS").exists()
    assert {path: path.stat().st_mtime_ns for path in (out / "masks").rglob("*.png")} == written

    done = submitted(str(tmp_path / "nowhere"), *arguments[1:])
    assert done.exit_code == 2, done.output
    assert f"INPUT (={tmp_path / 'nowhere'}) does not exist" in done.stdout


NET = """
from parts_of_mine import block
from torch import nn

class Net(nn.Module):
    preprocessing = {"mean": (0.5, 0.3, 0.1), "std": (0.5, 0.25, 0.125), "size": 48}
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(block(3, 4), nn.MaxPool2d(2), block(4, 6))
    def forward(self, x):
        return self.body(x)
"""
PARTS = """
from torch import nn

def block(before, behind):
    return nn.Sequential(nn.Conv2d(before, behind, 3, padding=1), nn.ReLU())
"""


def test_a_network_of_ones_own_travels_with_the_job(head, submitted, photos, tmp_path, monkeypatch):
    """The cluster runs elsewhere, so that a relative name means nothing there but what was sent along."""
    laptop = tmp_path / "laptop"
    laptop.mkdir()
    (laptop / "mine.py").write_text(NET)
    (laptop / "parts_of_mine.py").write_text(PARTS)
    (laptop / "large.bin").write_bytes(b"stays here")
    monkeypatch.chdir(laptop)
    fields = {"input": str(photos), "model": "mine.py:Net", "precision": "float32", "limit": 3, "batch_size": 2}
    run(RunConfig(output=str(tmp_path / "local"), runner="local", **fields))

    options = ["--model=mine.py:Net", "--precision=float32", "--limit=3", "--batch-size=2", "--workers=1"]
    done = submitted(str(photos), str(tmp_path / "out"), *options)
    assert done.exit_code == 0, done.output
    assert "and mine.py, parts_of_mine.py" in done.output
    masks = [
        {path.relative_to(place / "masks"): path.read_bytes() for path in (place / "masks").rglob("*.png")}
        for place in (tmp_path / "out", tmp_path / "local")
    ]
    assert len(masks[0]) == 3
    assert masks[0] == masks[1]


def test_a_laptop_without_the_right_token(submitted, arguments):
    done = submitted(*arguments, token="0" * 64)
    assert done.exit_code == 2
    assert "refuses the token that is set here" in done.stderr


def wait_for(jobs, submission, statuses, seconds=400):
    deadline = time.monotonic() + seconds
    while (info := jobs.get_job_info(submission)).status not in statuses:
        assert time.monotonic() < deadline, jobs.get_job_logs(submission)
        time.sleep(0.2)
    return info


def test_a_stopped_job_ends_with_4_and_is_resumed(head, arguments, photos, network_file, tmp_path):
    tree = tmp_path / "many"
    for number in range(10):
        (tree / str(number)).mkdir(parents=True)
        for path in photos.rglob("*.*"):
            (tree / str(number) / path.name).write_bytes(path.read_bytes())
    jobs = JobSubmissionClient(head, headers=HEADERS)
    command = " ".join(["python -m jobs.explain", str(tree), *arguments[1:], "--batch-size 2 --workers 1"])
    submission = jobs.submit_job(entrypoint=command, runtime_env={"working_dir": str(ROOT)})
    deadline = time.monotonic() + 240
    while len(list((tmp_path / "out").glob("_run/parts/*/*.parquet"))) < 3:
        assert time.monotonic() < deadline, jobs.get_job_logs(submission)
        time.sleep(0.05)
    jobs.stop_job(submission)
    info = wait_for(jobs, submission, {JobStatus.STOPPED})
    assert info.driver_exit_code in (None, 4)  # Ray forgets the code of some stopped jobs; the log has the sentence
    logs = jobs.get_job_logs(submission)
    assert "Stopped by SIGTERM" in logs
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    fields = {"weights": network_file, "size": 64, "precision": "float32", "batch_size": 2, "runner": "local"}
    summary = run(RunConfig(input=str(tree), output=str(tmp_path / "out"), **fields))
    assert summary.ok == 220
    assert 0 < summary.computed < 220
