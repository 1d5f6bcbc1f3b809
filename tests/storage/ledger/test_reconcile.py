"""Rows whose key is not the manifest's at their position are removed, also if the removal is killed half-way."""

import pyarrow as pa
import pytest

from tests.killed import Killed, dying
from vbp.storage.files import Folder
from vbp.storage.ledger.index import write_part
from vbp.storage.ledger.parts import parts_of, read_parts
from vbp.storage.ledger.reconcile import reconcile
from vbp.storage.manifest.manifest import ManifestRow, write_manifest

WHEN = pa.scalar(0, pa.timestamp("ms", "UTC"))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def listed(folder, *keys, shard_size=3):
    return write_manifest(folder, [ManifestRow(key, key, key.encode(), None) for key in keys], shard_size)


def commit(folder, shard, *keys, first=0):
    table = pa.table({"key": keys, "uri": keys, "status": ["ok"] * len(keys)})
    table = table.append_column("position", pa.array(range(first, first + len(keys)), pa.int32()))
    write_part(folder, table.append_column("finished_at", pa.array([WHEN] * len(keys))), shard, "one")


def recorded(folder):
    return {shard: sorted(read_parts(folder, parts_of(folder, shard))["position"].to_pylist()) for shard in (0, 1, 2)}


def reconciled(folder, manifest, events):
    return reconcile(folder, manifest, lambda keys: events.append(keys), lambda: events.append("change"))


def test_rows_that_fit_cost_nothing(folder):
    manifest, events = listed(folder, "a", "b", "c", "d"), []
    commit(folder, 0, "a", "b", "c")
    commit(folder, 1, "d")
    before = {path: folder.read(path) for path in folder.list()}
    assert reconciled(folder, manifest, events) == 0
    assert events == []
    assert {path: folder.read(path) for path in folder.list()} == before


def strange(folder):
    """An image has come in front, one shard is none any more."""
    commit(folder, 0, "a", "c", "d")
    commit(folder, 1, "e", "f")
    commit(folder, 2, "g")
    return listed(folder, "a", "b", "c", "d", "f")


def test_rows_of_other_images_are_taken_back(folder):
    manifest, events = strange(folder), []
    assert reconciled(folder, manifest, events) == 4
    assert events == ["change", ["c", "d"], "change", ["e"], "change", ["g"]]
    assert recorded(folder) == {0: [0], 1: [1], 2: []}
    assert reconciled(folder, manifest, []) == 0


@pytest.mark.parametrize("moment", range(6))
def test_killed_at_any_moment(folder, monkeypatch, moment):
    manifest = strange(folder)
    try:
        with dying(moment, monkeypatch):
            reconciled(folder, manifest, [])
    except Killed:
        reconciled(folder, manifest, [])
    assert recorded(folder) == {0: [0], 1: [1], 2: []}
