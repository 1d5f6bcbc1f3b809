"""The part pipeline: what is timed, and which ratios are formed."""

from dataclasses import replace
from pathlib import Path

import pytest

from vbp.evidence.pipeline import Moments, Stretch, _use, enough, pipeline, stretch
from vbp.evidence.watch import Look, Watched
from vbp.pipeline import RunConfig


def test_a_rate_is_of_the_time_when_all_are_at_work(monkeypatch):
    moments = Moments()
    for at, images in [(50, 1), (52, 1), (54, 6), (60, 8), (64, 12), (70, 4)]:
        monkeypatch.setattr("time.monotonic", lambda at=at: at)
        moments.wrote(images - 1, 1)
    assert moments.images == 32
    assert moments.steady() == ((54, 8), (64, 28))  # a quarter of the images, seven eighths


def test_a_job_leaves_nothing_behind(photos, network_file, tmp_path):
    config = RunConfig(
        input=str(photos), output=str(tmp_path), weights=network_file, size=32, runner="local", shard_size=1
    )
    images = sum(1 for path in photos.rglob("*") if path.is_file())
    did = stretch(config)
    assert 0 < did.images <= 5 / 8 * images + 1
    assert did.seconds > 0
    assert did.stage_milliseconds.keys() == {"fetch", "decode", "explain", "encode", "write"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("least", "workers", "images", "shard_size"),
    [(0, 1, 64, 16), (500, 2, 504, 63), (500, 16, 1024, 16), (50_000, 1, 50_000, 1024), (3_000, 8, 3_008, 94)],
)
def test_every_worker_gets_four_shards(least, workers, images, shard_size):
    assert enough(least, workers) == (images, shard_size)


def test_what_a_job_uses():
    did = Stretch(images=100, start=100, end=110, stage_milliseconds={"fetch": 5, "explain": 90})
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
