"""A watched process: its memory, its cores, its GPU."""

import os
import time
from pathlib import Path

import pytest

from vbp.evidence.watch import Look, Watched, watched


def hold(megabytes):
    held = b"\1" * (megabytes << 20)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        pass
    return len(held), os.environ["COLOUR"], time.monotonic(), started_with("COLOUR")


def started_with(name):
    """Whether the process has had the variable from its start; True where the system does not tell."""
    told = Path("/proc/self/environ")
    return not told.exists() or f"{name}=".encode() in told.read_bytes()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A process that holds 50 MB and works for a second, on a machine whose GPU is said to be busy."""
    tools = tmp_path_factory.mktemp("bin")
    (tools / "nvidia-smi").write_text("#!/bin/sh\nprintf '40\\n60\\n'\n")
    (tools / "nvidia-smi").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tools), prepend=os.pathsep)
        return watched(hold, 50, environment={"COLOUR": "red"})


def test_value_and_memory_are_its_own(found):
    assert found.value[:2] == (50 << 20, "red")
    assert 50 < found.own < 1000
    assert found.workers == 0


def test_it_starts_with_its_variables_and_we_stay_without(found):
    assert found.value[3]
    assert "COLOUR" not in os.environ


def test_it_is_seen_at_work(found):
    end = found.value[2]
    assert found.cores(end - 1, end) > 0
    assert found.gpu(end - 1, end) == 50


def test_cores_are_cpu_over_time():
    looks = [Look(at, cpu, gpu) for at, cpu, gpu in [(0, 5, None), (10, 6, 20), (20, 21, 40), (30, 22, 90)]]
    seen = Watched(None, 0, 0, 0, looks)
    assert seen.cores(10, 20) == 1.5
    assert seen.cores(5, 25) == pytest.approx(16 / 20)  # from the first look after either
    assert seen.gpu(5, 25) == 30
    assert seen.gpu(1, 2) is None
