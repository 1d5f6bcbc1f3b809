"""Parts of the ledger: files of finished rows, whose names summarise their content."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vbp.columns import PART_SCHEMA, ColumnError
from vbp.storage.files import Folder

PARTS = "_run/parts"
_NO_ROWS = PART_SCHEMA.empty_table()

_NAME = re.compile(r"(\d+)/([^/]+?)(?:\.([0-9a-f]{8}))?-(\d+)-(\d+)-([0-9a-f]{12})-(\d+)-(\d+)\.parquet")


class Part(NamedTuple):
    """The facts in the name of a part."""

    shard: int
    attempt: str
    first: int
    last: int
    """The smallest and the largest position in the part."""
    digest: str
    """Digest of all positions in the part."""
    ok: int
    error: int
    generation: str = ""
    """Generation of the manifest at that time; empty if an older vbp made the part."""

    @property
    def path(self) -> str:
        """The part's path in OUTPUT."""
        counts = f"{self.ok}-{self.error}"
        attempt = f"{self.attempt}.{self.generation}" if self.generation else self.attempt
        name = f"{attempt}-{self.first:06d}-{self.last:06d}-{self.digest}-{counts}"
        return f"{PARTS}/{self.shard:06d}/{name}.parquet"

    @property
    def holds_all_between(self) -> bool:
        """Whether the part holds every position from first to last."""
        return self.ok + self.error == self.last - self.first + 1


def write_part(output: Folder, table: pa.Table, shard: int, attempt: str, generation: str = "") -> str:
    """Commit rows of one shard.

    Args:
        output: OUTPUT.
        table: columns of ``INDEX_SCHEMA`` and ``position``, each at most once; a missing nullable one becomes null.
        shard: number of the shard to which the rows belong.
        attempt: name of the attempt; letters, digits, ``_``, ``.`` and ``-``.
        generation: the manifest's generation.

    Returns:
        The part's path. A task that is repeated with the same result overwrites its own part.

    Raises:
        StorageError: the store refuses the part.
        ColumnError: a column is not declared, or a required one is missing.
        ValueError: the table is empty, has a position twice, or has an unknown status.
    """
    table = _conformed(table.append_column("shard", pa.array([shard] * table.num_rows, pa.int32())))
    positions = sorted(table["position"].to_pylist())
    statuses = Counter(table["status"].to_pylist())
    if not positions or len(set(positions)) < len(positions) or set(statuses) - {"ok", "error"}:
        raise ValueError(f"rows of shard {shard} must have distinct positions (={positions}) and status ok or error")
    digest = hashlib.sha256(repr(positions).encode()).hexdigest()[:12]
    part = Part(shard, attempt, positions[0], positions[-1], digest, statuses["ok"], statuses["error"], generation)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    output.write(part.path, sink.getvalue().to_pybytes())
    return part.path


def parse_parts(paths: Iterable[str]) -> list[Part]:
    """Parse the paths of parts below ``PARTS``; files with other names are skipped."""
    matches = [(path, m) for path in paths if (m := _NAME.fullmatch(path)) is not None]
    parts = [
        (path, Part(int(m[1]), m[2], int(m[4]), int(m[5]), m[6], int(m[7]), int(m[8]), m[3] or ""))
        for path, m in matches
    ]
    return [part for path, part in parts if part.path == f"{PARTS}/{path}"]


def generation_of(attempt: str) -> str:
    """The name of the generation that an attempt begins when it starts over."""
    return attempt[-8:]


def current(parts: Iterable[Part], generation: str) -> list[Part]:
    """The parts of this generation; after a start over, parts that an earlier attempt writes late do not count."""
    return [part for part in parts if part.generation in ("", generation)]


def parts_of(output: Folder, shard: int) -> list[Part]:
    """The parts of one shard."""
    paths = output.list(f"{PARTS}/{shard:06d}")
    return parse_parts(path.removeprefix(f"{PARTS}/") for path in paths)


def read_parts(
    output: Folder, parts: list[Part], columns: list[str] | None = None, damaged: list[Part] | None = None
) -> pa.Table:
    """All rows of the parts; by default the columns that ``newest`` needs.

    A part that is damaged, also when it is read a second time, is left out and added to `damaged`; its images count
    as not done.  The same holds for a part that no run can have written: a required column is missing, or nulls,
    offsets or positions are impossible.
    """
    columns = columns or ["position", "status", "finished_at", "run_id"]
    tables = [_NO_ROWS.select(columns)]
    for part in parts:
        table = _rows(output, part, columns)
        if table is None:
            table = _rows(output, part, columns)
        if table is not None:
            tables.append(table)
        elif damaged is not None:
            damaged.append(part)
    return pa.concat_tables(tables)


