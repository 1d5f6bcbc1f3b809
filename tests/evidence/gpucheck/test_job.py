"""The section about the main job, with the Ray that tests share."""

from dataclasses import replace

from vbp.errors import UsageError
from vbp.evidence.gpucheck import job as section
from vbp.evidence.gpucheck.job import job
from vbp.evidence.gpucheck.scope import Piece, Scope
from vbp.evidence.pipeline import Stretch

DRY = Scope(device="cpu", batch_size=2, size=64, rounds=1, weights=None, is_dry=True)


def test_a_run_that_fails_is_named_and_the_others_follow(monkeypatch):
    def stretch(config):
        if config.decode == "gpu" or config.workers == 2:
            raise UsageError(f"no {config.decode}")
        return Stretch(images=100 * config.workers, start=0.0, end=2.0, stage_milliseconds={})

    monkeypatch.setattr(section, "stretch", stretch)
    monkeypatch.setattr(section, "write_photos", lambda folder, count: folder.mkdir())
    monkeypatch.setattr(section, "write_weights", lambda file: None)
    found = list(job(replace(DRY, device="cuda", is_dry=False)))
    pieces = ["1 worker", "2 workers", "1 worker, decoding on the GPU", "3 workers"]
    assert [each.name for each in found if isinstance(each, Piece)] == pieces
    assert [each for each in found if isinstance(each, str)] == [
        "failed: UsageError: no cpu",
        "failed: UsageError: no gpu",
    ]
    rates = {each.name: each.median for each in found if getattr(each, "unit", None) == "images/s"}
    assert rates == {"main job through Ray, 1 worker": 50, "main job through Ray, 3 workers": 150}


def test_where_the_gpu_decodes_the_rate_is_another_one(monkeypatch):
    monkeypatch.setattr(section, "RUNS", [(2, "gpu")])
    monkeypatch.setattr(section, "stretch", lambda config: Stretch(100, 0.0, 2.0, {"decode": 0.1}))
    monkeypatch.setattr(section, "write_photos", lambda folder, count: folder.mkdir())
    found = list(job(replace(DRY, device="cuda", is_dry=False, weights="features.safetensors")))
    (rate,) = [each for each in found if getattr(each, "unit", None) == "images/s"]
    assert (rate.name, rate.median, rate.target) == ("main job with JPEGs decoded on the GPU, 2 workers", 50, None)


def test_rate_cores_and_stages_of_the_main_job(ray_session):
    figures = {figure.name: figure for figure in job(DRY)}
    assert figures["main job through Ray, 1 worker"].median > 0
    assert figures["main job through Ray, 1 worker"].target == 3_500
    stages = [name.partition(",")[0] for name in figures if "worker's time" in name]
    assert stages == ["fetch", "decode", "explain", "encode", "write"]
