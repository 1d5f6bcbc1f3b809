"""Spread on Ray: a function for many arguments as tasks, as ``vbp.storage.spreading`` describes it.

It is for the work before and after the images: listing INPUT, making the index.  Then the actors that hold the network
do not run, and a task claims a CPU of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from vbp.errors import InterruptedRunError
from vbp.pipeline.on_ray import cluster
from vbp.pipeline.on_ray.faults import cause_of, interrupted
from vbp.pipeline.resources import Resources, shortage
from vbp.storage.spreading import Spread, ignored

A = TypeVar("A")
R = TypeVar("R")

AT_ONCE = 32
"""The most tasks that run or wait at a time; each may send 16 requests at once, and stores slow down whom they find
too greedy."""
RETRIES = 3
"""How often Ray repeats a task whose worker was lost."""
START_SECONDS = 600
"""Time limit for a first worker to start."""


def spread_by(given: Resources) -> Spread:
    """A `Spread` over the nodes where workers may run.

    Results wait on the driver, so they must be small, or few (`most`).  When a task has failed, no other one begins.
    Besides what the function raises, it raises InterruptedRunError: no worker starts, or Ray cannot go on.

    Args:
        given: resources of the workers.
    """
    return partial(_spread, given)


@contextmanager
def joined() -> Iterator[Spread]:
    """Join or start Ray, as ``cluster.connected`` does, and spread over all of its nodes.

    Raises:
        UsageError: the cluster cannot be joined.
        InterruptedRunError: Ray cannot be started here.
    """
    with cluster.connected():
        yield spread_by(Resources(workers=1, num_cpus=1, num_gpus=0, threads=1))


def _spread(
    given: Resources,
    function: Callable[[A], R],
    arguments: Iterable[A],
    done: Callable[[R], object] = ignored,
    most: float = math.inf,
) -> Iterator[R]:
    claims: dict[str, Any] = {"num_cpus": 1, "max_retries": RETRIES}
    if given.labels:
        claims["label_selector"] = dict(given.labels)
    _await_a_worker(claims, given)
    task, shared, left = ray.remote(**claims)(_carry_out), ray.put(function), iter(arguments)
    begun = turn = 0
    running: dict[ray.ObjectRef, int] = {}
    results: dict[int, R] = {}
    failed: dict[int, Exception] = {}
    try:
        while True:
            room = min(AT_ONCE - len(running), most - (begun - turn))
            for argument in () if failed else islice(left, int(room)):
                running[task.remote(shared, argument)] = begun
                begun += 1
            if turn in results:
                yield results.pop(turn)
                turn += 1
                continue
            if turn in failed:
                raise failed[turn]
            if not running:
                return
            for answer in ray.wait(list(running))[0]:
                number = running.pop(answer)
                try:
                    results[number] = _result(answer)
                except Exception as error:
                    failed[number] = error
                else:
                    done(results[number])
    finally:
        for unfinished in running:
            ray.cancel(unfinished)


def _carry_out(function: Callable[[A], R], argument: A) -> R:
    return function(argument)


def _result(answer: ray.ObjectRef) -> Any:
    try:
        return ray.get(answer)
    except RayTaskError as error:
        raise cause_of(error) from error
    except RayError as error:
        raise interrupted(error) from error


def _await_a_worker(claims: dict[str, Any], given: Resources) -> None:
    """Wait until a task with these claims was carried out, since Ray waits without end and without a word.

    Raises:
        InterruptedRunError: none starts.
    """
    first = ray.remote(**claims)(_nothing).remote()
    if not ray.wait([first], timeout=START_SECONDS)[0]:
        ray.cancel(first)
        lacking = shortage(given, cluster.nodes(), cluster.free())
        raise InterruptedRunError(
            f"No task with 1 CPU has started within {START_SECONDS} s: {lacking}. Free some or add nodes, and run the "
            "same command again."
        )


def _nothing() -> None:
    """A task that shows that there is room for one."""
