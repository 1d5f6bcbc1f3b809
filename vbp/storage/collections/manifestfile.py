"""Manifest files: lists of images that users give as INPUT, read as rows, in the usual dialects.

The column with the images' places is ``uri`` or has another usual name (``PLACES``); case, blanks, ``_`` and ``-`` are
ignored. Text is UTF-8 or UTF-16; the columns of a ``.csv`` file are separated by commas, semicolons, tabs or bars.
"""

import codecs
import csv
import io
import itertools
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from vbp.errors import UsageError
from vbp.storage.addresses import version_in
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import open_uri
from vbp.storage.naming import key_of, key_of_uri

MANIFEST_SUFFIXES = (".parquet", ".csv", ".txt")
PLACES = (
    *("uri", "url", "path", "file", "filename", "filepath", "filelocation"),
    *("image", "imagepath", "imageurl", "imageuri", "imagefile"),
)
"""Names of the column of places: ``uri`` is preferred; of the others a file may have only one."""

_ABSOLUTE = re.compile(r"/|~/|[A-Za-z][A-Za-z0-9+.-]*://")
_COLUMNS = ("uri", "key", "label", "version")
_SEPARATORS = ",;\t|"
_BATCH_ROWS = 10_000
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Record = Mapping[str, Any]
_Records = Iterable[tuple[str, Record]]
"""Rows by column, each with a phrase that says where it stands in the file, for messages."""


def is_manifest(uri: str) -> bool:
    """Whether INPUT is a manifest file, judged by its suffix."""
    return uri.lower().endswith(MANIFEST_SUFFIXES)


def read_manifest_input(uri: str, options: Mapping[str, Any] | None = None) -> Iterator[ManifestRow]:
    """The images of a manifest file, in its order.

    A ``.parquet`` or ``.csv`` file has a column ``uri`` (or another of ``PLACES``) and may have ``key``, ``label`` and
    ``version`` (an etag, or anything that changes with the content); a ``.txt`` file has a URI per line. Relative paths
    count from the manifest's own folder. The file is read in pieces.

    Raises:
        FileNotFoundError: the manifest does not exist.
        UsageError: the file does not have that format, or a row has no URI; names the row or line.
    """
    reader = {".parquet": _parquet_records, ".csv": _csv_records, ".txt": _text_records}
    suffix = next(suffix for suffix in MANIFEST_SUFFIXES if uri.lower().endswith(suffix))
    home = "" if "::" in uri else uri.rpartition("/")[0]
    with open_uri(uri, options) as file:
        try:
            for where, record in reader[suffix](file):
                yield _row(record, home, f"{where} of {uri}")
        except (pa.ArrowException, csv.Error, ValueError, OSError) as error:
            if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
                raise  # an error of the store; pyarrow raises a bare OSError for a damaged file
            raise UsageError(f"{uri} cannot be read as {suffix[1:]}: {error}") from error


def _row(record: Record, home: str, where: str) -> ManifestRow:
    uri, key, label, version = (_text(record.get(name), name, where) for name in _COLUMNS)
    if not uri.strip():
        raise UsageError(f"{where} has no uri; columns there: {', '.join(map(str, record))}")
    return ManifestRow(
        key=key_of(key) if key else key_of_uri(uri),
        uri=_absolute(uri, home),
        path=None,
        label=label or None,
        version=version or version_in(uri),
    )


def _text(value: Any, name: str, where: str) -> str:
    """A cell as text; empty for null."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{where}: its {name} is bytes that are no text ({value[:16]!r})") from error
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # in many files a column of whole numbers with nulls is of floats
    return str(value)


def _absolute(uri: str, home: str) -> str:
    """The absolute place of a relative one; ``..`` goes up from the manifest's folder."""
    if _ABSOLUTE.match(uri) or not home:
        return uri
    scheme, separator, rest = home.rpartition("://")
    if not separator or "/../" not in f"/{uri}":  # only the disk knows where .. leads after a link
        return f"{home}/{uri}"
    bucket, _, folder = rest.partition("/")
    return f"{scheme}://{bucket}/{posixpath.normpath(f'/{folder}/{uri}').lstrip('/')}"


def _parquet_records(file: BinaryIO) -> _Records:
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    columns = _named(schema.names)
    for name, given in columns.items():
        kind = schema.field(given).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_nested(kind) or (name == "uri" and not _holds_text(kind)):
            wanted = "the path or URL of each image, as text" if name == "uri" else "text or numbers"
            raise UsageError(f"the manifest's column {given} holds {kind}; it must hold {wanted}")
    batches = parquet.iter_batches(_BATCH_ROWS, columns=list(columns.values()))
    records = (record for batch in batches for record in batch.to_pylist())
    return (
        (f"row {number}", {name: record[given] for name, given in columns.items()})
        for number, record in enumerate(records, start=1)
    )


def _holds_text(kind: pa.DataType) -> bool:
    return any(word in str(kind) for word in ("string", "binary", "null"))


def _csv_records(file: BinaryIO) -> _Records:
    lines, above, first = _lines(file), 0, ""
    for first in lines:
        if first.strip():
            break
        above += 1
    reader = csv.reader(
        itertools.chain([first], lines), strict=True, delimiter=_separator(first), skipinitialspace=True
    )
    given = next(reader, [])
    columns = {given.index(name): known for known, name in _named(given).items()}
    for values in reader:
        where = f"line {above + reader.line_num}"
        if len(values) > len(given):
            raise ValueError(f"{where} has {len(values)} fields, the first line names {len(given)}")
        if values:
            record = {known: values[place].strip() for place, known in columns.items() if place < len(values)}
            yield where, dict.fromkeys(columns.values()) | record


def _separator(line: str) -> str:
    """The separator of columns: the first usual one that gives a column of places, else the most frequent one."""
    for separator in _SEPARATORS:
        names = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
        if set(map(_plain, names)) & set(PLACES):
            return separator
    return max(_SEPARATORS, key=line.count)


def _named(given: Sequence[str]) -> dict[str, str]:
    """The columns that are used: name in ``_COLUMNS`` -> name in the file.

    Raises:
        UsageError: a needed column is missing, or several columns could be it.
    """
    found = {name: [each for each in given if _plain(each) == name] for name in (*PLACES, *_COLUMNS)}
    found["uri"] = found["uri"] or [each for name in PLACES for each in found[name]]
    if not found["uri"]:
        there = ", ".join(given[:20]) or "none"
        raise UsageError(f"the manifest has no column uri (nor {', '.join(PLACES[1:])}), only {there}")
    for name in _COLUMNS:
        if len(found[name]) > 1:
            both = " and ".join(found[name][:2])
            raise UsageError(f"the manifest's columns {both} could each be its {name}; rename one of them")
    return {name: found[name][0] for name in _COLUMNS if found[name]}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lstrip("\ufeff")).lower()


def _text_records(file: BinaryIO) -> _Records:
    lines = ((f"line {number}", line.rstrip("\r\n")) for number, line in enumerate(_lines(file), start=1))
    return ((where, {"uri": uri}) for where, uri in lines if uri.strip())


def _lines(file: BinaryIO) -> Iterator[str]:
    """The lines with their ends, decoded as the byte order mark says."""
    start = file.read(2)
    file.seek(0)
    if start in _MARKS:
        with io.TextIOWrapper(file, "utf-16", newline="") as text:
            yield from text
        return
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is not UTF-8: {error}") from error
