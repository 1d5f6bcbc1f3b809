"""The steps chained in one process: for quick runs and CPU workers; it defines the correct results.

Three threads overlap: one reads and decodes the next batch, one runs the network, one encodes and writes the last
batch; one batch waits between two threads.  Order and bytes are the same as without overlap.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np

from vbp.pipeline.recipe import Rows, Steps
from vbp.pipeline.steps import Batch

T = TypeVar("T")

COMMIT_SECONDS = 5.0
"""Encoded images are collected so long for one part; a killed worker loses about so many seconds of work."""
COMMIT_BYTES = 64 * 2**20
"""Bytes of encoded files after which a part is committed at once."""


class Chain:
    """All five steps in one object: takes numbers of units, and yields a report for each part.

    Args:
        steps: the source of rows, and the steps.
    """

    def __init__(self, steps: Steps) -> None:
        self._source = steps.source()
        self._rows = steps.rows
        self._fetch, self._decode = steps.fetch(), steps.decode()
        self._explain = steps.explain()
        self._encode, self._write = steps.encode(), steps.write()
        self._reading, self._computing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def __call__(self, shards: Batch) -> Iterator[Batch]:
        """The callable that Ray Data maps over batches with the column ``shard``."""
        for shard in shards["shard"]:
            with self._source.open(int(shard)) as work:
                yield from work.singles(self._one)
                yield from self._overlapped(work)

    def _one(self, batch: Batch) -> Batch:
        return self._write(self._encode(self._explain(self._decode(self._fetch(batch)))))

    def _overlapped(self, work: Rows) -> Iterator[Batch]:
        read = (self._decode(self._fetch(batch)) for batch in work.batches(self._rows))
        explained = map(self._explain, ahead(self._reading, read))
        encoded = map(self._encode, ahead(self._computing, explained))
        return map(self._write, gathered(encoded, COMMIT_SECONDS, COMMIT_BYTES))


def ahead(pool: Executor, items: Iterator[T]) -> Iterator[T]:
    """Yield `items` (none of them None); `pool` makes the next one while the caller uses the last.

    If the wait for an item is interrupted, that item is yielded before the exception is raised.
    """
    coming = pool.submit(next, items, None)
    try:
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
    except KeyboardInterrupt:
        if (item := coming.result()) is not None:
            yield item
        raise
    finally:
        wait([coming])  # no work goes on in the pool after this ends


def gathered(batches: Iterable[Batch], seconds: float, size: int) -> Iterator[Batch]:
    """Join batches of encoded images that arrive within `seconds`, or until they have `size` bytes of files.

    If it is interrupted, it yields what waits before the exception is raised.
    """
    waiting: list[Batch] = []
    since, held = time.monotonic(), 0
    try:
        for batch in batches:
            waiting.append(batch)
            held += _file_bytes(batch)
            if held >= size or time.monotonic() - since >= seconds:
                yield joined(waiting)
                waiting, since, held = [], time.monotonic(), 0
    except KeyboardInterrupt:
        if waiting:
            yield joined(waiting)
        raise
    if waiting:
        yield joined(waiting)


def _file_bytes(batch: Batch) -> int:
    return sum(len(data) for name in batch if name.startswith("file_") for data in batch[name] if data is not None)


def joined(batches: list[Batch]) -> Batch:
    """One batch with the rows of all batches, which have the same columns."""
    if len(batches) == 1:
        return batches[0]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def reports(steps: Steps, units: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Work on `units` in this process; yields a report for every committed part."""
    chain = Chain(steps)
    for unit in units:
        for batch in chain({"shard": [unit]}):
            yield from rows_of(batch)


def rows_of(batch: Batch) -> Iterator[dict[str, Any]]:
    """The rows of a batch, as dicts by column name."""
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))
