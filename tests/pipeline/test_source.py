"""Which images of a shard are left, and in what batches: one by one after a worker has died."""

import datetime
from collections import Counter
from contextlib import contextmanager

import pyarrow as pa
import pytest

from vbp.errors import StorageError
from vbp.pipeline import RunConfig
from vbp.pipeline.source import SINGLES, Source, Work
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder
from vbp.storage.ledger.index import write_part
from vbp.storage.manifest.manifest import MANIFEST, write_manifest

NOON = datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.UTC)


def rows(count):
    columns = {name: [f"{name}{n}" for n in range(count)] for name in ("key", "uri", "label", "version")}
    columns |= {"path": [b"%d" % n for n in range(count)], "position": pa.array(range(count), pa.int32())}
    return pa.table(columns)


class Told:
    """Stands for `Marks`: what earlier workers left, and who is alone in hand now."""

    def __init__(self, stuck=False, deaths=()):
        self.stuck, self.deaths, self.in_hand = stuck, Counter(deaths), []

    @contextmanager
    def alone(self, position):
        self.in_hand.append(position)
        yield
        self.in_hand.remove(position)


def test_batches_are_of_the_size_that_is_asked_for():
    work = Work(7, rows(5), Told())
    assert list(work.singles(dict)) == []
    batches = list(work.batches(2))
    assert [list(batch["key"]) for batch in batches] == [["key0", "key1"], ["key2", "key3"], ["key4"]]
    assert [list(batch["position"]) for batch in batches] == [[0, 1], [2, 3], [4]]
    assert set(batches[0]["shard"]) == {7}
    assert list(batches[2]["path"]) == [b"4"]


@pytest.mark.parametrize("marks", [Told(stuck=True), Told(deaths={1: 1})], ids=["stuck", "a death"])
def test_after_a_death_images_are_taken_one_by_one_and_marked(marks):
    work, seen = Work(0, rows(3), marks), []
    for _ in work.singles(lambda batch: seen.append((list(batch["position"]), list(marks.in_hand)))):
        assert marks.in_hand == []
    assert seen == [([0], [0]), ([1], [1]), ([2], [2])]
    assert list(work.batches(2)) == []


def test_so_many_and_no_more():
    work = Work(0, rows(SINGLES + 3), Told(stuck=True))
    assert len(list(work.singles(dict))) == SINGLES
    assert [list(batch["position"]) for batch in work.batches(100)] == [list(range(SINGLES, SINGLES + 3))]


def test_an_image_that_two_workers_died_with_is_blamed_and_never_in_hand():
    marks = Told(deaths={1: 2})
    done = Work(0, rows(3), marks).singles(lambda batch: (batch, list(marks.in_hand)))
    seen = {int(batch["position"][0]): (batch, in_hand) for batch, in_hand in done}
    blamed, in_hand = seen[1]
    assert in_hand == []
    assert (blamed["error_stage"][0], blamed["error_type"][0]) == ("worker", "WorkerDiedError")
    assert "2 workers died with this image alone in hand" in blamed["error_message"][0]
    assert "error_stage" not in seen[0][0]


@pytest.fixture
def output(tmp_path):
    folder = Folder(tmp_path / "out")
    listed = [ManifestRow(f"{n}.jpg", f"/in/{n}.jpg", b"%d" % n, None, 9, "v") for n in range(6)]
    write_manifest(folder, listed, 4)
    statuses = {0: "ok", 2: "error"}
    done = [
        {"key": f"{n}.jpg", "uri": "u", "status": status, "error_stage": "decode", "position": n, "finished_at": NOON}
        for n, status in statuses.items()
    ]
    write_part(folder, pa.Table.from_pylist(done), 0, "earlier")
    return folder


@pytest.mark.parametrize(
    ("changes", "left"), [({}, [1, 3]), ({"retry_failed": True}, [1, 2, 3]), ({"limit": 2}, [1]), ({"limit": 1}, [])]
)
def test_a_shard_gives_what_no_part_holds(output, changes, left):
    config = RunConfig(input="in", output=output.url, **changes)
    with Source(config).open(0) as work:
        assert any("begun-" in name for name in output.list("_run/parts/000000"))
        assert [position for batch in work.batches(10) for position in batch["position"]] == left
    assert not any("begun-" in name for name in output.list("_run/parts/000000"))


def test_without_a_manifest_nothing_can_be_done(output):
    output.delete(MANIFEST)
    with pytest.raises(StorageError, match=r"manifest.json is gone; restore it, or run the same command"):
        Source(RunConfig(input="in", output=output.url)).open(0).__enter__()
