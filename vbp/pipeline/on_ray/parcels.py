"""Parcels: batches on their way from one task of Ray to the next.

Ray Data does work for each task, each block and each of its columns.  So several batches together are one row, and Ray
sees only columns of bytes: one for each large array, which is read where Ray has it, and one for all else.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vbp.pipeline.steps import Batch

PARCEL_BYTES = 64 * 2**20
"""A parcel is sent when it has so many bytes.  Its images make one part, and are lost if a node is killed."""
LARGE = 2**20
"""Bytes from which an array has a column of its own."""
_BATCHES = "batches"


def parcels(batches: Iterable[Batch], size: int = PARCEL_BYTES, *, cuts: bool = False) -> Iterator[pa.Table]:
    """Put batches into parcels of at least `size` bytes each; the last one has what is left.

    Args:
        batches: to send.
        size: of a parcel.
        cuts: whether a batch of more bytes is cut between images; for images that do not go through a network together.
    """
    waiting: list[Batch] = []
    held = 0
    for batch in batches:
        for piece in _cut(batch, size) if cuts else [batch]:
            waiting.append(piece)
            held += int(_bytes_of_rows(piece).sum())
            if held >= size:
                yield packed(waiting)
                waiting, held = [], 0
    if waiting:
        yield packed(waiting)


def packed(batches: Sequence[Batch]) -> pa.Table:
    """One parcel: a table with one row."""
    large: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        if (view := buffer.raw()).nbytes < LARGE:
            return True
        large.append(view)
        return False

    small = pickle.dumps(batches, protocol=5, buffer_callback=is_small)
    return pa.table({_BATCHES: _cell(small)} | {str(number): _cell(view) for number, view in enumerate(large)})


def unpacked(parcel: pa.Table) -> list[Batch]:
    """The batches of a parcel; their large arrays are views of it, and read-only if Ray's store has it."""
    small, *large = (_content(column) for column in parcel.columns)
    batches: list[Batch] = pickle.loads(small, buffers=large)  # of our own tasks
    return batches


def _cell(data: bytes | memoryview) -> pa.Array:
    """A column with one value, without a copy."""
    ends = np.array([0, len(data)], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(data)])


def _content(column: pa.ChunkedArray) -> memoryview:
    (cell,) = column.chunks
    _, ends, data = cell.buffers()
    first, last = np.frombuffer(ends, np.int64)[cell.offset : cell.offset + 2]
    return memoryview(data)[first:last]


def _cut(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in pieces of at most `size` bytes, or of one image."""
    first, held = 0, 0
    for row, its_bytes in enumerate(_bytes_of_rows(batch)):
        if held and held + its_bytes > size:
            yield {name: values[first:row] for name, values in batch.items()}
            first, held = row, 0
        held += its_bytes
    yield {name: values[first:] for name, values in batch.items()}


def _bytes_of_rows(batch: Batch) -> NDArray[np.int64]:
    """The bytes of each row: its numbers, pictures and files; other objects count nothing."""
    each: NDArray[np.int64] = np.sum([_bytes_of_each(values) for values in batch.values()], axis=0)
    return each


def _bytes_of_each(values: NDArray[Any]) -> NDArray[np.int64]:
    if values.dtype != object:
        return np.full(len(values), values[:1].nbytes)
    return np.array([getattr(value, "nbytes", len(value) if isinstance(value, bytes) else 0) for value in values])
