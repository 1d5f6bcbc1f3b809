"""One index of several outputs: all their rows, each with what tells its output from the others."""

from collections.abc import Iterable, Mapping

import pyarrow as pa

from vbp.storage.files import Folder
from vbp.storage.index import INDEX, INDEX_FILE_BYTES, read_index
from vbp.storage.parquet import RollingParquet
from vbp.storage.parts import INDEX_SCHEMA


def combine(output: Folder, indexes: Iterable[tuple[Folder, Mapping[str, object]]], columns: pa.Schema) -> int:
    """Write ``index/`` of `output` from the indexes of other outputs, in their order; memory holds one file.

    Repeated, it writes the same files. It may be killed at any time: whoever calls it says when it is complete.

    Args:
        output: where the index goes.
        indexes: outputs with an index, and the values of `columns` for all their rows.
        columns: stand before those of the index, and share no name with them.

    Returns:
        The number of rows.

    Raises:
        StorageError: an index is damaged, or the store does not take the new one.
    """
    schema = pa.schema([*columns, *INDEX_SCHEMA])
    writer, count = RollingParquet(output, INDEX, schema), 0
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
    return count
