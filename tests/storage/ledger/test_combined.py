"""One index of several outputs."""

import datetime

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

import vbp.storage.ledger.combined as module
from vbp.columns import INDEX_SCHEMA
from vbp.storage.files import Folder
from vbp.storage.ledger.combined import combine
from vbp.storage.ledger.compaction import compact
from vbp.storage.ledger.index import write_part
from vbp.storage.manifest.manifest import ManifestRow, write_manifest

COLUMNS = pa.schema([pa.field("run", pa.string(), nullable=False), ("run_size", pa.int64())])
NOON = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)


@pytest.fixture
def make(tmp_path):
    def make(name, keys):
        folder = Folder(tmp_path / name)
        rows = [ManifestRow(key, f"/in/{key}", key.encode(), None, 9, "v") for key in keys]
        manifest = write_manifest(folder, rows, 2)
        for shard in range(manifest.shards):
            part = [
                {"key": key, "uri": f"/in/{key}", "status": "ok", "position": n, "finished_at": NOON, "weights": name}
                for n, key in enumerate(keys[2 * shard : 2 * shard + 2])
            ]
            write_part(folder, pa.Table.from_pylist(part), shard, "attempt")
        compact(folder, manifest)
        return folder

    return make


def test_all_rows_with_what_tells_them_apart(make, tmp_path):
    one, other = make("one", ["a", "b", "c"]), make("other", ["a"])
    values = [(one, {"run": "one", "run_size": 64}), (other, {"run": "other"})]
    assert combine(Folder(tmp_path / "all"), values, COLUMNS).rows == 4
    table = pads.dataset(tmp_path / "all" / "index").to_table()
    assert table.schema.names == ["run", "run_size", *INDEX_SCHEMA.names]
    found = [(r["run"], r["run_size"], r["key"], r["weights"]) for r in table.to_pylist()]
    assert found == [
        ("one", 64, "a", "one"), ("one", 64, "b", "one"), ("one", 64, "c", "one"), ("other", None, "a", "other"),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 10**9])
def test_many_files_are_as_one_and_a_longer_series_leaves_none(make, tmp_path, monkeypatch, size):
    folders = [make(name, ["a", "b"]) for name in ("one", "two", "three")]
    target = Folder(tmp_path / "all")
    values = [(folder, {"run": folder.url[-5:]}) for folder in folders]
    monkeypatch.setattr(module, "INDEX_FILE_BYTES", 1)
    combine(target, values, COLUMNS)
    assert len(target.list("index")) == 3
    monkeypatch.setattr(module, "INDEX_FILE_BYTES", size)
    assert combine(target, values[:2], COLUMNS).rows == 4
    assert len(target.list("index")) == (2 if size == 1 else 1)
    assert pads.dataset(tmp_path / "all" / "index").count_rows() == 4


def test_no_rows_at_all(tmp_path):
    assert combine(Folder(tmp_path / "all"), [], COLUMNS).rows == 0
    assert pads.dataset(tmp_path / "all" / "index").schema.names[0] == "run"
