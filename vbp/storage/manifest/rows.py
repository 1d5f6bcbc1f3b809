"""Rows of the manifest as tables, and the sorting of any number of them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import pyarrow as pa

from vbp.columns import MANIFEST_SCHEMA
from vbp.errors import UsageError
from vbp.storage.addresses import without_secrets
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.leftout import REPEATED, LeftOut
from vbp.storage.sorting import Sorter

_OWN_KEY = "each a key of its own, in a column key of a .csv or .parquet file (a .txt file has no columns)"


MAX_LABELS = 100_000


class Labels:
    """The different labels of a listing: the first ``MAX_LABELS`` that are found."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._found = dict.fromkeys(known)

    def add(self, labels: Iterable[str | None]) -> None:
        """Add the labels of some rows."""
        for label in labels:
            if label is not None and len(self._found) <= MAX_LABELS:
                self._found[label] = None

    @property
    def found(self) -> tuple[str, ...]:
        """The labels in the order in which they were found, with one too many if there are too many."""
        return tuple(self._found)

    @property
    def are_complete(self) -> bool:
        """Whether there are not too many."""
        return len(self._found) <= MAX_LABELS


def order_of(row: ManifestRow) -> bytes:
    """The value by which rows are sorted: the path in a tree, the key in a manifest file."""
    return row.key.encode() if row.path is None else row.path


def table_of(rows: Sequence[ManifestRow]) -> pa.Table:
    """The rows, at least one, as a table of ``MANIFEST_SCHEMA``."""
    columns = zip(*rows, strict=True)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, MANIFEST_SCHEMA, strict=True)],
        schema=MANIFEST_SCHEMA,
    )


def rows_of(table: pa.Table) -> Iterator[ManifestRow]:
    """The rows of a table of ``MANIFEST_SCHEMA``."""
    columns = (table[name].to_pylist() for name in ManifestRow._fields)
    return map(ManifestRow._make, zip(*columns, strict=True))


def with_positions(rows: pa.Table) -> pa.Table:
    """The rows of a shard with the column ``position`` (int32): the row's number within the shard."""
    return rows.append_column("position", pa.array(range(rows.num_rows), pa.int32()))


class First:
    """The first ``limit`` rows of a stream; afterwards it knows whether there were more."""

    def __init__(self, rows: Iterable[ManifestRow], limit: int | None):
        self._rows, self.limit, self.cut = rows, limit, False

    def __iter__(self) -> Iterator[ManifestRow]:
        for number, row in enumerate(self._rows):
            if number == self.limit:
                self.cut = True
                return
            yield row


def in_order(rows: Iterable[ManifestRow], left_out: LeftOut | None = None) -> Iterator[ManifestRow]:
    """The rows in order: those of a tree come sorted, those of a manifest file are sorted here.

    Args:
        rows: rows from a listing; the first one is read at once.
        left_out: counts the rows that repeat an image.

    Raises:
        UsageError: two images of a manifest file have the same key, or one image has two labels.
    """
    iterator = iter(rows)
    first = list(islice(iterator, 1))
    everything = chain(first, iterator)
    return _one_per_key(sorted_by_key(everything), left_out) if first and first[0].path is None else everything


def sorted_by_key(rows: Iterator[ManifestRow]) -> Iterator[ManifestRow]:
    """The rows in order of ``order_of``, whatever their number."""
    with Sorter(ManifestRow, MANIFEST_SCHEMA, order_of) as sorter:
        for row in rows:
            sorter.add(row)
        yield from sorter


def _one_per_key(rows: Iterator[ManifestRow], left_out: LeftOut | None) -> Iterator[ManifestRow]:
    """Drop repeated images, and refuse two images with the same key, whose results would overwrite each other."""
    last: ManifestRow | None = None
    for row in rows:
        if last is not None and row.key == last.key:
            one, other = without_secrets(last.uri), without_secrets(row.uri)
            if row.uri != last.uri:
                which = f"{one} with two queries, which are no part of a key" if one == other else f"{one} and {other}"
                raise UsageError(f"the manifest has two images with the key {row.key!r}: {which}; give {_OWN_KEY}")
            if row.label != last.label:
                raise UsageError(
                    f"the manifest names {other} twice, with the labels {last.label!r} and {row.label!r}; "
                    f"keep one of the rows, or give {_OWN_KEY}"
                )
            if left_out is not None:
                left_out.count(REPEATED)
            continue
        last = row
        yield row
