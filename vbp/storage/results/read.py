"""Results as the index names them: an object of their own, or a range of a tar."""

from collections.abc import Mapping
from typing import Any

from vbp.errors import StorageError
from vbp.storage.files import read_uri


def read_result(row: Mapping[str, Any], kind: str = "mask", options: Mapping[str, Any] | None = None) -> bytes:
    """The file that a row of the index points to, in any layout, on any store, by one request.

    Args:
        row: of the index, from Arrow, pandas or DuckDB: ``<kind>_uri``, ``<kind>_offset`` and ``<kind>_length`` count.
        kind: mask or overlay.
        options: non-secret options by URL prefix, as for ``vbp.storage.files.Folder``.

    Returns:
        The file's bytes; ``vbp.images.encode.decode_mask`` makes a mask of them.

    Raises:
        FileNotFoundError: the row has no such file, or it is gone.
        PermissionError: it may not be read.
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
    """None for a null of any library: pandas has NaN there, and floats beside it."""
    return None if cell is None or cell != cell else cell
