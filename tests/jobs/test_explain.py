"""``ray job submit`` on a real head, as a user types it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow.dataset as pads
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # the job's `python` is the head's
}


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
def ray_folder(tmp_path_factory):
    """Where the head keeps its session, and the list of what Prometheus is to ask."""
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def head(tmp_path_factory, ray_folder):
    """A Ray head with a dashboard, on this machine alone; yields its address for jobs."""
    port, dashboard, client, agent = free_ports(4)
    log = (tmp_path_factory.mktemp("head") / "log").open("wb")
    process = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            f"--temp-dir={ray_folder}",
        ],
        env=ENVIRONMENT, stdout=log, stderr=log,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None, Path(log.name).read_text()
            try:
                JobSubmissionClient(address).submit_job(entrypoint="true")  # refused before the node's agent is there
                break
            except Exception:
                assert time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.3)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()


def submit(head, *arguments):
    entrypoint = ["python", "-m", "jobs.explain", *arguments]
    return subprocess.run(
        [BIN / "ray", "job", "submit", "--address", head, "--working-dir", ".", "--", *entrypoint],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


@pytest.fixture
def arguments(photos, network_file, tmp_path):
    return [str(photos), str(tmp_path / "out"), "--weights", network_file, "--size", "64", "--precision", "float32"]


def test_the_main_job(head, arguments, tmp_path, network_file, photos):
    done = submit(head, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ray runner" in done.stdout
    assert pads.dataset(tmp_path / "out" / "index").count_rows() == 22
    local = [*arguments[:1], str(tmp_path / "local"), *arguments[2:], "--runner", "local"]
    subprocess.run([sys.executable, "-m", "jobs.explain", *local], cwd=ROOT, check=True, capture_output=True)
    masks = [
        {path.relative_to(tmp_path / out): path.read_bytes() for path in (tmp_path / out / "masks").rglob("*.png")}
        for out in ("out", "local")
    ]
    assert len(masks[0]) == 22
    assert masks[0] == masks[1]


def wait_for(jobs, submission, statuses, seconds=400):
    deadline = time.monotonic() + seconds
    while (info := jobs.get_job_info(submission)).status not in statuses:
        assert time.monotonic() < deadline, jobs.get_job_logs(submission)
        time.sleep(0.2)
    return info


def exported(ray_folder):
    """(name, labels, value) of all that Prometheus gets from the addresses that Ray lists for it."""
    for each in json.loads((ray_folder / DISCOVERY).read_text()):
        for target in each["targets"]:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
                text = answer.read().decode()
            for name, labels, value in re.findall(r"^(\w+)(?:{(.*)})? (\S+)$", text, re.MULTILINE):
                yield name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)


def test_exit_code_3_stands_in_the_jobs_info_and_what_happened_in_the_metrics(head, arguments, tmp_path, ray_folder):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "bad.jpg").write_bytes(b"no image")
    jobs = JobSubmissionClient(head)
    command = " ".join(["python -m jobs.explain", str(tmp_path / "photos"), *arguments[1:]])
    submission = jobs.submit_job(entrypoint=command, runtime_env={"working_dir": str(ROOT)})
    info = wait_for(jobs, submission, {JobStatus.FAILED, JobStatus.SUCCEEDED})
    assert info.driver_exit_code == 3, jobs.get_job_logs(submission)
    metrics = list(exported(ray_folder))
    ours = {
        (name, labels.get("stage"), labels.get("type")): value
        for name, labels, value in metrics
        if name.startswith("ray_vbp_") and labels["WorkerId"].startswith(info.job_id)
    }
    assert ours.pop(("ray_vbp_images_total", None, None)) == 1
    assert ours.pop(("ray_vbp_images_left", None, None)) == 0
    assert ours.pop(("ray_vbp_failures_total", "decode", "NotAnImageError")) == 1
    stages = ("fetch", "decode", "explain", "encode", "write")
    assert set(ours) == {("ray_vbp_stage_seconds_total", stage, None) for stage in stages}
    assert all(seconds > 0 for seconds in ours.values())
    board = (ROOT / "cluster" / "monitoring" / "grafana.json").read_text()
    asked = set(re.findall(r"\b(ray_(?:node|vbp)_[a-z_]+)(?={)", board))  # Ray Data tells its own 10 s later
    assert asked - {name for name, _, _ in metrics} <= NOT_HERE


def test_a_stopped_job_ends_with_4_and_is_resumed(head, arguments, photos, tmp_path):
    tree = tmp_path / "many"
    for number in range(10):
        (tree / str(number)).mkdir(parents=True)
        for path in photos.rglob("*.*"):
            (tree / str(number) / path.name).write_bytes(path.read_bytes())
    jobs = JobSubmissionClient(head)
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
    again = [str(tree), *arguments[1:], "--batch-size", "2", "--runner", "local", "--json"]
    done = subprocess.run([sys.executable, "-m", "jobs.explain", *again], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["ok"] == 220
    assert 0 < summary["computed"] < 220