def _rows(output: Folder, part: Part, columns: list[str]) -> pa.Table | None:
    """The rows of a part; columns that it lacks are null. None if it is damaged, or no run can have written it."""
    data = output.read(part.path)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        rows = conformed(file.read(columns=columns, use_threads=False), columns)  # the callers are threads
    except (pa.ArrowException, OSError, KeyError):  # the bytes are damaged; they are in memory, so it is no store
        return None
    return rows if rows.num_rows == part.ok + part.error and _are_possible(rows, part) else None


def conformed(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """These columns with the types of ``PART_SCHEMA``; columns that an older vbp did not write are null.

    Raises:
        ArrowInvalid, KeyError: no run has written such a table.
    """
    fields = [PART_SCHEMA.field(name) for name in columns]
    rows = pa.table(_columns(table, fields), schema=pa.schema(fields))
    rows.validate(full=True)
    lacking = [field.name for field in fields if not field.nullable and rows[field.name].null_count]
    if lacking:
        raise pa.ArrowInvalid(f"rows without {lacking[0]}")
    if "finished_at" in columns and not _lie_between(rows["finished_at"], 0, _LAST_MOMENT):
        raise pa.ArrowInvalid("times that cannot be")
    return rows


_MOST = 2**62
"""The largest offset and the largest length, so that their sum fits into 64 bits."""
_LAST_MOMENT = 253_402_300_799_999
"""The latest time in ms since 1970 that Python's dates can hold."""


def _are_possible(rows: pa.Table, part: Part) -> bool:
    """Whether the rows could have been written by ``write_part`` under the name of this part."""
    limits = {"position": (part.first, part.last), "shard": (part.shard, part.shard)}
    limits |= {f"{kind}_{name}": (0, _MOST) for kind in ("mask", "overlay") for name in ("offset", "length")}
    fit = all(_lie_between(rows[name], *ends) for name, ends in limits.items() if name in rows.column_names)
    statuses = rows["status"].unique().to_pylist() if "status" in rows.column_names else []
    return fit and set(statuses) <= {"ok", "error"}


def _lie_between(column: pa.ChunkedArray, least: int, most: int) -> bool:
    """Whether all values that are not null lie between `least` and `most`."""
    if column.null_count == len(column):
        return True
    first, last = pc.min_max(column).values()
    return _number(first) >= least and _number(last) <= most


def _number(value: pa.Scalar) -> int:
    """An integer, or a time in ms since 1970 that may be none of Python's dates."""
    return int(value.value if isinstance(value, pa.TimestampScalar) else value.as_py())


def newest(rows: pa.Table) -> pa.Table:
    """One row per position, sorted: the newest ok row, else the newest error."""
    order = [(name, "descending") for name in ("status", "finished_at", "run_id")]  # "ok" comes after "error"
    rows = rows.sort_by([("position", "ascending"), *order])
    positions = rows["position"].combine_chunks()
    if len(positions) < 2:
        return rows
    first = pa.concat_arrays([pa.array([True]), pc.not_equal(positions[1:], positions[:-1])])
    return rows.filter(first)


def _conformed(table: pa.Table) -> pa.Table:
    unknown = set(table.column_names) - set(PART_SCHEMA.names)
    missing = {field.name for field in PART_SCHEMA if not field.nullable} - set(table.column_names)
    if unknown or missing:
        odd = ", ".join(
            f"{name} is {what}"
            for names, what in ((unknown, "not declared"), (missing, "missing"))
            for name in sorted(names)
        )
        raise ColumnError(f"rows cannot be committed: {odd}; the columns of the index are in vbp/columns.py")
    rows = pa.table(_columns(table, PART_SCHEMA), schema=PART_SCHEMA)
    has_scores = rows["scores"].null_count < rows.num_rows  # in an evaluation alone
    return rows if has_scores else rows.drop_columns("scores")


def _columns(table: pa.Table, fields: Iterable[pa.Field]) -> list[pa.ChunkedArray | pa.Array]:
    """The table's columns with the types of `fields`; a column that it lacks is null."""
    known = set(table.column_names)
    return [
        _cast(table[field.name], field.type) if field.name in known else pa.nulls(table.num_rows, field.type)
        for field in fields
    ]


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    return column.cast(options=pc.CastOptions(kind, allow_time_truncate=True))
