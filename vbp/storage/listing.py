"""What there is to do, as a stream of rows: the images of a tree, or those that a manifest file names."""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vbp.errors import UsageError
from vbp.storage.files import Folder, open_uri
from vbp.storage.naming import key_of, key_of_uri, label_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".pbm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
MANIFEST_SUFFIXES = (".parquet", ".csv", ".txt")

_ABSOLUTE = re.compile(r"/|~|[A-Za-z][A-Za-z0-9+.-]*://")
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


def list_tree(folder: Folder, output: Folder | None = None) -> Iterator[ManifestRow]:
    """The image files of a folder, known by their extension, in byte order of the path.

    Args:
        folder: INPUT.
        output: left out where it lies inside ``folder``, so that results are never explained in turn.

    Raises:
        FileNotFoundError, StorageError: as ``Folder.walk``.
    """
    inside = output is not None and output.url.startswith(folder.url.rstrip("/") + "/")
    results = output.url.removeprefix(folder.url.rstrip("/") + "/") + "/" if output and inside else None
    for file in folder.walk():
        if not file.path.lower().endswith(IMAGE_SUFFIXES) or (results and file.path.startswith(results)):
            continue
        key = key_of(file.path)
        path = os.fsencode(file.path)
        yield ManifestRow(key, folder.uri(file.path), path, label_of(key), file.size, file.version)


def is_manifest(uri: str) -> bool:
    """Whether INPUT is a manifest file, by its extension."""
    return uri.lower().endswith(MANIFEST_SUFFIXES)


def read_manifest_input(uri: str, options: Mapping[str, Any] | None = None) -> Iterator[ManifestRow]:
    """The images that a manifest names, in its order.

    A ``.parquet`` or ``.csv`` file has a column ``uri`` and may have ``key`` and ``label``; a ``.txt`` file has one
    URI a line. A relative path counts from the manifest's own folder.

    Raises:
        FileNotFoundError: there is no such manifest.
        UsageError: it is not of that format, or a row has no URI.
    """
    reader = {".parquet": _parquet_records, ".csv": _csv_records, ".txt": _text_records}
    suffix = next(suffix for suffix in MANIFEST_SUFFIXES if uri.lower().endswith(suffix))
    home = "" if "::" in uri else uri.rpartition("/")[0]
    with open_uri(uri, options) as file:
        try:
            for number, record in enumerate(reader[suffix](file), start=1):
                yield _row(record, home, f"row {number} of {uri}")
        except (pa.ArrowInvalid, csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"{uri} cannot be read as {suffix[1:]}: {error}") from error


def _row(record: Mapping[str, Any], home: str, where: str) -> ManifestRow:
    uri, key, label = (record.get(name) for name in ("uri", "key", "label"))
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
    )


def _parquet_records(file: BinaryIO) -> Iterable[Mapping[str, Any]]:
    parquet = pq.ParquetFile(file)
    columns = [name for name in ("uri", "key", "label") if name in parquet.schema_arrow.names]
    if "uri" not in columns:
        raise UsageError(f"the manifest has no column uri, only {', '.join(parquet.schema_arrow.names)}")
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
        yield from batch.to_pylist()


def _csv_records(file: BinaryIO) -> Iterable[Mapping[str, Any]]:
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        yield from csv.DictReader(text)


def _text_records(file: BinaryIO) -> Iterable[Mapping[str, Any]]:
    with io.TextIOWrapper(file, "utf-8-sig", newline="\n") as text:
        yield from ({"uri": line.rstrip("\r\n")} for line in text if line.strip("\r\n"))
