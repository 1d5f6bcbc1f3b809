"""A second listing compared with the first; the ledger must never keep the result of a replaced image."""

import datetime
import random

import pyarrow as pa
import pytest

from tests.killed import Killed, dying
from vbp.storage.files import Folder
from vbp.storage.ledger import index
from vbp.storage.ledger.compaction import compact
from vbp.storage.manifest import manifest as manifest_module
from vbp.storage.manifest.manifest import Manifest, ManifestRow, write_manifest
from vbp.storage.manifest.refresh import Changes, refresh_manifest

NOON = datetime.datetime(2026, 11, 15, 12, tzinfo=datetime.UTC)


def row(number, version="v1", **changes):
    key = f"{number:05d}.jpg"
    return ManifestRow(key, f"/in/{key}", key.encode(), None, 100, version)._replace(**changes)


def rows_of(manifest):
    fields = ManifestRow._fields
    return [
        ManifestRow(**{name: row[name] for name in fields})
        for shard in range(manifest.shards)
        for row in manifest.read_shard(shard).to_pylist()
    ]


def explain(output, manifest, tree):
    """Stands for the main job: every pending image gets a row that tells which content it saw."""
    for pending in list(index.pending_shards(output, manifest)):
        left = index.rows_left(output, manifest, pending.shard)
        table = pa.table(
            {
                "key": left["key"],
                "uri": left["uri"],
                "version": left["version"],
                "sha256": [tree[key] for key in left["key"].to_pylist()],
                "status": ["ok"] * len(left),
                "finished_at": [NOON] * len(left),
                "position": left["position"],
            }
        )
        index.write_part(output, table, pending.shard, "a")


def refresh(output, tree, before_change=None):
    def forget(shard, rows):
        index.forget(output, shard, rows)

    listed = [row(int(key[:5]), version) for key, version in sorted(tree.items())]
    return refresh_manifest(output, Manifest.load(output), listed, forget=forget, before_change=before_change)


def seen(output):
    """Which content each image's row tells of."""
    compact(output, Manifest.load(output))
    manifest = Manifest.load(output)
    newest = index.newest_rows(output, manifest, ["position", "status", "finished_at", "run_id"])
    assert sum(rows.num_rows for _, rows in newest) == manifest.images
    tables = [pa.parquet.read_table(output.uri(path)) for path in output.list("index")]
    return {row["key"]: row["sha256"] for table in tables for row in table.to_pylist()}


def test_new_changed_and_gone(folder):
    manifest = write_manifest(folder, [row(n) for n in (1, 3, 5, 7, 9)], 2)
    told = []
    before = []
    now = [row(0), row(1), row(3, size=101), row(7, "v2"), row(8), row(9)]
    refreshed, changes = refresh_manifest(
        folder,
        manifest,
        now,
        forget=lambda shard, rows: told.append((shard, dict(rows))),
        before_change=lambda: before.append(len(told)),
    )
    assert changes == Changes(new=2, changed=2, gone=1)
    assert sorted(told) == [(0, {1: row(3, size=101)}), (1, {1: row(7, "v2")})]
    assert before == [0, 2]
    assert refreshed == Manifest.load(folder)
    assert rows_of(refreshed) == [row(1), row(3, size=101), row(5, gone=True), row(7, "v2"), row(9), row(0), row(8)]
    assert (refreshed.gone, refreshed.gone_in(1)) == ({1: 1}, [0])
    unchanged, changes = refresh_manifest(folder, refreshed, now, forget=None)
    assert changes == Changes(new=0, changed=0, gone=1)
    assert unchanged == refreshed


def test_an_image_that_comes_back_is_done_again_unless_it_is_surely_the_same(folder):
    manifest = write_manifest(folder, [row(1), row(2), row(3, None), row(4)], 2)
    nothing = lambda *_: pytest.fail("nothing has changed")  # noqa: E731
    gone, changes = refresh_manifest(folder, manifest, [row(4)], forget=nothing)
    assert changes == Changes(0, 0, 3)
    assert (gone.gone, gone.images, gone.images_within(None), list(gone.rows())) == ({0: 2, 1: 1}, 4, 1, [row(4)])
    assert [gone.images_within(limit) for limit in (1, 2, 3, 4, 9)] == [0, 0, 0, 1, 1]
    told = []
    now = [row(1), row(2, "v2"), row(3, None), row(4)]
    back, changes = refresh_manifest(folder, gone, now, forget=lambda shard, rows: told.append((shard, dict(rows))))
    assert changes == Changes(0, 2, 0, back=3)
    assert sorted(told) == [(0, {1: row(2, "v2")}), (1, {0: row(3, None)})]
    assert (back.gone, rows_of(back)) == ({}, now)
    assert back == Manifest.load(folder)


