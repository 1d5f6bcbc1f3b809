"""The part pipeline: what is divided by what."""

from dataclasses import replace
from pathlib import Path

import pytest

from vbp.evidence.pipeline import Stretch, _shorter, _use, pipeline, stretch
from vbp.evidence.watch import Look, Watched
from vbp.pipeline import RunConfig


def test_of_two_runs_the_difference_counts(photos, network_file, tmp_path):
    config = RunConfig(input=str(photos), output=str(tmp_path), weights=network_file, size=32, runner="local")
    did = stretch(config, few=3, many=7)
    assert did.images == 4
    assert {"fetch", "decode", "explain", "encode", "write"} <= did.stage_seconds.keys()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("images", "workers", "few", "shard_size"),
    [(0, 1, 32, 16), (150, 2, 64, 16), (150, 16, 512, 16), (50_000, 1, 16_672, 1024), (3_000, 8, 1024, 64)],
)
def test_the_shorter_run_has_two_shards_for_every_worker(images, workers, few, shard_size):
    assert _shorter(images, workers) == (few, shard_size)


def test_what_a_job_uses():
    did = Stretch(images=100, seconds=10, stage_seconds={"fetch": 0.5, "explain": 9}, end=110)
    looks = [Look(at, cpu, gpu) for at, cpu, gpu in [(90, 0, 10), (100, 4, 50), (105, 14, 70), (110, 19, 90)]]
    figures = {each.name: (each.median, each.unit) for each in _use("ray", Watched(did, 3, 500, 700, looks))}
    assert figures.pop(next(name for name in figures if name.startswith("busy of "))) == (1.5, "cores")
    assert figures == {
        "fetch, worker's time, ray runner": (5, "ms/image"),
        "explain, worker's time, ray runner": (90, "ms/image"),
        "wall time, ray runner": (100, "ms/image"),
        "GPU busy, ray runner": (70, "%"),
        "peak memory of the driver, ray runner": (500, "MB"),
        "peak memory of the largest process beside it, ray runner": (700, "MB"),
    }


@pytest.mark.slow
def test_both_runners_are_measured(setup, network_file):
    found = pipeline(replace(setup, batch_size=8), seconds=0, weights=Path(network_file), size=32)
    names = ["engine alone", "codecs alone, all cores", "main job, local", "main job, ray"]
    assert [rate.name for rate in found.rates] == names
    slowest = min(found.rates[:2], key=lambda rate: rate.median)
    for ratio, job in zip(found.figures[:2], found.rates[2:], strict=True):
        assert ratio.name.startswith(f"main job over {slowest.name}")
        assert ratio.target == 0.9
        assert ratio.median == pytest.approx(job.median / slowest.median)
    figures = {figure.name for figure in found.figures}
    assert {"peak memory of the driver, local runner", "wall time, local runner", "wall time, ray runner"} <= figures
    assert "peak memory of the largest process beside it, ray runner" in figures
