"""The working phase of a run, without a network: what is left, what it counts, and lost rows."""

import datetime

import pyarrow as pa
import pytest

from vbp.errors import InterruptedRunError
from vbp.pipeline import Observer, RunConfig
from vbp.pipeline.attempt import attempted
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.working import Working
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.ledger import compaction
from vbp.storage.ledger.index import write_part
from vbp.storage.manifest.manifest import write_manifest
from vbp.storage.spreading import ignored

NOON = datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.UTC)


class Notes(Observer):
    def __init__(self):
        self.notes, self.indexed_so_far = [], []

    def note(self, text):
        self.notes.append(text)

    def indexed(self, images):
        self.indexed_so_far.append(images)


@pytest.fixture
def held(tmp_path):
    """An attempt at six images of two shards, up to the fifth, and the manifest."""
    config = RunConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), limit=5)
    rows = [ManifestRow(f"{n}.jpg", f"/in/{n}.jpg", b"%d" % n, None) for n in range(6)]
    with attempted(config, Notes()) as attempt:
        yield attempt, write_manifest(attempt.output, rows, 4)


@pytest.fixture
def working(held):
    attempt, manifest = held
    recipe = Recipe(
        config=attempt.config, run_id=attempt.run_id, device="cpu", precision="float32", batch_size=2,
        weights_sha256="0",
    )  # fmt: skip
    working = Working(attempt, recipe, manifest, [])
    working.look()
    return working


@pytest.fixture
def commit(held):
    def commit(shard, positions):
        attempt, manifest = held
        rows = [
            {"key": f"{4 * shard + n}.jpg", "uri": "u", "status": "ok", "position": n, "finished_at": NOON}
            for n in positions
        ]
        write_part(attempt.output, pa.Table.from_pylist(rows), shard, attempt.run_id, manifest.generation)

    return commit


def test_what_is_left_counts_up_to_the_limit(working, commit):
    assert (working.left, [tuple(shard) for shard in working.pending]) == (5, [(0, 4), (1, 1)])
    commit(0, [0, 2, 3])
    working.look()
    assert (working.left, [tuple(shard) for shard in working.pending]) == (2, [(0, 1), (1, 1)])


def test_reports_are_summed_by_stage(working, commit):
    assert working.count({"ok": 3, "error": 1, "seconds_fetch": 0.5, "seconds_write": 0.25}) == (3, 1)
    assert working.left == 1
    assert working.count({"ok": 0, "error": 1, "seconds_fetch": 0.5}) == (0, 1)
    commit(0, [0, 1, 2, 3])
    commit(1, [0])
    summary = working.completed(None)
    assert (summary.computed, summary.stage_seconds) == (5, {"fetch": 1.0, "write": 0.25})


def test_ranges_of_the_index_are_spread_and_told(working, commit, held, monkeypatch):
    monkeypatch.setattr(compaction, "ROWS_A_FILE", 4)
    commit(0, [0, 1, 2, 3])
    commit(1, [0])
    spread = []

    def counted(function, arguments, done=ignored, most=None):
        for argument in arguments:
            spread.append(argument)
            yield function(argument)

    assert working.completed(None, counted).ok == 5
    assert [part.number for part in spread] == [0, 1]
    assert held[0].observer.indexed_so_far == [4, 5]


def test_rows_that_are_lost_are_done_again_once_and_then_it_is_said(working, commit, held):
    commit(0, [0, 1, 2, 3])
    assert working.completed(None) is None
    assert (working.left, [tuple(shard) for shard in working.pending]) == (1, [(1, 1)])
    with pytest.raises(InterruptedRunError, match="1 of 5 images without a row in .*, also after a second try"):
        working.completed(None)
    commit(1, [0])
    summary = working.completed(None)
    assert (summary.ok, summary.images) == (5, 5)
    assert held[0].observer.notes == []
