"""The index, made by ranges: anywhere, in any order, again, and killed half-way."""

import contextlib
import datetime
import io
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.killed import Killed, dying
from tests.spreads import wildly
from vbp.storage.files import Folder
from vbp.storage.ledger import compaction as module
from vbp.storage.ledger import index
from vbp.storage.ledger.compaction import compact, ranges
from vbp.storage.ledger.held import HeldFolder
from vbp.storage.ledger.parts import write_part
from vbp.storage.manifest.manifest import ManifestRow, write_manifest
from vbp.storage.manifest.refresh import refresh_manifest
from vbp.storage.spreading import here, ignored

NOON = datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.UTC)
SHARD, IMAGES = 4, 58


@pytest.fixture(autouse=True)
def _small_files(monkeypatch):
    monkeypatch.setattr(module, "ROWS_A_FILE", 16)
    monkeypatch.setattr(index, "ROWS_AT_ONCE", 8)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def listed(images):
    return [ManifestRow(f"{n:03d}.png", f"/in/{n:03d}.png", b"%03d.png" % n, None, 9, "v") for n in range(images)]


def commit(folder, shard, rows, minute=0):
    """Commit {position: status} of a shard, for the images that are listed there."""
    table = [
        {
            "key": f"{shard * SHARD + position:03d}.png",
            "uri": "u",
            "status": status,
            "error_stage": None if status == "ok" else "decode",
            "error_type": None if status == "ok" else random.Random(position).choice(["BadError", "WorseError"]),
            "mask_uri": f"masks/{shard * SHARD + position:03d}.png.png" if status == "ok" else None,
            "finished_at": NOON + datetime.timedelta(minutes=minute),
            "run_id": f"run{minute}",
            "position": position,
        }
        for position, status in rows.items()
    ]
    return write_part(folder, pa.Table.from_pylist(table), shard, f"run{minute}")


def ledger(folder, rng):
    """A manifest with images that are gone, and a ledger with all that may be wrong in one; returns the manifest."""
    manifest = write_manifest(folder, listed(IMAGES), SHARD)
    for minute in range(3):
        for shard in range(manifest.shards):
            positions = rng.sample(range(manifest.shard_images(shard)), rng.randint(0, manifest.shard_images(shard)))
            if positions:
                commit(folder, shard, {p: rng.choice(["ok", "ok", "error"]) for p in positions}, minute)
    gone = set(rng.sample(range(IMAGES), 5))
    there = [row for number, row in enumerate(listed(IMAGES)) if number not in gone]
    manifest, _ = refresh_manifest(folder, manifest, there, forget=lambda *_: None)
    paths = folder.list("_run/parts")
    for path in rng.sample(paths, 2):
        folder.write(path, folder.read(path)[:-50])
    stranger = pq.read_table(io.BytesIO(folder.read(commit(folder, 5, {1: "ok"}, 9))))
    changed = stranger.set_column(0, stranger.schema.field(0), pa.array(["another.png"]))
    write_part(folder, changed.drop_columns("shard"), 5, "run9")
    return manifest


def held(folder):
    output = HeldFolder.of(folder, "attempt")
    output.enter()
    return output


def files(folder, below):
    return {path: folder.read(path) for path in folder.list(below)}


def test_the_manifest_decides_the_ranges(folder):
    manifest = write_manifest(folder, listed(IMAGES), SHARD)
    assert [(part.number, list(part.shards)) for part in ranges(manifest)] == [
        (0, [0, 1, 2, 3]), (1, [4, 5, 6, 7]), (2, [8, 9, 10, 11]), (3, [12, 13, 14]),
    ]  # fmt: skip
    longer, _ = refresh_manifest(folder, manifest, listed(IMAGES + 9))
    assert ranges(longer)[:3] == ranges(manifest)[:3]
    assert [list(part.shards) for part in ranges(longer)[3:]] == [[12, 13, 14, 15], [16, 17]]
    assert [list(part.shards) for part in ranges(write_manifest(folder, listed(40), 20))] == [[0], [1]]
    assert [list(part.shards) for part in ranges(write_manifest(folder, [], 4))] == [[]]


def test_usual_runs_have_one_file(monkeypatch, folder):
    monkeypatch.undo()
    assert len(ranges(write_manifest(folder, listed(IMAGES), SHARD))) == 1
    assert module.ROWS_A_FILE >= 100_000


