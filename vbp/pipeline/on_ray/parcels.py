"""Parcels: batches on their way from one task of Ray to the next.

Ray Data does work for each task, each block and each of its columns.  So several batches together are one row, and Ray
sees only columns of bytes: those of large arrays, which are read where Ray has them, and one for all else.  Large
arrays that lie side by side in memory share a column, because Ray starts threads for the copy of each column.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vbp.pipeline.on_ray.sealed import sealed
from vbp.pipeline.resources import CPUS_A_GPU_WORKER, Node, Resources
from vbp.pipeline.steps import Batch

PARCEL_BYTES, LARGE_PARCEL_BYTES = 64 * 2**20, 160 * 2**20
"""A parcel is sent when it has so many bytes: four batches at 224x224; or a shard of 1,024 images, so that Ray has less
work for each batch.  Its images make one part, and are lost if a node is killed."""
STORE_A_CPU = 8 * LARGE_PARCEL_BYTES
"""Bytes that Ray's store must have for each CPU of a node, where parcels are large.  Ray Data takes half of the store;
masks and overlays have more bytes than pixels, up to three times as many in some formats."""
LEAST_PARCELS, LEAST_PARCELS_A_CPU = 64, 2
"""Large parcels that a run must have in all and for each CPU, so that all CPUs have some to encode."""
LARGE = 2**20
"""Bytes from which an array is not in the first column, with all else."""
_BATCHES = "batches"


def parcel_bytes(shards: int, given: Resources, nodes: Sequence[Node]) -> int:
    """Bytes of a parcel: of a whole shard where there are many shards and all nodes have room.

    Args:
        shards: that have work left.
        given: resources of the workers that hold the network; if nodes may come, nobody knows their room.
        nodes: the nodes that are alive.
    """
    working = [node for node in nodes if node.cpus or node.gpus]
    if not working or given.at_most > given.workers:
        return PARCEL_BYTES
    if shards < max(LEAST_PARCELS, LEAST_PARCELS_A_CPU * sum(node.cpus for node in working)):
        return PARCEL_BYTES
    roomy = all(node.store >= STORE_A_CPU * max(node.cpus, CPUS_A_GPU_WORKER * node.gpus) for node in working)
    return LARGE_PARCEL_BYTES if roomy else PARCEL_BYTES


def parcels(
    batches: Iterable[Batch], size: int, *, cuts: bool = False, read: Collection[str] | None = None
) -> Iterator[pa.Table]:
    """Put batches into parcels of at least `size` bytes each; the last one has what is left.

    Args:
        batches: to send.
        size: of a parcel.
        cuts: whether a batch of more bytes is cut between images; for images that do not go through a network together.
        read: columns that the next task reads; the batches are `sealed` but for these. None: all.
    """
    waiting: list[Batch] = []
    held = 0
    for batch in batches:
        for piece in _cut(batch, size) if cuts else [batch]:
            waiting.append(piece)
            held += int(_bytes_of_rows(piece).sum())
            if held >= size:
                yield packed(_sealed(waiting, read))
                waiting, held = [], 0
    if waiting:
        yield packed(_sealed(waiting, read))


def _sealed(batches: Sequence[Batch], read: Collection[str] | None) -> Sequence[Batch]:
    return batches if read is None else [sealed(batch, read) for batch in batches]


def packed(batches: Sequence[Batch]) -> pa.Table:
    """One parcel: a table with one row."""
    large: list[pa.Buffer] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        if (view := buffer.raw()).nbytes < LARGE:
            return True
        large.append(pa.py_buffer(view))
        return False

    small = pickle.dumps(batches, protocol=5, buffer_callback=is_small)
    cells = [_cell([pa.py_buffer(small)]), *map(_cell, _side_by_side(large))]
    return pa.table({_BATCHES: cells[0]} | {str(number): cell for number, cell in enumerate(cells[1:])})


def unpacked(parcel: pa.Table) -> list[Batch]:
    """The batches of a parcel; their large arrays are views of it, and read-only."""
    small, *large = chain.from_iterable(map(_contents, parcel.columns))
    batches: list[Batch] = pickle.loads(small, buffers=large)  # of our own tasks
    return batches


def _side_by_side(buffers: Iterable[pa.Buffer]) -> list[list[pa.Buffer]]:
    """The buffers in groups, in each of which every one begins in memory where the one before ends."""
    groups: list[list[pa.Buffer]] = []
    for buffer in buffers:
        if groups and groups[-1][-1].address + groups[-1][-1].size == buffer.address:
            groups[-1].append(buffer)
        else:
            groups.append([buffer])
    return groups


def _cell(group: Sequence[pa.Buffer]) -> pa.Array:
    """A column with one row, a list of the contents of buffers that lie side by side, without a copy."""
    ends = np.cumsum([0, *(buffer.size for buffer in group)], dtype=np.int64)
    data = pa.foreign_buffer(group[0].address, ends[-1], base=group)
    values = pa.Array.from_buffers(pa.large_binary(), len(group), [None, pa.py_buffer(ends), data])
    return pa.LargeListArray.from_arrays([0, len(group)], values)


def _contents(column: pa.ChunkedArray) -> list[memoryview]:
    (cell,) = column.chunks
    values = cell.flatten()
    _, ends, data = values.buffers()
    bounds = np.frombuffer(ends, np.int64)[values.offset :][: len(values) + 1]
    return [memoryview(data)[first:last] for first, last in pairwise(bounds)]


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
