"""Read a result by its row of the index: a file, or a range of a tar."""

from collections.abc import Mapping
from typing import Any

from vbp.errors import StorageError
from vbp.storage.files import read_uri


def read_result(row: Mapping[str, Any], kind: str = "mask", options: Mapping[str, Any] | None = None) -> bytes:
    """The result that a row of the index names, in any layout, on any store, by one request.

    Args:
        row: a row of the index, from Arrow, pandas or DuckDB, with ``<kind>_uri``, ``_offset`` and ``_length``.
        kind: mask or overlay.
        options: non-secret options by URL prefix, as for ``vbp.storage.files.Folder``.

    Returns:
        The file's bytes; ``vbp.images.encode.decode_mask`` decodes those of a mask.

    Raises:
        FileNotFoundError: the row names no such result, or its file does not exist.
        PermissionError: the file may not be read.
        StorageError: the store does not answer, or the tar is shorter than the row says.
    """
    uri, offset, length = (_value(row.get(f"{kind}_{name}")) for name in ("uri", "offset", "length"))
    if uri is None:
        raise FileNotFoundError(f"the image {row.get('key')!r} has no {kind}: its status is {row.get('status')}")
    if offset is None or length is None:
        return read_uri(uri, options)
    offset, length = int(offset), int(length)
    data = read_uri(uri, options, offset, offset + length)
    if len(data) != length:
        raise StorageError(f"{uri} gave {len(data)} bytes from {offset} on, not {length}; compute it again")
    return data


def _value(cell: Any) -> Any:
    """The cell, or None for a null of any library; pandas has NaN for nulls, and then floats for whole numbers."""
    return None if cell is None or cell != cell else cell
