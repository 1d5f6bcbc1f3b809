"""A GPU worker's process is told to copy past the caches; nothing else is, and a user's own setting stays."""

import os
import subprocess
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from vbp.pipeline.on_ray import copies, dataset
from vbp.pipeline.resources import Resources
from vbp.pipeline.steps import objects

LOADER = "/lib64/ld-linux-x86-64.so.2"
OURS = "glibc.cpu.x86_non_temporal_threshold=0x100000"


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # so that it is taken back also where a test sets it
    monkeypatch.delenv("GLIBC_TUNABLES")


def test_copies_of_a_mebibyte_go_past_the_caches(unset):
    assert copies.environment() == {"GLIBC_TUNABLES": OURS}


def test_a_users_own_value_stays(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    assert copies.environment() == copies.on_any_node() == {}


@pytest.mark.parametrize(
    ("theirs", "together"), [(None, f":{OURS}"), ("glibc.malloc.perturb=0", f"glibc.malloc.perturb=0:{OURS}")]
)
def test_a_nodes_own_value_is_kept_beside_ours(unset, monkeypatch, theirs, together):
    from ray._private.utils import update_envs

    added = copies.on_any_node()
    if theirs:
        monkeypatch.setenv("GLIBC_TUNABLES", theirs)
    update_envs(added)  # as Ray does it on a node
    assert os.environ["GLIBC_TUNABLES"] == together


@pytest.mark.skipif(not Path(LOADER).exists(), reason="no glibc on x86-64")
@pytest.mark.parametrize("before", ["", "glibc.malloc.perturb=0"])
def test_glibc_takes_it(before):
    """Its loader tells what it understood."""
    environment = {"GLIBC_TUNABLES": f"{before}:{OURS}"}
    told = subprocess.run([LOADER, "--list-tunables"], env=environment, capture_output=True, text=True, check=True)
    assert "glibc.cpu.x86_non_temporal_threshold: 0x100000 " in told.stdout
    assert not told.stderr


class Images:
    def singles(self, step):
        return iter(())

    def batches(self, rows):
        yield {"key": objects(["a"])}


def started_with(name):
    """The variable as the process has had it from its start: glibc looks only then."""
    variables = dict(each.split("=", 1) for each in Path("/proc/self/environ").read_text().split("\0") if "=" in each)
    return variables.get(name, "")


def noted(stage):
    def step(batch):
        return batch | {stage: objects([started_with("GLIBC_TUNABLES")])}

    return step


class Steps:
    """Each notes the variable in its process."""

    batch_size, own_sizes, is_slow, read_by_explain = 1, False, False, None

    def source(self):
        return self

    def open(self, shard):
        return nullcontext(Images())

    def fetch(self):
        return noted("fetch")

    def decode(self):
        return lambda batch: batch

    def explain(self):
        return noted("explain")

    def encode(self):
        return noted("encode")

    def write(self):
        return lambda batch: {name: np.array(batch[name], str) for name in ("fetch", "explain", "encode")}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the system does not tell")
def test_only_the_process_of_a_gpu_worker_is_told(ray_session, unset):
    given = Resources(workers=1, num_cpus=0.5, num_gpus=0, threads=1, codec_cpus=0.25)
    (report,) = dataset.plan(Steps(), [0], given, spread=True).iter_rows()
    assert {name: report[name] for name in ("fetch", "explain", "encode")} == {
        "fetch": "", "explain": f":{OURS}", "encode": "",
    }  # fmt: skip
