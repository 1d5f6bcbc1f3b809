"""The part scaling."""

import os
from pathlib import Path

import pytest

from vbp.evidence import scaling as module
from vbp.evidence.scaling import workers


def test_workers_see_what_they_are_given():
    assert module._only("cpu", 3) == {"RAY_OVERRIDE_RESOURCES": '{"CPU": 3}'}
    assert module._only("cuda", 2) == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_one_core_cannot_scale(setup, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    found = workers(setup)
    assert found.notes == ["Scaling is left out: there is but one core."]
    assert found.figures == []


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_workers_are_measured(setup, network_file):
    found = workers(setup, images=18, weights=Path(network_file), size=32)
    assert [rate.name for rate in found.rates[:2]] == ["main job, ray, 1 worker", "main job, ray, 2 workers"]
    assert [(figure.name, figure.target) for figure in found.figures[:1]] == [("2 workers over 1", 1.9)]
