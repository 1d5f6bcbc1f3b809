"""The steps as a lazy ``ray.data.Dataset`` with explicit resources.

Two shapes, one set of steps:

- fused, for workers without an accelerator: the network is the slowest stage by far, so each actor runs the whole
  chain and no pixel ever leaves it;
- spread, for GPUs: there are workers for reading and decoding, for the network, and for encoding and writing.

Rows of one shard do not stay together in the spread shape: Ray re-forms batches across blocks, so a block may hold
rows of two shards, and a shard is spread over several blocks (seen with Ray 2.60: 300-row shards in 8 MiB blocks
came out in runs of 42, 22 and 46 rows).  ``Write`` therefore commits one part for each shard in a block, and a
shard is done when its parts hold all its positions, in whatever pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from vbp.pipeline.local import Chain
from vbp.pipeline.recipe import Steps
from vbp.pipeline.resources import Resources
from vbp.pipeline.steps import Batch

CHUNK_ROWS = 64
"""Rows in a batch of a decoding task, where images have sizes of their own."""
START_SECONDS = 600
"""Time limit for all workers to start; after it a message says what the cluster lacks."""
IDLE_SECONDS = 1800
"""Time limit without any finished work."""
INIT_DEATHS = 3
"""The most workers in a row that may be killed while they load the network."""
READ_TASKS = 1000
"""The most tasks that list the shards."""
BLOCK_BYTES = 32 * 2**20
"""Bytes of a block, where images have sizes of their own. What is in a block makes one part, and is lost if a node is
killed."""
LEAST_BLOCK_BYTES = 2**20
"""Bytes below which a block's way costs more than its rows; it holds several batches then."""
OF_A_BATCH = 0.95
"""Bytes at which Ray ends a block, as a share of a decoded batch, so that each batch makes one block. Ray cuts blocks
from 1.5 times as many bytes; an explained batch with its overlays has 1.33 times the bytes of a decoded one."""


def plan(steps: Steps, shards: Sequence[int], given: Resources, *, spread: bool | None = None) -> Dataset:
    """A lazy dataset whose rows are the reports of committed parts.

    Args:
        steps: the source of rows, and the steps.
        shards: numbers of the shards that have work left.
        given: resources of the workers that hold the network.
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
    # In the fused shape only reports leave the actor; each is a block of its own, so that progress shows at once.
    context.target_max_block_size = _block_bytes(steps) if spread else 1
    with DataContext.current(context):
        # Listing claims no CPU: after nodes are lost, workers may hold all CPUs that are left.  One listing task at a
        # time is far faster than the work, and every further one would be a process more that loads Ray Data while
        # the workers load the network.
        source = ray.data.read_datasource(Shards(shards), num_cpus=0, concurrency=1, override_num_blocks=len(shards))
        return _spread(source, steps, given) if spread else _fused(source, steps, given, len(shards))


def _fused(source: Dataset, steps: Steps, given: Resources, shards: int) -> Dataset:
    return source.map_batches(
        Chain, fn_constructor_args=(steps,), batch_size=1, num_cpus=given.num_cpus, **_pool(given, shards)
    )


def _block_bytes(steps: Steps) -> int:
    return BLOCK_BYTES if steps.batch_bytes is None else max(LEAST_BLOCK_BYTES, int(OF_A_BATCH * steps.batch_bytes))


def _spread(source: Dataset, steps: Steps, given: Resources) -> Dataset:
    return (
        source.map_batches(fetch_and_decode, fn_args=(steps,), batch_size=1, num_cpus=given.codec_cpus)
        .map_batches(
            ExplainActor,
            fn_constructor_args=(steps,),
            batch_size=steps.batch_size,
            num_cpus=given.num_cpus,  # without it a GPU worker would claim one CPU
            num_gpus=given.num_gpus or None,
            **_pool(given),
        )
        .map_batches(encode_and_write, fn_args=(steps,), batch_size=None, num_cpus=given.codec_cpus)
    )


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


def fetch_and_decode(shards: Batch, steps: Steps) -> Iterator[Batch]:
    """Shard numbers -> decoded rows, in chunks."""
    source, fetch, decode = steps.source(), steps.fetch(), steps.decode()
    rows = CHUNK_ROWS if steps.batch_bytes is None else steps.batch_size
    for shard in shards["shard"]:
        with source.open(int(shard)) as work:
            for batch in chain(work.singles(), work.batches(rows)):
                yield decode(fetch(batch))


class ExplainActor:
    """The third step, built where the accelerator is."""

    def __init__(self, steps: Steps) -> None:
        self._explain = steps.explain()

    def __call__(self, batch: Batch) -> Batch:
        """Decoded rows -> explained rows."""
        return self._explain(batch)


def encode_and_write(batch: Batch, steps: Steps) -> Batch:
    """Explained rows -> objects in storage and a committed part."""
    return steps.write()(steps.encode()(batch))


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
        import pyarrow as pa

        return [pa.table({"shard": pa.array(shards, pa.int64())})]

    return ReadTask(read, BlockMetadata(len(shards), 8 * len(shards), input_files=None, exec_stats=None))
