"""One index of several outputs: the rows of all of them, with columns that say from which output a row comes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vbp.columns import INDEX_SCHEMA
from vbp.storage.files import Folder
from vbp.storage.ledger.index import INDEX_FILE_BYTES, read_index
from vbp.storage.outline import INDEX, INDEX_FILES
from vbp.storage.parquet import RollingParquet, Written

RUN = "run"
"""The column with the name of a row's output; the names of the other added columns begin with it."""


class Combined(NamedTuple):
    """A combined index."""

    rows: int
    files: Mapping[str, Written]
    """The files that were written, by path."""


def combine(output: Folder, indexes: Iterable[tuple[Folder, Mapping[str, object]]], columns: pa.Schema) -> Combined:
    """Write ``index/`` of `output` from the indexes of other outputs, in their order; memory holds one file of it.

    A repeated call writes the same files.  It may be killed at any time, so the caller marks when it is complete.

    Args:
        output: the output that gets the index.
        indexes: outputs with an index, each with the values of `columns` for its rows.
        columns: columns to put before those of the index; no name may be in both.

    Returns:
        The files that were written.

    Raises:
        StorageError: an index is damaged, or the store refuses the new one.
    """
    schema = pa.schema([*columns, *INDEX_SCHEMA])
    writer, count = RollingParquet(output, INDEX_FILES, schema), 0
    for folder, values in indexes:
        for rows in read_index(folder, INDEX_SCHEMA.names):
            constants = [pa.array([values.get(field.name)] * rows.num_rows, field.type) for field in columns]
            writer.add(pa.Table.from_arrays([*constants, *rows.columns], schema=schema))
            count += rows.num_rows
            if writer.bytes >= INDEX_FILE_BYTES:
                writer.roll()
    if not count:
        writer.add(schema.empty_table())
    writer.roll()
    writer.remove_later_files()
    return Combined(count, writer.files)


def read_combined(output: Folder, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a combined index as tables; the rows of a table are of one run.

    Args:
        output: the output that has the index.
        columns: columns of ``INDEX_SCHEMA``; the added columns are always read.
    """
    for path in output.list(INDEX):
        with output.open(path) as file:
            parquet = pq.ParquetFile(file)
            leading = [name for name in parquet.schema_arrow.names if name not in INDEX_SCHEMA.names]
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, [*leading, *columns])
                if table.num_rows:
                    yield table
