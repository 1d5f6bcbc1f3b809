"""One attempt, step by step, without a network: what it counts, refuses, and leaves behind when it is refused."""

import datetime
from types import SimpleNamespace

import pyarrow as pa
import pytest

from vbp.errors import InterruptedRunError, UsageError
from vbp.pipeline import Observer, RunConfig
from vbp.pipeline.attempt import Attempt
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder
from vbp.storage.ledger.index import write_part
from vbp.storage.ledger.lease import LEASE
from vbp.storage.manifest.manifest import MANIFEST, write_manifest

NOON = datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.UTC)


@pytest.fixture
def attempt(tmp_path):
    def attempt(**changes):
        return Attempt(RunConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), **changes))

    return attempt


@pytest.fixture
def listed(attempt):
    """An attempt at six images of two shards that has listed them."""
    made = attempt(limit=5)
    rows = [ManifestRow(f"{n}.jpg", f"/in/{n}.jpg", b"%d" % n, None) for n in range(6)]
    with made.leased(Observer()):
        made.manifest = write_manifest(made.output, rows, 4)
        yield made


def commit(made, shard, positions):
    rows = [
        {"key": f"{4 * shard + n}.jpg", "uri": "u", "status": "ok", "position": n, "finished_at": NOON}
        for n in positions
    ]
    write_part(made.output, pa.Table.from_pylist(rows), shard, made.run_id, made.manifest.generation)


def test_attempts_have_names_of_their_own(attempt):
    names = {attempt().run_id for _ in range(5)}
    assert len(names) == 5
    assert all(len(name) == len("20261129T120000Z-12345678") for name in names)


def test_it_holds_the_output_and_gives_it_back(attempt, tmp_path):
    made = attempt()
    with made.leased(Observer()):
        assert Folder(tmp_path / "out").exists(LEASE)
    assert not Folder(tmp_path / "out").exists(LEASE)


def test_a_first_run_that_is_refused_leaves_nothing_of_its_listing(attempt):
    made = attempt()

    def refused():
        with made.leased(Observer()):
            made.open()
            write_manifest(made.output, [ManifestRow("a.jpg", "/in/a.jpg", b"a", None)], 4)
            raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        refused()
    assert not made.output.exists(MANIFEST)


def test_what_is_left_counts_up_to_the_limit(listed):
    assert listed.images == 5
    listed.look()
    assert (listed.left, [tuple(shard) for shard in listed.pending]) == (5, [(0, 4), (1, 1)])
    commit(listed, 0, [0, 2, 3])
    listed.look()
    assert [tuple(shard) for shard in listed.pending] == [(0, 1), (1, 1)]


def test_reports_are_summed_by_stage(listed):
    assert listed.count({"ok": 3, "error": 1, "seconds_fetch": 0.5, "seconds_write": 0.25}) == (3, 1)
    assert listed.count({"ok": 0, "error": 2, "seconds_fetch": 0.5}) == (0, 2)
    assert dict(listed.spent) == {"images": 6, "fetch": 1.0, "write": 0.25}


def test_rows_that_are_lost_are_done_again_once_and_then_it_is_said(listed):
    told = []
    observer = SimpleNamespace(note=told.append)
    commit(listed, 0, [0, 1, 2, 3])
    assert listed.compact(observer).missing == 1
    assert [tuple(shard) for shard in listed.pending] == [(1, 1)]
    with pytest.raises(InterruptedRunError, match="1 of 5 images have no row in .*, also after a second try"):
        listed.compact(observer)
    commit(listed, 1, [0])
    assert listed.compact(observer).missing == 0
    assert told == []
