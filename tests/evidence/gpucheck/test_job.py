"""The section about the main job, with the Ray that tests share."""

from vbp.evidence.gpucheck.job import job
from vbp.evidence.gpucheck.scope import Scope

DRY = Scope(device="cpu", batch_size=2, size=64, rounds=1, weights=None, is_dry=True)


def test_rate_cores_and_stages_of_the_main_job(ray_session):
    figures = {figure.name: figure for figure in job(DRY)}
    assert figures["main job through Ray, 1 worker"].median > 0
    assert figures["main job through Ray, 1 worker"].target == 3_500
    stages = [name.partition(",")[0] for name in figures if "worker's time" in name]
    assert stages == ["fetch", "decode", "explain", "encode", "write"]
