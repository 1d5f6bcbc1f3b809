"""Sorting of any number of items: what memory does not hold waits in a temporary folder."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import pyarrow as pa

T = TypeVar("T", bound=tuple[Any, ...])

ITEMS_IN_MEMORY = 200_000
_ITEMS_AT_ONCE = 1000


class Sorter(Generic[T]):
    """Takes items in any order and gives them back sorted; a ``with`` block bounds the life of its files.

    Args:
        kind: a NamedTuple.
        schema: Arrow types of its fields.
        key: what items are compared by, equal ones staying in their order; None: all values, of which none is None.
    """

    def __init__(self, kind: type[T], schema: pa.Schema, key: Callable[[T], Any] | None = None) -> None:
        self._make: Any = getattr(kind, "_make")  # noqa: B009  (every NamedTuple has it, unknown to type checkers)
        self._schema, self._key = schema, key
        self._items: list[T] = []
        self._runs: list[Path] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Sorter[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, item: T) -> None:
        """One more."""
        self._items.append(item)
        if len(self._items) >= ITEMS_IN_MEMORY:
            self._write_run()

    def __iter__(self) -> Iterator[T]:
        """All of them, from the least to the greatest."""
        self._items.sort(key=self._key)
        return heapq.merge(*map(self._read_run, self._runs), self._items, key=self._key)

    def _write_run(self) -> None:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="vbp-")
        self._items.sort(key=self._key)
        columns = zip(*self._items, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._runs.append(Path(self._folder.name, f"{len(self._runs)}.arrow"))
        with pa.OSFile(str(self._runs[-1]), "wb") as sink, pa.ipc.new_file(sink, self._schema) as file:
            file.write_table(pa.table(arrays, schema=self._schema), max_chunksize=_ITEMS_AT_ONCE)
        self._items = []

    def _read_run(self, path: Path) -> Iterator[T]:
        with pa.memory_map(str(path)) as source:
            file = pa.ipc.open_file(source)
            for number in range(file.num_record_batches):
                columns = (column.to_pylist() for column in file.get_batch(number).columns)
                yield from map(self._make, zip(*columns, strict=True))
