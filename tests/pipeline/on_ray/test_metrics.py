"""What is counted for Prometheus, with stand-in counters that record their calls."""

import json

import pytest

from vbp.pipeline.on_ray import metrics


class Told:
    """A counter or gauge without Ray."""

    def __init__(self, name, description, tags=()):
        self.tags, self.values = set(tags), {}
        ALL[name] = self

    def inc(self, value, tags=None):
        assert value > 0  # Ray refuses the rest
        self.set(self.values.get(tuple((tags or {}).values()), 0) + value, tags)

    def set(self, value, tags=None):
        assert set(tags or {}) == self.tags
        self.values[tuple((tags or {}).values())] = value


ALL: dict[str, Told] = {}


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch):
    for name in ("Counter", "Gauge"):
        monkeypatch.setattr(metrics, name, Told)


def report(ok, reasons, **seconds):
    return {"shard": 0, "ok": ok, "error": sum(reasons.values()), "reasons": json.dumps(reasons)} | seconds


def test_reports_add_up():
    counted = metrics.Metrics(10)
    counted.add(report(3, {"fetch: TimeoutError": 1}, seconds_fetch=0.5, seconds_explain=2.0))
    counted.add(report(0, {"fetch: TimeoutError": 2}, seconds_fetch=0.25, seconds_explain=0.0))
    counted.add(report(0, {}, seconds_fetch=0.0))
    assert {name: told.values for name, told in ALL.items()} == {
        "vbp_images_total": {(): 6},
        "vbp_failures_total": {("fetch", "TimeoutError"): 3},
        "vbp_stage_seconds_total": {("fetch",): 0.75, ("explain",): 2.0},
        "vbp_images_left": {(): 4},
    }


def test_what_ray_repeats_leaves_no_fewer_than_none():
    counted = metrics.Metrics(2)
    for _ in range(3):
        counted.add(report(1, {}))
    assert ALL["vbp_images_left"].values == {(): 0}


def test_causes_without_end_share_a_series():
    counted = metrics.Metrics(1000)
    for number in range(400):
        counted.add(report(0, {f"decode: Error{number % 200}": 1}))
    failures = ALL["vbp_failures_total"].values
    assert len(failures) == metrics.CAUSES + 1
    assert failures["decode", "Error3"] == 2
    assert failures["decode", "other"] == 300
