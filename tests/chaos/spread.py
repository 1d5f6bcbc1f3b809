"""The shape that runs have beside GPUs, on CPUs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from vbp.pipeline.on_ray import dataset
from vbp.pipeline.recipe import Steps
from vbp.pipeline.resources import Resources
from vbp.pipeline.steps import Batch

PARCEL_BYTES = (1, 10_000)
CPUS = 0.25
"""Of a worker with the network: not what a task beside it claims, else Ray would decode in that worker too."""
_plan, _fetch_and_decode = dataset.plan, dataset.fetch_and_decode


def take() -> None:
    """In a driver, before it plans; shards with few images left then share tasks, even if they are few themselves."""
    dataset.plan, dataset.fetch_and_decode = plan, fetch_and_decode
    dataset.LEAST_TASKS = 2


def plan(steps: Steps, shards: list[int], given: Resources, **arguments: Any) -> dataset.Dataset:
    """As the pipeline's own, with three kinds of workers."""
    return _plan(steps, shards, replace(given, num_cpus=CPUS), spread=True, **arguments)


def fetch_and_decode(shards: Batch, steps: Steps, _: int) -> Iterator[pa.Table]:
    """As the pipeline's own, but a parcel has one batch or two."""
    yield from _fetch_and_decode(shards, steps, random.choice(PARCEL_BYTES))
