"""A function for many arguments as tasks of Ray."""

import os
import time
from functools import partial
from pathlib import Path

import pytest

from vbp.errors import InterruptedRunError, UsageError
from vbp.pipeline.on_ray import spread as module
from vbp.pipeline.on_ray.spread import spread_by
from vbp.pipeline.resources import Resources

GIVEN = Resources(workers=1, num_cpus=1, num_gpus=0, threads=1)


def same(argument):
    return argument


def last_of_five(argument):
    """The first one waits for the fifth, which begins when others are done."""
    number, folder = argument
    (folder / str(number)).touch()
    while not number and not (folder / "4").exists():
        time.sleep(0.01)
    return number


def noted(folder, number):
    (folder / str(number)).touch()
    while len(list(folder.iterdir())) < 3:
        time.sleep(0.01)
    return number


def refused(number):
    time.sleep(0.2 * (number < 3))
    if number in (2, 7):
        raise (UsageError if number == 2 else FileNotFoundError)(f"{number} is refused")
    return number


def killed_once(place):
    """Ends its worker at the first call."""
    if not place.exists():
        place.write_bytes(b"")
        os._exit(1)
    return place.name


def killed(place):
    os._exit(1)


def test_results_come_in_order_and_each_is_told_when_it_is_there(ray_session, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "AT_ONCE", 3)
    arguments, taken, told = [(number, tmp_path) for number in range(10)], [], []

    def some():
        for argument in arguments:
            taken.append(argument)
            yield argument

    results = spread_by(GIVEN)(last_of_five, some(), told.append)
    assert next(results) == 0
    assert len(taken) <= len(told) + 3
    assert [0, *results] == list(range(10)) == sorted(told)
    assert told[0] != 0
    assert list(spread_by(GIVEN)(same, [])) == []


def test_no_more_results_wait_than_are_wanted(ray_session, tmp_path):
    """The first result is awaited while others are there; a partial function is carried out, too."""
    results = spread_by(GIVEN)(partial(noted, tmp_path), range(6), most=3)
    assert next(results) == 0
    assert len(list(tmp_path.iterdir())) == 3
    assert list(results) == [1, 2, 3, 4, 5]


def test_a_lost_worker_is_replaced_and_the_first_failure_is_raised_as_it_was(ray_session, tmp_path):
    assert list(spread_by(GIVEN)(killed_once, [tmp_path / "a", tmp_path / "b"])) == ["a", "b"]
    results = spread_by(GIVEN)(refused, range(100))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(UsageError, match=r"^2 is refused$"):
        next(results)


def test_a_task_that_always_ends_its_worker_ends_the_run_and_it_can_go_on(ray_session, monkeypatch):
    monkeypatch.setattr(module, "RETRIES", 0)
    with pytest.raises(InterruptedRunError, match="Ray could not go on: .* run the same command again"):
        list(spread_by(GIVEN)(killed, [Path()]))


def test_where_no_task_starts_it_is_said(ray_session, monkeypatch):
    monkeypatch.setattr(module, "START_SECONDS", 0.2)
    nowhere = Resources(workers=1, num_cpus=1, num_gpus=0, threads=1, labels={"zone": "none"})
    with pytest.raises(InterruptedRunError, match=r"within 0\.2 s: 1 worker claims 1 CPUs .*run the same command"):
        list(spread_by(nowhere)(same, [0]))
