"""Medians, spreads, ratios and verdicts of what was timed."""

import pytest

from vbp.evidence.timing import Case, Figure, Rate, clocked, machine, measure, named_gpu, over, ratio


def test_every_round_is_kept_and_the_warm_up_is_not():
    seconds = {"a": iter([9.0, 1.0, 2.0, 4.0]), "b": iter([9.0, 2.0, 2.0, 2.0])}
    order = []

    def case(name):
        def work():
            order.append(name)
            return 8, next(seconds[name])

        return Case("part", name, work)

    lines = []
    rates = measure([case("a"), case("b")], 3, lines.append)
    assert order == ["a", "b"] * 4
    assert lines == [f"part: round {number} of 3" for number in (1, 2, 3)]
    assert rates["a"].as_json() == {
        "part": "part", "name": "a", "unit": "images/s", "median": 4.0, "least": 2.0, "greatest": 8.0,
        "rounds": [8.0, 4.0, 2.0],
    }  # fmt: skip
    assert over(rates["a"], rates["b"]) == [2.0, 1.0, 0.5]
    assert ratio("a over b", rates["a"], rates["b"], 1.5).as_json() == {
        "part": "part", "name": "a over b", "unit": "", "median": 1.0, "least": 0.5, "greatest": 2.0,
        "target": 1.5, "at_most": False, "reached": False, "detail": "",
    }  # fmt: skip


def test_a_case_can_go_without_warm_up():
    seconds = iter([1.0, 2.0])
    rates = measure([Case("part", "a", lambda: (1, next(seconds)))], 2, lambda line: None, warm_up=False)
    assert rates["a"].rates == [1.0, 0.5]


@pytest.mark.parametrize(
    ("target", "at_most", "reached"),
    [(None, False, None), (2.0, False, True), (2.1, False, False), (2.0, True, True), (1.9, True, False)],
)
def test_verdicts_are_of_the_median(target, at_most, reached):
    assert Figure("part", "name", [9.0, 2.0, 1.0], target=target, at_most=at_most).reached is reached


def test_the_clock_runs_around_the_work():
    images, seconds = clocked(lambda: None, 5)()
    assert images == 5
    assert 0 < seconds < 1


def test_the_machine_is_told_with_what_is_installed():
    told = machine("cpu")
    assert told["cores"] >= 1
    assert {"cpu", "python", "torch", "numpy", "pillow"} <= told.keys()
    assert "gpu" not in told


def test_rates_of_one_round():
    assert Rate("part", "a", rates=[0.12345]).as_json()["median"] == 0.123


@pytest.mark.parametrize(
    ("gpu", "name"), [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"), ("NVIDIA L4", None)]
)
def test_two_gpus_have_targets_of_their_own(gpu, name, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: gpu)
    assert named_gpu("cuda") == name
    assert named_gpu("cpu") is None
