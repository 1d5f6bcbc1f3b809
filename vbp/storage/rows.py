"""Rows of the manifest as tables, and in order whatever their number."""

import heapq
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from vbp.storage.listing import ManifestRow

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("path", pa.binary()),
        pa.field("label", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("version", pa.string()),
    ]
)
_SORT_ROWS = 200_000


def order_of(row: ManifestRow) -> bytes:
    """What rows are sorted by: the path in a tree, the key in a manifest file."""
    return row.key.encode() if row.path is None else row.path


def table_of(rows: list[ManifestRow]) -> pa.Table:
    """The rows, at least one, as a table of ``MANIFEST_SCHEMA``."""
    columns = zip(*rows, strict=True)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, MANIFEST_SCHEMA, strict=True)],
        schema=MANIFEST_SCHEMA,
    )


def sorted_by_key(rows: Iterator[ManifestRow]) -> Iterator[ManifestRow]:
    """The rows in order of ``order_of``: beyond some number, sorted runs go to a temporary folder and are merged."""
    with tempfile.TemporaryDirectory(prefix="vbp-") as folder:
        runs: list[Path] = []
        while run := sorted(islice(rows, _SORT_ROWS), key=order_of):
            if len(run) < _SORT_ROWS and not runs:
                yield from run
                return
            runs.append(Path(folder, f"{len(runs)}.arrow"))
            with pa.OSFile(str(runs[-1]), "wb") as sink, pa.ipc.new_file(sink, MANIFEST_SCHEMA) as file:
                file.write_table(table_of(run), max_chunksize=1000)
        yield from heapq.merge(*map(_read_run, runs), key=order_of)


def _read_run(path: Path) -> Iterator[ManifestRow]:
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            columns = (column.to_pylist() for column in file.get_batch(number).columns)
            yield from map(ManifestRow._make, zip(*columns, strict=True))
