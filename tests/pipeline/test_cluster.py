"""Joining Ray, or starting it."""

import pytest
import ray

from vbp.pipeline import cluster

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.fixture
def answers(monkeypatch):
    """What `ray.init` does, call by call: raises, or returns where there is None."""
    waiting = []

    def init(address, **options):
        error = waiting.pop(0)
        if error is not None:
            raise error

    monkeypatch.setattr(ray, "init", init)
    return waiting


def test_a_start_that_takes_too_long_is_tried_again(answers):
    answers += [Exception(LATE), Exception(LATE), None, None]
    cluster._init("local")
    assert answers == [None]


def test_but_not_for_ever(answers):
    answers += [Exception(LATE) for _ in range(9)]
    with pytest.raises(Exception, match="timed out during startup"):
        cluster._init("local")
    assert len(answers) == 6


def test_another_failure_is_one(answers):
    answers += [ConnectionError("nobody is there"), None]
    with pytest.raises(ConnectionError, match="nobody"):
        cluster._init("10.0.0.1:6379")
    assert answers == [None]
