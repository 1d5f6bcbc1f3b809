"""External sort: items that do not fit into memory wait as sorted runs in a temporary folder."""

from __future__ import annotations

import heapq
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import pyarrow as pa

T = TypeVar("T", bound=tuple[Any, ...])

ITEMS_IN_MEMORY = 200_000
_ITEMS_AT_ONCE = 1000


def as_table(items: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Named tuples as rows of a table."""
    columns = zip(*items, strict=True) if items else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


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

    def add_sorted(self, table: pa.Table) -> None:
        """Add the items of a table, which are sorted; none is kept in memory."""
        if table.num_rows:
            self._write_table(table)

    def cut(self, starts: Sequence[Any]) -> list[list[pa.Table]]:
        """The items in pieces: for each of these values of the first field, which are sorted, those from it on.

        Items before the first value belong to the first piece.  A piece has several sorted tables, which are read from
        disk when they are used.
        """
        if self._items:
            self._write_run()
        tables = [pa.ipc.open_file(pa.memory_map(str(run))).read_all() for run in self._runs]
        ends = [
            [bisect_left(table.column(0), start, key=lambda value: value.as_py()) for start in starts[1:]]
            + [table.num_rows]
            for table in tables
        ]
        pieces: list[list[pa.Table]] = []
        for number in range(len(starts)):
            places = [(table, ([0] + own)[number], own[number]) for table, own in zip(tables, ends, strict=True)]
            pieces.append([table.slice(first, end - first) for table, first, end in places if first < end])
        return pieces

    def __iter__(self) -> Iterator[T]:
        """All items, from the smallest to the largest."""
        self._items.sort(key=self._key)
        return heapq.merge(*map(self._read_run, self._runs), self._items, key=self._key)

    def _write_run(self) -> None:
        self._items.sort(key=self._key)
        self._write_table(as_table(self._items, self._schema))
        self._items = []

    def _write_table(self, table: pa.Table) -> None:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="vbp-")
        self._runs.append(Path(self._folder.name, f"{len(self._runs)}.arrow"))
        with pa.OSFile(str(self._runs[-1]), "wb") as sink, pa.ipc.new_file(sink, self._schema) as file:
            file.write_table(table, max_chunksize=_ITEMS_AT_ONCE)

    def _read_run(self, path: Path) -> Iterator[T]:
        with pa.memory_map(str(path)) as source:
            file = pa.ipc.open_file(source)
            for number in range(file.num_record_batches):
                columns = (column.to_pylist() for column in file.get_batch(number).columns)
                yield from map(self._make, zip(*columns, strict=True))
