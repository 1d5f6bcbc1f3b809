"""The part engine: every case runs, and the targets are the design's."""

from dataclasses import replace

import pytest

from vbp.evidence import engine as module
from vbp.evidence.engine import engine
from vbp.networks.models import load_model


@pytest.fixture
def small_machine(monkeypatch):
    monkeypatch.setattr(module, "PRODUCT", {"cpu": 16})
    monkeypatch.setattr(module, "COPIED_BYTES", 1024)


def test_every_case_is_measured(setup, network_file, small_machine):
    found = engine(replace(setup, precisions=("float32", "bfloat16")), load_model("vgg16", network_file), size=32)
    rates = {rate.name: rate for rate in found.rates}
    assert all(rate.median > 0 for rate in rates.values())
    assert {"vbp, float32", "vbp, bfloat16", "reference algorithm, float32"} < rates.keys()
    assert {f"bare forward, {p}, {f}" for p in ("float32", "bfloat16") for f in module.FORMATS} < rates.keys()
    figures = {figure.name: figure for figure in found.figures}
    targets = {
        "engine over bare forward, float32": 0.95,
        "engine over bare forward, bfloat16": 0.95,
        "engine over reference algorithm, float32": 1.4,
        "engine over reference algorithm with its batches of 10, float32": 1.4,
        "engine over reference algorithm, bfloat16": 2.6,
        "engine over reference algorithm with its batches of 10, bfloat16": 2.6,
    }
    assert {name: figures[name].target for name in targets} == targets
    ours, forward = rates["vbp, float32"].median, rates["bare forward, float32, channels last"].median
    assert figures["engine over bare forward, float32"].median == pytest.approx(ours / forward)
    spread = rates["bare forward, float32, a batch on each core"].median
    assert figures["engine over bare forward, float32, a batch on each core"].median == pytest.approx(ours / spread)


def test_a_batch_size_that_was_asked_for_runs_alone(setup, network_file, small_machine):
    found = engine(replace(setup, batch_size=2, asked=True), load_model("vgg16", network_file), size=32)
    assert not any("each core" in rate.name for rate in found.rates)


def test_rivals_are_held_to_both_rules(setup, network_file, small_machine):
    for package in ("captum", "pytorch_grad_cam", "zennit"):
        pytest.importorskip(package)
    found = engine(replace(setup, precisions=("float32", "bfloat16")), load_model("vgg16", network_file), size=32)
    assert found.notes == []
    rates = {rate.name: rate.median for rate in found.rates}
    figures = {figure.name: figure for figure in found.figures}
    for rival, least in (("Grad-CAM", 4), ("guided backprop", 4), ("LRP", 12)):
        same = figures[f"engine over {rival}, same terms"]
        forward = rates["bare forward, float32, channels last"]
        assert same.target == pytest.approx(0.95 * forward / rates[f"{rival}, float32, channels last"])
        as_users_run = figures[f"engine over {rival}, as users run them"]
        assert as_users_run.target == least
        wanted = rates["vbp, bfloat16"] / rates[f"{rival}, float32, contiguous"]
        assert as_users_run.median == pytest.approx(wanted)


def test_an_absent_rival_is_named(setup, network_file, small_machine, monkeypatch):
    def absent(network):
        raise ImportError("No module named 'zennit'")

    monkeypatch.setattr(module, "RIVALS", {"LRP": absent})
    found = engine(setup, load_model("vgg16", network_file), size=32)
    assert found.notes == ["LRP is left out: No module named 'zennit'. pip install 'visualbackprop[bench]' brings it."]
    assert not any("LRP" in figure.name for figure in found.figures)
