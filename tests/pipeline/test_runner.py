"""Which runner is chosen: local or Ray."""

from contextlib import nullcontext

import pytest

from vbp.pipeline import RunConfig
from vbp.pipeline.runner import is_for_ray, spreading
from vbp.storage.spreading import here


@pytest.mark.parametrize(
    ("runner", "address", "images", "expected"),
    [
        ("auto", False, 500, False),
        ("auto", False, 501, True),
        ("auto", True, 1, True),
        ("local", True, 501, False),
        ("ray", False, 0, True),
    ],
)
def test_ray_is_for_many_images_or_where_it_is(runner, address, images, expected, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "here") if address else monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert is_for_ray(RunConfig(input="s3://b/photos", output="out", runner=runner), images) is expected


def test_a_mac_has_no_ray_for_its_gpu(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    asked = {"input": "photos", "output": "out"}
    assert is_for_ray(RunConfig(**asked))
    assert not is_for_ray(RunConfig(**asked, device="mps"), images=10_000)


@pytest.mark.parametrize(
    ("runner", "address", "is_large"), [("local", "x:1", True), ("auto", "", True), ("auto", "x:1", False)]
)
def test_small_work_without_images_needs_no_ray(runner, address, is_large, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with spreading(runner, is_large) as spread:
        assert spread is here


@pytest.mark.parametrize(("runner", "address", "is_large"), [("ray", "", False), ("auto", "x:1", True)])
def test_large_work_joins_the_cluster_that_is_named(runner, address, is_large, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("vbp.pipeline.on_ray.spread.joined", lambda: nullcontext("over Ray"))
    with spreading(runner, is_large) as spread:
        assert spread == "over Ray"
