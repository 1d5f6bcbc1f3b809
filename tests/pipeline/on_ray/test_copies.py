"""A GPU worker's process is told to copy past the caches; nothing else is, and a user's own setting stays."""

import os
from contextlib import nullcontext

import numpy as np
import pytest

from vbp.pipeline.on_ray import copies, dataset
from vbp.pipeline.resources import Resources
from vbp.pipeline.steps import objects

SETTING = {"GLIBC_TUNABLES": "glibc.cpu.x86_non_temporal_threshold=0x100000"}


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)


def test_copies_of_a_mebibyte_go_past_the_caches(unset):
    assert copies.environment() == SETTING


def test_a_users_own_setting_stays(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    assert copies.environment() == {}


class Images:
    def singles(self, step):
        return iter(())

    def batches(self, rows):
        yield {"key": objects(["a"])}


def noted(stage):
    def step(batch):
        return batch | {stage: objects([os.environ.get("GLIBC_TUNABLES", "")])}

    return step


class Steps:
    """Each notes the variable in its process."""

    batch_size, own_sizes, is_slow = 1, False, False

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


def test_only_the_process_of_a_gpu_worker_is_told(ray_session, unset):
    given = Resources(workers=1, num_cpus=0.5, num_gpus=0, threads=1, codec_cpus=0.25)
    (report,) = dataset.plan(Steps(), [0], given, spread=True).iter_rows()
    assert {name: report[name] for name in ("fetch", "explain", "encode")} == {
        "fetch": "", "explain": SETTING["GLIBC_TUNABLES"], "encode": "",
    }  # fmt: skip
