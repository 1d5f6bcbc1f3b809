"""Clusters whose head has no GPU, as all in `cluster/`: the devices of the workers' nodes count, not the head's."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_head_without_a_gpu_starts_a_worker_that_claims_one(photos, network_file, tmp_path):
    program = [sys.executable, "-m", "tests.pipeline.gpu_head", str(photos), str(tmp_path / "out"), network_file]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("note: ", "UsageError", "Interrupted"))]
    joined, refused, again, running, failed = lines
    assert joined == again == "note: Joining Ray."
    # Ray believes that there is a GPU, and torch on that node sees none
    assert refused.startswith("UsageError: Ray counts GPUs on node ")
    assert "but torch sees none there" in refused
    # where torch there does see one, the run goes on to the worker, which asks torch for it
    where = "1 worker with 1 GPU each, more as nodes come; bfloat16 on Stub GPU."
    assert running == f"note: Running on Ray: {where} Each worker loads the network first."
    assert failed.startswith("InterruptedRunError: Ray could not go on: on node ")
    assert "device 'cuda': torch sees 0 CUDA devices" in failed