def test_without_forgetting_nothing_is_marked(tmp_path):
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, [row(1), row(2)], 5)
    manifest, _ = refresh_manifest(folder, manifest, [row(1)], forget=lambda *_: None)
    later, changes = refresh_manifest(folder, manifest, [row(2), row(3)])
    assert changes == Changes(1, 0, 1, back=1)
    assert (later.gone, rows_of(later)) == ({0: 1}, [row(1), row(2, gone=True), row(3)])


@pytest.mark.parametrize(("source", "gone"), [([0, 2], [1]), ([0, 2, 3], [1, 4]), ([2, 5, 6], [0, 1, 3, 4])])
def test_what_comes_after_the_limit_is_not_called_gone(tmp_path, source, gone):
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, [row(n) for n in range(5)], 2)
    now = [row(n) for n in source]
    cut = [*now, row(8)] if len(now) < 3 else now
    refreshed, changes = refresh_manifest(folder, manifest, cut, len(now), forget=lambda *_: None)
    assert [n for n, found in enumerate(rows_of(refreshed)) if found.gone] == gone
    assert changes.gone == len(gone)


def test_of_a_list_that_is_cut_nothing_is_called_gone(tmp_path):
    """It is in no order, so any of its images may come after the limit."""
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, [row(n, path=None) for n in range(4)], 2)
    now = [row(n, path=None) for n in (3, 0, 1)]
    assert refresh_manifest(folder, manifest, now, 2, forget=lambda *_: None)[1].gone == 0
    assert refresh_manifest(folder, manifest, now, 3, forget=lambda *_: None)[1].gone == 1


def test_a_manifest_of_before_is_marked_too(tmp_path):
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, [row(1), row(2)], 5)
    (path,) = tmp_path.glob("_run/manifest/*.parquet")
    pa.parquet.write_table(pa.parquet.read_table(path).drop_columns(["gone", "version"]), path)
    assert list(manifest.rows()) == [row(1, None), row(2, None)]
    marked, _ = refresh_manifest(folder, manifest, [row(1)], forget=lambda *_: None)
    assert rows_of(marked) == [row(1, None), row(2, None, gone=True)]


def test_what_was_never_known_is_no_change(tmp_path):
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, [row(1), row(2, None, size=None)], 5)
    now = [row(1, None, size=None), row(2)]
    _, changes = refresh_manifest(folder, manifest, now, forget=lambda *_: pytest.fail("nothing has changed"))
    assert changes == Changes(0, 0, 0)


def test_another_uri_or_label_is_a_change(tmp_path):
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, [row(1), row(2), row(3)], 5)
    now = [row(1, uri="s3://b/x.jpg"), row(2, label="cat"), row(3)]
    refreshed, changes = refresh_manifest(folder, manifest, now, forget=lambda *_: None)
    assert changes == Changes(0, 2, 0)
    assert rows_of(refreshed) == now


def test_without_forgetting_the_old_rows_stay(tmp_path):
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, [row(1), row(2)], 5, limit=1)
    refreshed, changes = refresh_manifest(folder, manifest, [row(1, "v2"), row(2)])
    assert changes == Changes(1, 0, 0)
    assert rows_of(refreshed) == [row(1), row(2)]


def test_a_limit_says_nothing_of_the_rest(tmp_path):
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, [row(n) for n in range(6)], 2)
    refreshed, changes = refresh_manifest(folder, manifest, [row(n, "v2") for n in range(6)], 3, forget=lambda *_: None)
    assert changes == Changes(0, 3, 0)
    assert [row.version for row in rows_of(refreshed)] == ["v2"] * 3 + ["v1"] * 3


