"""Files of others under names of parts: they count as damaged, and crash no reader."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vbp.columns import PART_SCHEMA
from vbp.storage.files import Folder
from vbp.storage.ledger.parts import parse_parts, parts_of, read_parts, write_part

NOON = datetime.datetime(2026, 11, 15, 12, tzinfo=datetime.UTC)


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path / "out")
    rows = [
        {"key": f"{n}.jpg", "uri": f"/in/{n}.jpg", "status": "ok", "position": n, "finished_at": NOON, "run_id": "r",
         "mask_uri": "shards/000000/a.tar", "mask_offset": 512, "mask_length": 9}
        for n in range(3)
    ]  # fmt: skip
    write_part(folder, pa.Table.from_pylist(rows), 0, "r")
    return folder


def replaced(name, values, kind=None):
    """The part's rows with other values in one column; None takes the column away."""

    def change(table):
        at = table.schema.get_field_index(name)
        if values is None:
            return table.remove_column(at)
        return table.set_column(at, name, pa.array(values, kind or PART_SCHEMA.field(name).type))

    return change


@pytest.mark.parametrize(
    "change",
    [
        replaced("mask_offset", [-1, 0, 0]),
        replaced("mask_length", [2**63 - 1, 0, 0]),
        replaced("mask_length", ["x", "y", "z"], pa.string()),
        replaced("position", [0, 1, 7]),
        replaced("position", [0, 1, -2]),
        replaced("position", [0, 1, None]),
        replaced("position", [0, 1, 2**40], pa.int64()),
        replaced("position", None),
        replaced("key", None),
        replaced("key", ["a", None, "c"]),
        replaced("key", [b"a", b"\xff\xfe", b"c"], pa.binary()),
        replaced("status", ["ok", "ok", "done"]),
        replaced("status", None),
        replaced("shard", [0, 0, 5]),
        replaced("finished_at", [2**61, 0, 0], pa.timestamp("ms", "UTC")),
        replaced("finished_at", ["yesterday"] * 3, pa.string()),
        replaced("finished_at", None),
        lambda table: table.slice(0, 2),
        lambda table: table.append_column("key", table["uri"]),
    ],
)
def test_what_we_cannot_have_written_is_damaged(folder, change):
    (part,) = parts_of(folder, 0)
    with folder.open(part.path) as file:
        table = pq.read_table(file)
    assert read_parts(folder, [part], PART_SCHEMA.names).num_rows == 3
    sink = pa.BufferOutputStream()
    pq.write_table(change(table), sink)
    folder.write(part.path, sink.getvalue().to_pybytes())
    damaged = []
    assert read_parts(folder, [part], PART_SCHEMA.names, damaged).num_rows == 0
    assert damaged == [part]


def test_columns_that_an_older_vbp_did_not_write_are_null(folder):
    (part,) = parts_of(folder, 0)
    with folder.open(part.path) as file:
        table = pq.read_table(file).drop_columns(["version", "overlay_offset"])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    folder.write(part.path, sink.getvalue().to_pybytes())
    assert read_parts(folder, [part], ["key", "version"])["version"].null_count == 3


@pytest.mark.parametrize(
    "name",
    [
        "0/a-000000-000001-0123456789ab-2-0.parquet", "000000/a-0-1-0123456789ab-2-0.parquet",
        "٠٠٠٠٠٠/a-000000-000001-0123456789ab-2-0.parquet", "000000/x/a-000000-000001-0123456789ab-2-0.parquet",
        "000000/a.parquet", "000000/a-000000-000001-0123456789ab-02-0.parquet",
    ],
)  # fmt: skip
def test_names_that_are_nearly_ours_are_not(name):
    assert parse_parts([name]) == []
    assert parse_parts(["000000/a-000000-000001-0123456789ab-2-0.parquet"])
