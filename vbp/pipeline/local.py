"""The steps chained in one process: quick runs, what a CPU worker does, and the definition of correct.

Reading and decoding the next batch, the network, and encoding and writing the last one overlap, each in a thread of
its own with one batch between them; order and bytes are those of one step after the other.
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
"""About what a killed worker loses: encoded images wait so long for a part in common."""
COMMIT_BYTES = 64 * 2**20
"""Of encoded files, beyond which they do not wait."""


class Chain:
    """All five steps in one object: shard numbers in, one report a part out.

    Args:
        steps: what to do.
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
                yield from self._singly(work)
                yield from self._overlapped(work)

    def _singly(self, work: Rows) -> Iterator[Batch]:
        for batch in work.singles():
            yield self._write(self._encode(self._explain(self._decode(self._fetch(batch)))))

    def _overlapped(self, work: Rows) -> Iterator[Batch]:
        read = (self._decode(self._fetch(batch)) for batch in work.batches(self._rows))
        explained = map(self._explain, ahead(self._reading, read))
        encoded = map(self._encode, ahead(self._computing, explained))
        return map(self._write, gathered(encoded, COMMIT_SECONDS, COMMIT_BYTES))


def ahead(pool: Executor, items: Iterator[T]) -> Iterator[T]:
    """The same `items` (none of them None), each made in `pool` while the one before it is used."""
    coming = pool.submit(next, items, None)
    try:
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
    finally:
        wait([coming])  # whatever ended this: nothing goes on behind its back


def gathered(batches: Iterable[Batch], seconds: float, size: int) -> Iterator[Batch]:
    """Batches of encoded images joined: what came within `seconds`, or reached `size` bytes of files."""
    waiting: list[Batch] = []
    since, held = time.monotonic(), 0
    for batch in batches:
        waiting.append(batch)
        held += sum(len(data) for name in batch if name.startswith("file_") for data in batch[name] if data is not None)
        if held >= size or time.monotonic() - since >= seconds:
            yield joined(waiting)
            waiting, since, held = [], time.monotonic(), 0
    if waiting:
        yield joined(waiting)


def joined(batches: list[Batch]) -> Batch:
    """One batch with the rows of all; they have the same columns."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def reports(steps: Steps, units: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Work on `units` here and now; yields a report for every part that was committed."""
    chain = Chain(steps)
    for unit in units:
        for batch in chain({"shard": [unit]}):
            yield from rows_of(batch)


def rows_of(batch: Batch) -> Iterator[dict[str, Any]]:
    """The rows of a batch of columns, one dict each."""
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))
