"""The section about one GPU worker."""

import numpy as np
import pytest

from vbp.errors import UsageError
from vbp.evidence import worker as stand_in
from vbp.evidence.gpucheck.scope import Scope
from vbp.evidence.gpucheck.worker import WORKER, GpuSteps, figures, worker
from vbp.evidence.worker import Taken, through_ray

DRY = Scope(device="cpu", batch_size=2, size=32, rounds=1, weights=None, is_dry=True)


def test_the_step_is_the_main_jobs_with_vgg16(monkeypatch):
    monkeypatch.setattr(stand_in, "IMAGES", 2)
    monkeypatch.setattr(stand_in, "SIZE", 32)
    monkeypatch.setattr("vbp.evidence.gpucheck.worker.IMAGES", 2)
    found = GpuSteps(0.0, weights="demo", device="cpu").explain()(stand_in.decoded())
    assert (found["mask"].shape, found["mask"].dtype) == ((2, 32, 32), np.uint8)
    assert found["overlay"].shape == (2, 32, 32, 3)
    assert list(found["error_stage"]) == [None, None]
    assert found["cpu"].shape == (2,)


def test_figures_are_of_images_and_of_batches():
    found = Taken(images=1280, seconds=0.5, cpu=0.05, driver=0.02, warned=["no CUDA graph: not permitted"])
    warning, rate, core = figures(found)
    assert warning == "no CUDA graph: not permitted"
    assert (rate.median, rate.target, rate.reached) == (2560, 6_000, False)
    assert (core.median, core.unit) == (5.0, "ms")


def test_gpus_that_ray_does_not_find_are_not_waited_for(ray_session):
    with pytest.raises(UsageError, match="claims 1000 GPU, and Ray finds"):
        through_ray(1, gpus=1000)


def test_batches_go_through_ray(ray_session):
    rate, core = worker(DRY)
    assert rate.name == WORKER
    assert rate.median > 0
    assert core.median > 0
