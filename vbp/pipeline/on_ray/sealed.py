"""Sealed batches: columns that the next task does not read travel through it as bytes, and are not unpickled there.

A GPU worker's process reads five of the twenty columns of a batch.  To make Python objects of the others, and bytes of
these objects again, costs it more than its own columns do.

A step may drop, repeat or reorder rows: each row carries the bytes, of which there are as many as there are batches,
and its number in them.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection

import numpy as np

from vbp.pipeline.steps import Batch, objects

SEALED, ROW = "sealed", "row"
"""Columns of a sealed batch: the others as bytes, and the number of the row within them."""


def sealed(batch: Batch, read: Collection[str]) -> Batch:
    """The batch with the columns `read`, and all others as bytes."""
    rest = {name: values for name, values in batch.items() if name not in read}
    rows = len(next(iter(batch.values())))
    content = np.frombuffer(pickle.dumps(rest, protocol=5), np.uint8)  # an array: large ones travel without a copy
    kept = {name: values for name, values in batch.items() if name in read}
    return kept | {SEALED: objects([content] * rows), ROW: np.arange(rows)}


def opened(batch: Batch) -> Batch:
    """The batch that was sealed, as the task has left it: with its rows, and with the columns that it has made."""
    if SEALED not in batch:
        return batch
    made = {name: values for name, values in batch.items() if name not in (SEALED, ROW)}
    rest: Batch = pickle.loads(batch[SEALED][0])  # of our own tasks
    return {name: values[batch[ROW]] for name, values in rest.items()} | made
