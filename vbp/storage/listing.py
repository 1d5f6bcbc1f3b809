"""What there is to do, as a stream of rows: the images of a tree, or those that a manifest file names."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vbp.errors import UsageError
from vbp.storage.files import Folder, open_uri
from vbp.storage.leftout import NO_SUFFIX, LeftOut, is_system, suffix_of
from vbp.storage.naming import key_of, key_of_uri, label_of

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng", ".gif", ".webp", ".avif", ".avifs"),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".heics", ".heifs")
"""Read where the package for them is installed."""
MANIFEST_SUFFIXES = (".parquet", ".csv", ".txt")

_ABSOLUTE = re.compile(r"/|~|[A-Za-z][A-Za-z0-9+.-]*://")
_COLUMNS = ("uri", "key", "label", "version")
_BATCH_ROWS = 10_000


class ManifestRow(NamedTuple):
    """One image to explain."""

    key: str
    """Names its results, see ``vbp.storage.naming``."""
    uri: str
    """Where it lies, for people and other programs."""
    path: bytes | None
    """Relative to INPUT, the bytes of the file system; None for a row of a manifest: read its ``uri``."""
    label: str | None
    size: int | None = None
    version: str | None = None


def list_tree(
    folder: Folder,
    output: Folder | None = None,
    *,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    left_out: LeftOut | None = None,
) -> Iterator[ManifestRow]:
    """The image files of a folder, known by their suffix, in byte order of the path; system files are none.

    Args:
        folder: INPUT.
        output: left out where it lies inside ``folder``, so that results are never explained in turn.
        suffixes: in lower case, of images; ``none`` for names that have none.
        left_out: counts the files that are no images.

    Raises:
        FileNotFoundError, StorageError: as ``Folder.walk``.
    """
    inside = output is not None and output.url.startswith(folder.url.rstrip("/") + "/")
    results = output.url.removeprefix(folder.url.rstrip("/") + "/") + "/" if output and inside else None
    for file in folder.walk():
        if results and file.path.startswith(results):
            continue
        if is_system(file.path) or not _ends_in(file.path, suffixes):
            if left_out is not None:
                left_out.add(file.path)
            continue
        key = key_of(file.path)
        path = os.fsencode(file.path)
        yield ManifestRow(key, folder.uri(file.path), path, label_of(key), file.size, file.version)


def _ends_in(path: str, suffixes: Sequence[str]) -> bool:
    ends = tuple(suffix for suffix in suffixes if suffix != NO_SUFFIX)
    return path.lower().endswith(ends) or (len(ends) < len(suffixes) and not suffix_of(path))


def is_manifest(uri: str) -> bool:
    """Whether INPUT is a manifest file, by its extension."""
    return uri.lower().endswith(MANIFEST_SUFFIXES)


def read_manifest_input(uri: str, options: Mapping[str, Any] | None = None) -> Iterator[ManifestRow]:
    """The images that a manifest names, in its order.

    A ``.parquet`` or ``.csv`` file has a column ``uri`` and may have ``key``, ``label`` and ``version`` (an etag, or
    whatever changes with the content); a ``.txt`` file has one URI a line. A relative path counts from the manifest's
    own folder. The file is read piece by piece.

    Raises:
        FileNotFoundError: there is no such manifest.
        UsageError: it is not of that format, or a row has no URI; the row or line is named.
    """
    reader = {".parquet": _parquet_records, ".csv": _csv_records, ".txt": _text_records}
    suffix = next(suffix for suffix in MANIFEST_SUFFIXES if uri.lower().endswith(suffix))
    home = "" if "::" in uri else uri.rpartition("/")[0]
    with open_uri(uri, options) as file:
        try:
            for where, record in reader[suffix](file):
                yield _row(record, home, f"{where} of {uri}")
        except (pa.ArrowInvalid, csv.Error, ValueError) as error:
            raise UsageError(f"{uri} cannot be read as {suffix[1:]}: {error}") from error


def _row(record: Mapping[str, Any], home: str, where: str) -> ManifestRow:
    uri, key, label, version = (record.get(name) for name in _COLUMNS)
    if not uri:
        raise UsageError(f"{where} has no uri; columns there: {', '.join(map(str, record))}")
    uri = str(uri)
    absolute = uri if _ABSOLUTE.match(uri) or not home else f"{home}/{uri}"
    own_key = key not in (None, "")
    return ManifestRow(
        key=key_of(str(key)) if own_key else key_of_uri(uri),
        uri=absolute,
        path=None,
        label=None if label in (None, "") else str(label),
        version=None if version in (None, "") else str(version),
    )


_Records = Iterable[tuple[str, Mapping[str, Any]]]
"""Rows by column, each with the words that say where it stands."""


def _parquet_records(file: BinaryIO) -> _Records:
    parquet = pq.ParquetFile(file)
    columns = [name for name in _COLUMNS if name in parquet.schema_arrow.names]
    if "uri" not in columns:
        raise UsageError(f"the manifest has no column uri, only {', '.join(parquet.schema_arrow.names)}")
    batches = parquet.iter_batches(_BATCH_ROWS, columns=columns)
    records = (record for batch in batches for record in batch.to_pylist())
    return ((f"row {number}", record) for number, record in enumerate(records, start=1))


def _csv_records(file: BinaryIO) -> _Records:
    reader = csv.reader(_lines(file), strict=True)
    columns = next(reader, [])
    for values in reader:
        if len(values) > len(columns):
            raise ValueError(f"line {reader.line_num} has {len(values)} fields, the first line names {len(columns)}")
        if values:
            yield f"line {reader.line_num}", dict(zip(columns, values, strict=False))


def _text_records(file: BinaryIO) -> _Records:
    lines = ((f"line {number}", line.rstrip("\r\n")) for number, line in enumerate(_lines(file), start=1))
    return ((where, {"uri": uri}) for where, uri in lines if uri)


def _lines(file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is not UTF-8: {error}") from error
