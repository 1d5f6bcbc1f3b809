"""The engine on weaker processors: each in a process that uses no more of this one."""

import json
from types import SimpleNamespace

import pytest

from vbp.evidence import capabilities as module
from vbp.evidence.capabilities import AVX2, AVX512_BF16, capabilities, present
from vbp.evidence.timing import Rate


def test_all_that_are_weaker_are_present():
    names = [capability.name for capability in present()]
    assert names == ["SSE4.1", "AVX2", "AVX512", "AVX512-BF16"][: len(names)]


@pytest.mark.long
@pytest.mark.skipif(AVX2 not in present(), reason="only x86 processors act as others")
def test_a_weaker_processor_is_measured_beside_its_own_bare_forward(setup, monkeypatch):
    monkeypatch.setattr(module, "present", lambda: [AVX2])
    found = capabilities(setup, networks=["squeezenet1_1"], size=32)
    # no bfloat16, though this processor may have it
    assert [rate.name for rate in found.rates] == [
        "AVX2: bare forward, squeezenet1_1, float32",
        "AVX2: vbp, squeezenet1_1, float32",
    ]
    (figure,) = found.figures
    bare, ours = (rate.median for rate in found.rates)
    assert (figure.median, figure.target) == (pytest.approx(ours / bare), 0.95)


def test_integers_are_held_against_the_best_floats():
    def rate(name, *rates):
        return Rate("capabilities", f"vbp without classifier, vgg16, {name}", rates=list(rates))

    slow, fast, integers = rate("float32", 1, 1), rate("bfloat16", 2, 2), rate("int8", 3, 4)
    (figure,) = module._figures(AVX512_BF16, {each.name: each for each in (slow, fast, integers)})
    assert (figure.name, figure.values, figure.target) == ("AVX512-BF16: int8 over bfloat16, vgg16", [1.5, 2.0], 1.7)
    (figure,) = module._figures(AVX2, {each.name: each for each in (slow, integers)})
    assert (figure.name, figure.values, figure.target) == ("AVX2: int8 over float32, vgg16", [3.0, 4.0], 2.3)


@pytest.mark.long
@pytest.mark.skipif(not present(), reason="only x86 processors act as others")
def test_one_convolution_shows_what_a_network_can_gain(setup, monkeypatch):
    """The network itself is not run."""
    run, asked = module.subprocess.run, []

    def only_the_convolution(command, **settings):
        task = json.loads(command[-1])
        asked.append(task["network"])
        if task["network"] == "one convolution":
            return run(command, **settings)
        return SimpleNamespace(stdout="{}")

    monkeypatch.setattr(module.subprocess, "run", only_the_convolution)
    monkeypatch.setattr(module, "present", lambda: present()[:1])
    found = capabilities(setup, networks=["vgg16", "densenet201"])
    assert asked == ["vgg16", "densenet201", "one convolution"]
    weakest = present()[0].name
    assert [rate.name for rate in found.rates] == [
        f"{weakest}: alone, one convolution, {precision}" for precision in ("float32", "int8")
    ]
    (figure,) = found.figures
    assert (figure.name, figure.target) == (f"{weakest}: int8 over float32, one convolution", None)
    floats, integers = (rate.rates for rate in found.rates)
    assert figure.values == [one / other for one, other in zip(integers, floats, strict=True)]


def test_another_processor_is_said(setup, monkeypatch):
    monkeypatch.setattr(module, "present", list)
    found = capabilities(setup)
    assert (found.rates, found.figures) == ([], [])
    assert found.notes == ["--capabilities makes an x86 processor act as older ones, and this is none."]
