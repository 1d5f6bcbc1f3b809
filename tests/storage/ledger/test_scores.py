"""Scores out of the parts of the ledger."""

import json
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder
from vbp.storage.ledger.parts import write_part
from vbp.storage.ledger.scores import collect, packed
from vbp.storage.manifest.manifest import write_manifest

FOUND = [("vbp", "pointing-game", 1.0, 0.25, ""), ("edge", "pointing-game", None, 0.25, "steps 3")]


def committed(output, manifest, shard, keys, attempt="first", scores=FOUND):
    rows = [
        {
            "key": key, "uri": f"/photos/{key}", "label": "dog", "status": "ok", "position": position,
            "finished_at": datetime(2026, 1, 1, tzinfo=UTC), "run_id": attempt, "scores": packed(scores),
        }
        for position, key in enumerate(keys)
    ]  # fmt: skip
    write_part(output, pa.Table.from_pylist(rows), shard, attempt)


@pytest.fixture
def output(tmp_path):
    return Folder(str(tmp_path / "out"))


@pytest.fixture
def manifest(output):
    rows = [ManifestRow(f"dog/{n}.jpg", f"/photos/dog/{n}.jpg", None, "dog") for n in range(3)]
    return write_manifest(output, iter(rows), 2, None, input="/photos")


def test_a_row_for_each_image_method_and_metric(output, manifest):
    committed(output, manifest, 0, ["dog/0.jpg", "dog/1.jpg"])
    committed(output, manifest, 1, ["dog/2.jpg"])
    files = collect(output, manifest)
    assert list(files) == ["scores/part-00000.parquet"]
    rows = pq.read_table(f"{output.url}/scores").to_pylist()
    assert [(row["key"], row["method"], row["value"]) for row in rows] == [
        (f"dog/{n}.jpg", method, value) for n in range(3) for method, value in (("vbp", 1.0), ("edge", None))
    ]
    assert rows[1] == {
        "key": "dog/0.jpg", "label": "dog", "method": "edge", "metric": "pointing-game", "value": None,
        "chance": 0.25, "settings": "steps 3",
    }  # fmt: skip


def test_the_newest_row_of_an_image_counts_and_the_call_repeats(output, manifest):
    committed(output, manifest, 0, ["dog/0.jpg", "dog/1.jpg"])
    committed(output, manifest, 1, ["dog/2.jpg"], attempt="first")
    committed(output, manifest, 1, ["dog/2.jpg"], attempt="second", scores=[("vbp", "energy-inside", 0.5, 0.1, "")])
    first = collect(output, manifest)
    rows = pq.read_table(f"{output.url}/scores").to_pylist()
    assert [row["metric"] for row in rows if row["key"] == "dog/2.jpg"] == ["energy-inside"]
    output.write("scores/part-00001.parquet", b"of a longer run")
    assert collect(output, manifest) == first
    assert output.list("scores") == ["scores/part-00000.parquet"]


def test_without_scores_the_table_is_empty(output, manifest):
    committed(output, manifest, 0, ["dog/0.jpg", "dog/1.jpg"], scores=[])
    collect(output, manifest)
    assert pq.read_table(f"{output.url}/scores").num_rows == 0


def test_numbers_that_json_has_not_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        packed([("vbp", "x", float("nan"), None, "")])
    assert json.loads(packed(FOUND))[0][2] == 1.0