def test_extension_keeps_what_is_listed(folder):
    manifest = write_manifest(folder, [row(n) for n in (1, 3, 5)], 2, limit=2)
    assert not manifest.complete
    unchanged, _ = refresh_manifest(folder, manifest, [row(1), row(3)], 2)
    assert unchanged.listings == (2,)
    grown, _ = refresh_manifest(folder, manifest, [row(n) for n in (0, 1, 2, 3, 5, 9)])
    assert grown.complete
    assert rows_of(grown) == [row(1), row(3), row(0), row(2), row(5), row(9)]
    assert grown == Manifest.load(folder)


def test_extension_that_breaks_off_changes_nothing(folder):
    manifest = write_manifest(folder, [row(1), row(2)], 1)

    def broken():
        yield from [row(0), row(1), row(2), row(3)]
        raise OSError("the listing broke off")

    with pytest.raises(OSError, match="broke off"):
        refresh_manifest(folder, manifest, broken())
    assert Manifest.load(folder) == manifest
    assert refresh_manifest(folder, manifest, [row(1), row(2), row(7)])[0].images == 3


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_many_refreshes_of_a_changing_tree(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", 2)
    print(f"seed {seed}")  # noqa: T201
    rng, output = random.Random(seed), Folder(tmp_path)
    tree = {f"{n:05d}.jpg": "v1" for n in rng.sample(range(200), 50)}
    write_manifest(output, [row(int(key[:5])) for key in sorted(tree)], 3)
    everything = {}
    for step in range(5):
        everything |= tree
        explain(output, Manifest.load(output), everything)
        assert seen(output) == everything
        before = dict(tree)
        for key in rng.sample(sorted(tree), 9):
            del tree[key]
        for key in rng.sample(sorted(tree), 9):
            tree[key] += f"-{step}"
        for number in rng.sample(range(200), 12):
            tree.setdefault(f"{number:05d}.jpg", f"n{step}")
        _, changes = refresh(output, tree)
        assert changes.gone == len(everything.keys() - tree.keys())
        assert changes.new == len(tree.keys() - everything.keys())
        assert changes.changed == sum(everything[key] != tree[key] for key in everything.keys() & tree.keys())
        assert before.keys() <= everything.keys()


@pytest.mark.long
@pytest.mark.parametrize("plain_run_between", [False, True])
def test_killed_at_any_moment(tmp_path, monkeypatch, plain_run_between):
    """Dead after any number of writes and deletions: no image keeps the results of what it was."""
    monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", 2)
    before = {f"{n:05d}.jpg": "v1" for n in range(0, 20, 2)}
    now = before | {"00002.jpg": "v2", "00004.jpg": "v2", "00018.jpg": "v2", "00003.jpg": "v1"}
    for moment in range(100):
        output = Folder(tmp_path / f"{moment}")
        write_manifest(output, [row(int(key[:5])) for key in sorted(before)], 3)
        explain(output, Manifest.load(output), before)
        died = die_after(moment, monkeypatch, lambda output=output: refresh(output, now))
        if died and plain_run_between:
            explain(output, Manifest.load(output), now)
        refresh(output, now)
        explain(output, Manifest.load(output), now)
        assert seen(output) == now, f"killed after {moment} writes"
        assert refresh(output, now)[1] == Changes(0, 0, 0)
        if not died:
            break
    assert moment >= 7


def die_after(moment, monkeypatch, work):
    with dying(moment, monkeypatch):
        try:
            work()
        except Killed:
            return True
    return False


def test_what_is_listed_lies_within_the_limit(tmp_path):
    """The limit counts in the order of the manifest: what came behind it would be listed, and never be done."""
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, [row(n) for n in (1, 2, 3)], 2, limit=3)
    manifest, changes = refresh_manifest(folder, manifest, [row(n) for n in range(4)], 3)
    assert changes == Changes(0, 0, 0, beyond=1)
    assert (manifest.images, manifest.complete) == (3, False)
    manifest, changes = refresh_manifest(folder, manifest, [row(n) for n in range(4)], 4)
    assert (changes, manifest.images, manifest.complete) == (Changes(1, 0, 0), 4, True)
