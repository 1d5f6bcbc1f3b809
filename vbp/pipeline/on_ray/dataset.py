"""The steps as a lazy ``ray.data.Dataset`` with explicit resources.

Two shapes, one set of steps:

- fused, for workers without an accelerator: the network is the slowest stage by far, so each actor runs the whole
  chain and no pixel ever leaves it;
- spread, for GPUs: there are workers for reading and decoding, for the network, and for encoding and writing; batches
  go from one to the next in parcels.

In the spread shape a shard goes in several parcels, and a parcel has images of several shards where few are left in
each.  ``Write`` therefore commits one part for each shard in a parcel, and a shard is done when its parts hold all its
positions, in whatever pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from vbp.pipeline.local import Chain, joined
from vbp.pipeline.on_ray import cluster, copies
from vbp.pipeline.on_ray.parcels import packed, parcel_bytes, parcels, unpacked
from vbp.pipeline.on_ray.sealed import opened
from vbp.pipeline.on_ray.warned import listen
from vbp.pipeline.recipe import Steps
from vbp.pipeline.resources import Resources
from vbp.pipeline.steps import Batch, objects

OWN_SIZES_ROWS = 64
"""Images that a decoding task reads together, where they have sizes of their own."""
START_SECONDS = 600
"""Time limit for all workers to start; after it a message says what the cluster lacks."""
IDLE_SECONDS = 1800
"""Time limit without any finished work."""
INIT_DEATHS = 3
"""The most workers in a row that may be killed while they load the network."""
READ_TASKS = 1000
"""The most tasks that list the shards."""
FULL_BATCHES = 4
"""A decoding task takes as many shards as fill so many batches: several, where shards have few images left."""
SHARDS_A_TASK = 64
"""The most shards of a decoding task."""
LEAST_TASKS = 64
"""Decoding tasks that there are at least, so that all CPUs have some; a task of one shard cannot be divided."""


def plan(
    steps: Steps, shards: Sequence[int], given: Resources, *, images: int | None = None, spread: bool | None = None
) -> Dataset:
    """A lazy dataset whose rows are the reports of committed parts.

    Args:
        steps: the source of rows, and the steps.
        shards: numbers of the shards that have work left.
        given: resources of the workers that hold the network.
        images: that are left in these shards; None: that is unknown.
        spread: the shape; None chooses by the device.
    """
    spread = given.num_gpus > 0 if spread is None else spread
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.wait_for_min_actors_s = START_SECONDS
    context.execution_no_progress_timeout_s = IDLE_SECONDS
    # Ray Data repeats the work of a killed worker without limit; the marks of `Source` find the image that crashes
    # workers.  An exception is never retried here: errors that may pass were retried where they occurred.
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    context.max_errored_blocks = 0
    context.actor_task_retry_on_errors = False
    context.memory_usage_poll_interval_s = None  # else each task starts a thread that looks at its process
    context.target_max_block_size = 1  # each parcel is a block, and each report, so that progress shows at once
    with DataContext.current(context):
        # Listing claims no CPU: after nodes are lost, workers may hold all CPUs that are left.  One listing task at a
        # time is far faster than the work, and every further one would be a process more that loads Ray Data while
        # the workers load the network.
        source = ray.data.read_datasource(Shards(shards), num_cpus=0, concurrency=1, override_num_blocks=len(shards))
        if not spread:
            return _fused(source, steps, given, len(shards))
        together = _shards_a_task(len(shards), images, steps.batch_size)
        size = 1 if steps.is_slow else parcel_bytes(len(shards), given, cluster.nodes())
        return _spread(source, steps, given, together, size)


def _fused(source: Dataset, steps: Steps, given: Resources, shards: int) -> Dataset:
    return source.map_batches(
        Chain, fn_constructor_args=(steps,), batch_size=1, num_cpus=given.num_cpus, **_pool(given, shards)
    )


def _shards_a_task(shards: int, images: int | None, batch_size: int) -> int:
    if images is None:
        return 1
    wanted = -(-shards * FULL_BATCHES * batch_size // max(images, 1))
    return max(1, min(wanted, SHARDS_A_TASK, shards // LEAST_TASKS))


def _spread(source: Dataset, steps: Steps, given: Resources, shards_a_task: int, size: int) -> Dataset:
    read = {"fn_args": (steps, size), "batch_size": shards_a_task, "num_cpus": given.codec_cpus}
    return (
        source.map_batches(fetch_and_decode, **read)
        .map_batches(
            ExplainActor,
            fn_constructor_args=(steps,),
            **_PARCELS,
            num_cpus=given.num_cpus,  # without it a GPU worker would claim one CPU
            num_gpus=given.num_gpus or None,
            runtime_env={"env_vars": copies.on_any_node()},
            **_pool(given),
        )
        .map_batches(encode_and_write, fn_args=(steps,), **_PARCELS, num_cpus=given.codec_cpus)
    )


WARNED = "warned"
"""Column of a parcel's rows and of their reports: what the worker has warned of, by lines."""
_PARCELS: Mapping[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
"""Each call gets one parcel, which is a row. Where GPUs are claimed, Ray wants a size."""


def _pool(given: Resources, at_most: float = math.inf) -> dict[str, Any]:
    """Number of workers that hold the network, and the nodes where they may run."""
    least = min(given.workers, at_most)
    most = min(max(given.workers, given.at_most), at_most)
    pool = ActorPoolStrategy(
        min_size=int(least),
        max_size=None if most == math.inf else int(most),
        max_concurrent_calls_per_actor=given.calls,
        enable_true_multi_threading=given.calls > 1,  # else the calls would overlap, but not the step within them
    )
    return {"compute": pool} | ({"label_selector": dict(given.labels)} if given.labels else {})


def fetch_and_decode(shards: Batch, steps: Steps, size: int) -> Iterator[pa.Table]:
    """Shard numbers -> parcels of decoded rows, of at least `size` bytes each."""
    source, fetch, decode = steps.source(), steps.fetch(), steps.decode()

    def read(batch: Batch) -> Batch:
        return decode(fetch(batch))

    rows = OWN_SIZES_ROWS if steps.own_sizes else steps.batch_size
    with ExitStack() as opened:
        works = [opened.enter_context(source.open(int(shard))) for shard in shards["shard"]]
        singles = chain.from_iterable(work.singles(read) for work in works)
        batches = filled(chain.from_iterable(work.batches(rows) for work in works), rows)
        for parcel in parcels(singles, size, read=steps.read_by_explain):
            # A worker has died.  So what is decoded is sent at once: it must not be lost again if the next one dies.
            size = 1
            yield parcel
        yield from parcels(map(read, batches), size, cuts=steps.own_sizes, read=steps.read_by_explain)


def filled(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """Batches of at most `rows` rows -> batches of `rows` rows each, but for the last one."""
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(each["key"]) for each in waiting) >= rows:
            together = joined(waiting)
            yield {name: values[:rows] for name, values in together.items()}
            rest = {name: values[rows:] for name, values in together.items()}
            waiting = [rest] if len(rest["key"]) else []
    if waiting:
        yield joined(waiting)


class ExplainActor:
    """The third step, built where the accelerator is."""

    def __init__(self, steps: Steps) -> None:
        self._warnings: dict[str, None] = {}  # an ordered set
        listen(self._warnings.setdefault)
        self._explain = steps.explain()

    def __call__(self, parcel: pa.Table) -> pa.Table:
        """Decoded rows -> explained rows, with the worker's warnings so far."""
        explained = [self._explain(batch) for batch in unpacked(parcel)]
        warned = "\n".join([*self._warnings])
        return packed([batch | {WARNED: objects([warned] * len(batch["key"]))} for batch in explained])


def encode_and_write(parcel: pa.Table, steps: Steps) -> Batch:
    """Explained rows -> objects in storage and a committed part for each shard; its report has the warnings."""
    encode, write = steps.encode(), steps.write()
    batches = [opened(batch) for batch in unpacked(parcel)]
    warned = [batch.pop(WARNED)[-1] for batch in batches][-1]
    reports = write(joined([encode(batch) for batch in batches]))
    if reports:
        reports[WARNED] = objects([warned] * len(next(iter(reports.values()))))
    return reports


class Shards(Datasource):  # type: ignore[misc]
    """One row and one block for every shard, the unit of scheduling and of retries, from a bounded number of tasks.

    Ray holds all read tasks on the driver before the first one starts, so their number must not grow with the
    collection. A task returns the rows of its shards together; Ray cuts them into blocks of one row, because
    ``override_num_blocks`` is the number of shards.
    """

    def __init__(self, shards: Sequence[int]) -> None:
        super().__init__()
        self._shards = shards

    def estimate_inmemory_data_size(self) -> int:
        """Eight bytes a shard."""
        return 8 * len(self._shards)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """At most ``READ_TASKS`` tasks with as many shards each, whatever `parallelism` says."""
        size = -(-len(self._shards) // READ_TASKS)
        return [_read_task(self._shards[first : first + size]) for first in range(0, len(self._shards), size)]


def _read_task(shards: Sequence[int]) -> ReadTask:
    def read() -> list[Any]:
        return [pa.table({"shard": pa.array(shards, pa.int64())})]

    return ReadTask(read, BlockMetadata(len(shards), 8 * len(shards), input_files=None, exec_stats=None))
