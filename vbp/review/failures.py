"""The failed images, grouped by cause, and their list, to explain them again."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vbp.errors import UsageError
from vbp.review.output import Output
from vbp.storage.files import write_uri

EXPORT_SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in ("uri", "key", "label", "error_stage", "error_type", "error_message")]
)
"""Columns of the list; the first three make it a manifest that ``vbp explain`` takes as INPUT."""

_COLUMNS = [*EXPORT_SCHEMA.names, "status"]
_EXAMPLES = 3
_CAUSES = 1000
_MESSAGE_CHARACTERS = 160
_OTHERS = "(other messages)"
_QUOTED = re.compile(r"""(?<!\w)b?(['"]).*?\1(?!\w)""")
_NUMBER = re.compile(r"0x[0-9a-f]+|(?<![\w~])[0-9a-f]{8,}(?!\w)|\d+(?:\.\d+)?", re.IGNORECASE)
_FORMULA = re.compile(r"[=+\-@\t\r']")


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Images that failed in one way."""

    stage: str
    type: str
    message: str
    """The common message, with names as ``…`` and numbers as ``N``."""
    images: int
    example: str
    """The whole message of the first image."""
    keys: tuple[str, ...]
    """Keys of the first few images."""


@dataclass(frozen=True, kw_only=True)
class Failures:
    """The failed images of an output."""

    output: str
    images: int
    causes: tuple[Cause, ...]
    """The causes, the most frequent first."""

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)


def failures(output: Output) -> Failures:
    """Group the error rows by stage, type and the common part of their messages."""
    groups: dict[tuple[str, str, str], Cause] = {}
    images = 0
    for row in _rows(output):
        images += 1
        stage, kind, whole = (str(row[name]) for name in ("error_stage", "error_type", "error_message"))
        cause = stage, kind, shortened(whole, str(row["uri"]), str(row["key"]))
        if cause not in groups and len(groups) >= _CAUSES:
            cause = stage, kind, _OTHERS
        before = groups.get(cause)
        if before is None:
            groups[cause] = Cause(
                stage=stage, type=kind, message=cause[2], images=1, example=whole, keys=(str(row["key"]),)
            )
        else:
            keys = before.keys if len(before.keys) >= _EXAMPLES else (*before.keys, str(row["key"]))
            groups[cause] = dataclasses.replace(before, images=before.images + 1, keys=keys)
    causes = sorted(groups.values(), key=lambda cause: (-cause.images, cause.stage, cause.type, cause.message))
    return Failures(output=output.folder.url, images=images, causes=tuple(causes))


def failed_keys(output: Output) -> Iterator[str]:
    """The keys of all failed images."""
    return (str(row["key"]) for row in _rows(output))


def export(output: Output, target: str, options: Mapping[str, Any] | None = None) -> int:
    """Write the failed images as a manifest, to explain them again into another output.

    A ``.csv`` may be opened in a spreadsheet, so text that looks like a formula gets an apostrophe before it;
    ``.parquet`` keeps every name as it is.

    Args:
        output: the output whose images failed.
        target: path or URL that ends in ``.csv``, ``.parquet`` or ``.txt``.
        options: options of the target's file system, as for ``Folder``.

    Returns:
        Number of failed images.

    Raises:
        UsageError: `target` has another suffix, or a name cannot be written to a ``.txt`` file.
        StorageError: the file cannot be written.
    """
    suffix = PurePosixPath(target).suffix.lower()
    if suffix not in _WRITERS:
        raise UsageError(f"--export (={target}) must end in {', '.join(_WRITERS)}.")
    rows = [{field: row[field] for field in EXPORT_SCHEMA.names} for row in _rows(output)]
    write_uri(target, _WRITERS[suffix](rows), options)
    return len(rows)


def shortened(message: str, *names: str) -> str:
    """The common part of a cause's messages, in one line: without the image's names, quoted text and numbers."""
    for name in sorted(filter(None, names), key=len, reverse=True):
        message = message.replace(name, "…")
    message = " ".join(_NUMBER.sub("N", _QUOTED.sub("…", message)).split())
    return message if len(message) <= _MESSAGE_CHARACTERS else message[: _MESSAGE_CHARACTERS - 1] + "…"


def defused(cell: str | None) -> str | None:
    """The cell as text that no spreadsheet takes as a formula; different cells stay different."""
    return f"'{cell}" if cell and _FORMULA.match(cell) else cell


def _rows(output: Output) -> Iterator[dict[str, Any]]:
    for table in output.errors(_COLUMNS):
        yield from table.to_pylist()


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, EXPORT_SCHEMA.names)
    writer.writeheader()
    writer.writerows({name: defused(cell) for name, cell in row.items()} for row in rows)
    return text.getvalue().encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, EXPORT_SCHEMA), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _text(rows: list[dict[str, Any]]) -> bytes:
    for row in rows:
        if re.search(r"[\r\n]", row["uri"]):
            raise UsageError(f"the name {row['uri']!r} holds a line break; export to .parquet instead.")
    return "".join(f"{row['uri']}\n" for row in rows).encode()


_WRITERS: Mapping[str, Callable[[list[dict[str, Any]]], bytes]] = {".csv": _csv, ".parquet": _parquet, ".txt": _text}