@pytest.fixture
def rng():
    seed = random.randrange(10**6)
    print("seed", seed)  # noqa: T201
    return random.Random(seed)


@pytest.fixture
def made(tmp_path, rng):
    """An output with a ledger, held; its manifest; and a function that takes it back to that state."""
    place, saved = tmp_path / "out", tmp_path / "saved"
    manifest = ledger(Folder(place), rng)
    shutil.copytree(place, saved)

    def restore():
        shutil.rmtree(place)
        shutil.copytree(saved, place)
        return held(Folder(place))

    return held(Folder(place)), manifest, restore


@pytest.mark.parametrize("limit", [None, 21])
def test_in_any_order_and_repeated_it_is_the_same_to_the_byte(made, rng, limit):
    output, manifest, restore = made
    wanted, told = compact(output, manifest, limit), []
    index_of_one, parts = files(output, "index"), files(output, "_run/parts")
    assert len(wanted.damaged) == 2
    assert wanted.strange == 1
    assert wanted.files.keys() == index_of_one.keys()
    output = restore()
    found = compact(output, manifest, limit, spread=wildly(rng), tell=told.append)
    assert (files(output, "index"), files(output, "_run/parts")) == (index_of_one, parts)
    assert (found, found.files, list(found.by_reason)) == (wanted, wanted.files, list(wanted.by_reason))
    assert told == sorted(told)
    assert told[-1] == wanted.images


def test_killed_again_and_again_it_comes_to_the_same(made, rng, monkeypatch):
    """The first call takes back what is wrong in the ledger, and so the second shows the older rows of these images."""
    output, manifest, restore = made
    for _ in range(2):
        wanted = compact(output, manifest)
    settled = files(output, "index"), files(output, "_run/parts")
    output, deaths = restore(), 0
    output.write("index/part-00001.parquet", b"of an older vbp, which divided otherwise")
    output.write("index/part-00007.parquet", b"of a longer index")
    for _ in range(8):
        with dying(rng.randrange(8), monkeypatch), contextlib.suppress(Killed):
            compact(output, manifest, spread=wildly(rng))
            deaths -= 1
        deaths += 1
    assert deaths
    for _ in range(2):
        found = compact(output, manifest, spread=wildly(rng))
    assert found == wanted
    assert (files(output, "index"), files(output, "_run/parts")) == settled


def test_a_task_changes_nothing(made):
    output, manifest, _ = made
    before = files(output, "")
    for part in ranges(manifest):
        module.make(output, manifest, None, part)
    assert files(output, "") == before


def test_what_is_made_fits_through_memory(made, monkeypatch):
    """Results that are written wait for each other: no more than these are held."""
    output, manifest, _ = made
    monkeypatch.setattr(module, "_WRITERS", 1)
    monkeypatch.setattr(module, "ROWS_A_FILE", SHARD)
    taken, written, write = [], [], HeldFolder.write

    def slowly(self, path, data):
        assert len(taken) - len(written) <= 3
        write(self, path, data)
        written.append(path)

    def counted(function, arguments, done=ignored, most=None):
        for result in here(function, arguments, done):
            taken.append(result.path)
            yield result

    monkeypatch.setattr(HeldFolder, "write", slowly)
    compact(output, manifest, spread=counted)
    assert len(taken) == manifest.shards


def test_a_range_without_rows_has_no_file_and_a_file_is_always_there(folder):
    manifest = write_manifest(folder, listed(IMAGES), SHARD)
    compact(folder, manifest)
    assert folder.list("index") == ["index/part-00000.parquet"]
    commit(folder, 9, {0: "ok", 3: "error"})
    for _ in range(2):
        assert compact(folder, manifest).missing == IMAGES - 2
        assert folder.list("index") == ["index/part-00000.parquet", "index/part-00002.parquet"]
    keys = [key for table in index.read_index(folder, ["key"]) for key in table["key"].to_pylist()]
    assert keys == ["036.png", "039.png"]


def test_one_range_is_made_here(folder, monkeypatch):
    monkeypatch.setattr(module, "ROWS_A_FILE", 64)
    compact(folder, write_manifest(folder, listed(IMAGES), SHARD), spread=pytest.fail)
