"""External sort: items that do not fit into memory wait as sorted runs in a temporary folder."""

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
    """Takes items in any order and yields them sorted; used in a ``with`` block, which deletes its files.

    Args:
        kind: the items' class, a NamedTuple.
        schema: Arrow types of the fields.
        key: gives the value to compare by; equal items keep their order. None: compare all fields, none of them None.
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
        """Add an item."""
        self._items.append(item)
        if len(self._items) >= ITEMS_IN_MEMORY:
            self._write_run()

    def __iter__(self) -> Iterator[T]:
        """All items, from the smallest to the largest."""
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
