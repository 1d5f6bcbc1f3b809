"""What a sweep would do, by what its runs would do."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

from vbp.cli import main
from vbp.errors import UsageError
from vbp.pipeline import RunConfig
from vbp.pipeline.dryrun import Plan
from vbp.pipeline.sweep import dryrun as module
from vbp.pipeline.sweep.dryrun import SweepPlan, plan_sweep
from vbp.pipeline.sweep.sweepfile import Budget, SweepRun, parse_sweep
from vbp.storage.record import SWEEP


def planned(images, done, rate):
    facts = dict.fromkeys((field.name for field in dataclasses.fields(Plan)), 0) | {"notes": ()}
    return Plan(**facts | {"images": images, "done": done, "images_per_second": rate, "price_per_hour": None})


def of(*plans, spent=0.0, **budget):
    run = SweepRun(name="run", varied={}, config=RunConfig(input="in", output="out"))
    return SweepPlan(output="o", budget=Budget(**budget), hours_spent=spent, runs=tuple((run, plan) for plan in plans))


def test_sums():
    plan = of(planned(7200, 0, 2.0), planned(7200, 3600, 1.0), price_per_hour=3.0)
    assert (plan.images, plan.left, plan.seconds, plan.cost) == (14400, 10800, 7200.0, 6.0)
    assert of(planned(10, 0, None), planned(10, 0, 1.0)).seconds is None
    assert of(planned(10, 10, None)).seconds == 0


@pytest.mark.parametrize(
    ("spent", "budget", "exceeds"),
    [
        (0, {}, None),
        (0, {"max_hours": 2.1}, False),
        (0, {"max_hours": 1.9}, True),
        (0.5, {"max_hours": 2.1}, True),
        (0, {"max_cost": 5, "price_per_hour": 2}, False),
        (0, {"max_cost": 5, "price_per_hour": 3}, True),
    ],
)
def test_against_the_budget(spent, budget, exceeds):
    assert of(planned(7200, 0, 1.0), spent=spent, **budget).exceeds_budget is exceeds


def test_runs_of_one_network_are_planned_together_and_told_in_the_files_order(monkeypatch):
    monkeypatch.setattr(module, "plan", lambda config, **_: planned(config.size, 0, 1.0))
    text = "{output: o, inputs: p, grid: {preset: [paper, reference]}, variants: {a: {model: vgg16, size: 1}, "
    text += "b: {model: vgg11, size: 2}, c: {model: vgg16, size: 3}}}"
    told = []
    found = plan_sweep(parse_sweep(text), told.append)
    assert [name[8:9] for name in told] == ["a", "a", "c", "c", "b", "b"]
    assert [plan.images for _, plan in found.runs] == [1, 1, 2, 2, 3, 3]


def test_a_real_one_writes_nothing_and_names_the_run_that_would_be_refused(photos, network_file, tmp_path):
    common = f"{{size: 32, precision: float32, runner: local, weights: {network_file}, limit: 4}}"
    text = f"output: {tmp_path / 'out'}\ninputs: {photos}\ncommon: {common}\ngrid: {{preset: [paper, reference]}}\n"
    told = []
    found = plan_sweep(parse_sweep(text), told.append)
    assert told == ["preset-paper", "preset-reference"]
    assert (found.images, found.left, found.seconds > 0, found.hours_spent) == (8, 8, True, 0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="run preset-reference: .*first map"):
        plan_sweep(
            parse_sweep(text.replace("limit: 4", "limit: 4, model: squeezenet1_1").replace(network_file, "random"))
        )
    (tmp_path / "sweep.yaml").write_text(text + "budget: {max_hours: 1}\n")
    (tmp_path / "out" / SWEEP).parent.mkdir(parents=True)
    (tmp_path / "out" / SWEEP).write_text('{"seconds": 3600}')
    result = CliRunner().invoke(main, ["sweep", str(tmp_path / "sweep.yaml"), "--plan", "--json"])
    found = json.loads(result.stdout)
    assert (found["exceeds_budget"], found["hours_spent"], len(found["runs"])) == (True, 1.0, 2)
