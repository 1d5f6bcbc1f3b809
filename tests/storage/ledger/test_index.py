import contextlib
import datetime
import io
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from tests.killed import Killed, dying
from vbp.columns import INDEX_SCHEMA
from vbp.storage.files import Folder
from vbp.storage.ledger import compaction
from vbp.storage.ledger import index as module
from vbp.storage.ledger.compaction import Totals, compact
from vbp.storage.ledger.index import (
    PendingShard,
    forget,
    pending_shards,
    progress,
    read_index,
    rows_left,
    write_part,
)
from vbp.storage.ledger.parts import newest, parts_of, read_parts
from vbp.storage.manifest.manifest import ManifestRow, write_manifest
from vbp.storage.manifest.refresh import refresh_manifest

NOON = datetime.datetime(2026, 11, 15, 12, 0, 0, 123456, tzinfo=datetime.UTC)
COLUMNS = (
    "key uri label status error_stage error_type error_message width height format bytes sha256 version gone mask_uri "
    "mask_offset mask_length overlay_uri overlay_offset overlay_length frame_left frame_top frame_right frame_bottom "
    "log10_max mask_mean mask_area peak_x peak_y mask_width mask_height image_peak_x image_peak_y flat "
    "prediction predicted_label probability correct model weights preset device seconds finished_at run_id"
)


def listing(images):
    return [ManifestRow(f"k{n:05d}.jpg", f"/in/k{n:05d}.jpg", b"k%05d" % n, None) for n in range(images)]


def rows(shard, statuses, minute=0, size=4):
    """Index rows of {position: status} of a shard."""
    return pa.Table.from_pylist(
        [
            {
                "key": f"k{shard * size + position:05d}.jpg",
                "uri": "u",
                "status": status,
                "error_stage": "decode" if status == "error" else None,
                "error_type": "CorruptImageError" if status == "error" else None,
                "log10_max": 1.5,
                "finished_at": NOON + datetime.timedelta(minutes=minute),
                "run_id": f"run{minute}",
                "position": position,
            }
            for position, status in statuses.items()
        ]
    )


@pytest.fixture
def manifest(folder):
    """Ten images in shards of four."""
    return write_manifest(folder, listing(10), 4)


def index_of(folder):
    tables = [pq.read_table(io.BytesIO(folder.read(path))) for path in folder.list("index")]
    return pa.concat_tables(tables).to_pylist()


def ok(*positions):
    return dict.fromkeys(positions, "ok")


def test_the_columns_are_those_of_the_design():
    assert INDEX_SCHEMA.names == COLUMNS.split()


def test_a_part_is_written_over_itself(folder, manifest):
    first = write_part(folder, rows(1, ok(0, 1, 3)), 1, "run-1")
    again = write_part(folder, rows(1, ok(3, 1, 0), minute=9), 1, "run-1")
    other = write_part(folder, rows(1, ok(0, 1)), 1, "run-1")
    assert first == again != other
    assert first.startswith("_run/parts/000001/")
    assert folder.list("_run/parts") == sorted([first, other])
    table = pq.read_table(io.BytesIO(folder.read(first)))
    assert table.column_names == [*COLUMNS.split(), "shard", "position"]
    assert table["shard"].to_pylist() == [1, 1, 1]
    assert table["finished_at"].to_pylist() == [NOON.replace(minute=9, microsecond=123000)] * 3


@pytest.mark.parametrize(
    "table",
    [
        rows(0, {}).append_column("position", pa.array([], pa.int32())),
        pa.concat_tables([rows(0, ok(1)), rows(0, ok(1))]),
        rows(0, {0: "fine"}),
        rows(0, ok(0)).append_column("colour", pa.array(["red"])),
    ],
    ids=["empty", "twice", "status", "column"],
)
def test_rows_that_cannot_be_committed(tmp_path, table):
    with pytest.raises((ValueError, KeyError)):
        write_part(Folder(tmp_path), table, 0, "run")
    assert Folder(tmp_path).list() == []


def recorded(folder, shard):
    """Position and status of the newest row of each image of a shard."""
    return newest(read_parts(folder, parts_of(folder, shard))).select(["position", "status"]).to_pylist()


def test_of_images_that_are_gone_only_results_count(folder, manifest):
    write_part(folder, rows(0, {0: "ok", 1: "ok", 2: "error", 3: "error"}), 0, "a")
    write_part(folder, rows(2, {0: "ok", 1: "error"}), 2, "a")
    there = [row for row in listing(10) if row.key not in ("k00001.jpg", "k00003.jpg", "k00005.jpg", "k00009.jpg")]
    manifest, _ = refresh_manifest(folder, manifest, there, forget=lambda *_: pytest.fail("nothing has changed"))
    assert list(pending_shards(folder, manifest)) == [(1, 3)]
    assert list(pending_shards(folder, manifest, retry_failed=True)) == [(0, 1), (1, 3)]
    assert rows_left(folder, manifest, 1)["position"].to_pylist() == [0, 2, 3]
    write_part(folder, rows(1, ok(0, 2, 3)), 1, "b")
    totals = compact(folder, manifest)
    assert (totals.images, totals.ok, totals.error, totals.gone) == (7, 6, 1, 1)
    assert {row["key"]: row["gone"] for row in index_of(folder)} == {
        f"k{n:05d}.jpg": n == 1 for n in (0, 1, 2, 4, 6, 7, 8)
    }
    assert [compact(folder, manifest, limit).images for limit in (2, 4, 6)] == [7, 7, 7]  # no row is dropped
    manifest, changes = refresh_manifest(folder, manifest, [row._replace(version="2") for row in listing(10)])
    assert changes.back == 4
    assert manifest.gone  # only a refresh that may forget rows takes marks away


def test_the_newest_row_counts_and_ok_before_error(folder):
    assert recorded(folder, 1) == []
    write_part(folder, rows(1, {0: "ok", 1: "error"}), 1, "a")
    write_part(folder, rows(1, {1: "error", 3: "error"}), 1, "b")
    write_part(folder, rows(1, {3: "ok", 0: "error"}), 1, "c")
    write_part(folder, rows(2, {2: "ok"}), 2, "c")
    assert recorded(folder, 1) == [
        {"position": 0, "status": "ok"},
        {"position": 1, "status": "error"},
        {"position": 3, "status": "ok"},
    ]


def test_what_is_left(folder, manifest):
    assert list(pending_shards(folder, manifest)) == [PendingShard(0, 4), PendingShard(1, 4), PendingShard(2, 2)]
    write_part(folder, rows(0, ok(0, 1, 2, 3)), 0, "a")
    write_part(folder, rows(1, {0: "ok", 3: "error"}), 1, "a")
    write_part(folder, rows(2, {0: "error", 1: "ok"}), 2, "a")
    assert list(pending_shards(folder, manifest)) == [PendingShard(1, 2)]
    assert list(pending_shards(folder, manifest, retry_failed=True)) == [PendingShard(1, 3), PendingShard(2, 1)]
    assert list(pending_shards(folder, manifest, limit=6)) == [PendingShard(1, 1)]
    assert list(pending_shards(folder, manifest, limit=5)) == []
    assert list(pending_shards(folder, manifest, limit=9, retry_failed=True)) == [
        PendingShard(1, 3),
        PendingShard(2, 1),
    ]

    def left(shard, **arguments):
        table = rows_left(folder, manifest, shard, **arguments)
        assert table["key"].to_pylist() == [f"k{shard * 4 + p:05d}.jpg" for p in table["position"].to_pylist()]
        return table["position"].to_pylist()

    assert left(0) == []
    assert left(1) == [1, 2]
    assert left(1, retry_failed=True) == [1, 2, 3]
    assert left(1, limit=6) == [1]
    assert left(2) == []
    assert left(2, retry_failed=True) == [0]
    assert left(2, retry_failed=True, limit=8) == []


def test_what_is_left_of_a_grown_manifest(folder, manifest):
    for shard, positions in enumerate([(0, 1, 2, 3), (0, 1, 2, 3), (0, 1)]):
        write_part(folder, rows(shard, ok(*positions)), shard, "a")
    grown, _ = refresh_manifest(folder, manifest, listing(13))
    assert list(pending_shards(folder, grown)) == [PendingShard(3, 3)]
    assert list(pending_shards(folder, grown, limit=12)) == [PendingShard(3, 2)]
    assert rows_left(folder, grown, 3)["key"].to_pylist() == ["k00010.jpg", "k00011.jpg", "k00012.jpg"]


def test_files_that_are_no_parts_do_not_count(folder, manifest):
    folder.write("_run/parts/000000/.vbp-0123.tmp", b"torn")
    folder.write("_run/parts/000000/notes.txt", b"mine")
    folder.write("_run/parts/readme", b"mine")
    assert len(list(pending_shards(folder, manifest))) == 3
    assert compact(folder, manifest).ok == 0


def test_progress(folder, manifest):
    assert progress(folder, manifest) == (0, 0)
    write_part(folder, rows(0, {0: "ok", 1: "error", 2: "ok", 3: "ok"}), 0, "a")
    write_part(folder, rows(1, {0: "error", 1: "error"}), 1, "a")
    assert progress(folder, manifest) == (3, 3)
    write_part(folder, rows(0, {1: "ok"}), 0, "b")
    assert progress(folder, manifest) == (4, 2)
    write_part(folder, rows(1, {0: "ok", 1: "error"}), 1, "a")
    assert progress(folder, manifest) == (5, 1)


def test_compact_takes_the_newest_ok_else_the_newest_error(folder, manifest):
    write_part(folder, rows(0, {0: "ok", 1: "ok", 2: "error", 3: "error"}, minute=1), 0, "a")
    write_part(folder, rows(0, {0: "ok", 1: "error", 2: "ok", 3: "error"}, minute=2), 0, "b")
    write_part(folder, rows(2, {1: "ok"}, minute=3), 2, "b")
    totals = compact(folder, manifest)
    assert totals == Totals(images=10, ok=4, error=1, by_reason={"decode: CorruptImageError": 1})
    found = [(row["key"], row["status"], row["run_id"]) for row in index_of(folder)]
    assert found == [
        ("k00000.jpg", "ok", "run2"),
        ("k00001.jpg", "ok", "run1"),
        ("k00002.jpg", "ok", "run2"),
        ("k00003.jpg", "error", "run2"),
        ("k00009.jpg", "ok", "run3"),
    ]


def ledger(folder):
    """All that the parts hold: (shard, position, status, run_id), sorted, each as often as it stands there."""
    tables = [pq.read_table(io.BytesIO(folder.read(path))) for path in folder.list("_run/parts")]
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted((row["shard"], row["position"], row["status"], row["run_id"]) for row in rows)


def test_forget_takes_back_these_rows_and_no_other(folder, manifest):
    write_part(folder, rows(0, ok(0, 1, 2, 3), minute=1), 0, "a")
    write_part(folder, rows(1, {0: "ok", 1: "error", 2: "ok"}, minute=1), 1, "a")
    write_part(folder, rows(1, {1: "ok", 3: "ok"}, minute=2), 1, "b")
    write_part(folder, rows(1, {2: "ok"}, minute=3), 1, "c")
    assert forget(folder, 1, {1, 2}) == 2
    assert ledger(folder) == [(0, n, "ok", "run1") for n in range(4)] + [(1, 0, "ok", "run1"), (1, 3, "ok", "run2")]
    assert list(pending_shards(folder, manifest)) == [PendingShard(1, 2), PendingShard(2, 2)]
    assert rows_left(folder, manifest, 1)["position"].to_pylist() == [1, 2]
    names = [path.rpartition("/")[2] for path in folder.list("_run/parts/000001")]
    assert [(name[0], name.split("-")[-2:]) for name in names] == [("a", ["1", "0.parquet"]), ("b", ["1", "0.parquet"])]
    assert forget(folder, 1, {1, 2}) == 0
    assert forget(folder, 1, []) == 0
    assert forget(folder, 2, [0]) == 0
    assert len(ledger(folder)) == 6


def test_forget_keeps_every_column_of_the_rows_that_stay(folder, manifest):
    path = write_part(folder, rows(0, {0: "ok", 2: "error", 3: "ok"}, minute=5), 0, "a")
    before = pq.read_table(io.BytesIO(folder.read(path)))
    forget(folder, 0, [3])
    (path,) = folder.list("_run/parts")
    assert pq.read_table(io.BytesIO(folder.read(path))).equals(before.slice(0, 2))


def test_a_position_between_those_of_a_part_leaves_it_alone(folder, manifest):
    path = write_part(folder, rows(0, ok(0, 3)), 0, "a")
    assert forget(folder, 0, [1, 2]) == 0
    assert folder.list("_run/parts") == [path]


@pytest.mark.parametrize("operation", ["write", "delete"])
@pytest.mark.parametrize("moment", range(3))
def test_forget_killed_at_any_moment_loses_nothing_and_is_finished_by_the_next(
    folder, manifest, monkeypatch, operation, moment
):
    for minute, attempt in enumerate("abc"):
        write_part(folder, rows(1, ok(0, 1, 2, 3), minute=minute), 1, attempt)
    with dying(moment, monkeypatch, [operation]), pytest.raises(Killed):
        forget(folder, 1, [1, 2])
    kept = [(1, n, "ok", f"run{minute}") for minute in range(3) for n in (0, 3)]
    assert set(kept) <= set(ledger(folder))
    assert forget(folder, 1, [1, 2]) == 2
    assert ledger(folder) == sorted(kept)
    assert [row["position"] for row in recorded(folder, 1)] == [0, 3]


def versioned(rows, version):
    return rows.append_column("version", pa.array([version] * rows.num_rows, pa.string()))


@pytest.mark.parametrize("newer", ["ok", "error"])
def test_a_row_of_an_image_as_it_was_never_reaches_the_index(folder, newer):
    """It was committed late, in an object store, when a refresh had taken the image back already."""
    listed = [row._replace(version="2") for row in listing(4)]
    manifest = write_manifest(folder, listed, 4)
    write_part(folder, versioned(rows(0, ok(1, 2, 3), minute=1), "2"), 0, "b")
    write_part(folder, versioned(rows(0, {0: newer}, minute=1), "2"), 0, "b")
    write_part(folder, versioned(rows(0, ok(0), minute=2 if newer == "ok" else 0), "1"), 0, "a")
    totals = compact(folder, manifest)
    assert (totals.missing, totals.strange) == (1, 1)
    assert list(pending_shards(folder, manifest)) == [PendingShard(0, 1)]
    write_part(folder, versioned(rows(0, {0: newer}, minute=3), "2"), 0, "c")
    assert compact(folder, manifest).missing == 0
    assert index_of(folder)[0]["status"] == newer


@pytest.mark.parametrize(("listed", "told"), [("2", None), (None, "1"), (None, None)])
def test_a_version_that_one_side_does_not_know_says_nothing(folder, listed, told):
    manifest = write_manifest(folder, [row._replace(version=listed) for row in listing(1)], 4)
    write_part(folder, versioned(rows(0, ok(0)), told), 0, "a")
    assert compact(folder, manifest) == Totals(1, 1, 0, {})


def test_compact_counts_within_the_limit(folder, manifest):
    write_part(folder, rows(0, ok(0, 1, 2, 3)), 0, "a")
    write_part(folder, rows(1, ok(0)), 1, "a")
    assert compact(folder, manifest, limit=5) == Totals(5, 5, 0, {})
    assert compact(folder, manifest, limit=2) == Totals(5, 5, 0, {})
    assert compact(folder, manifest, limit=6) == Totals(6, 5, 0, {})
    assert compact(folder, manifest) == Totals(10, 5, 0, {})


def test_compact_again_writes_the_same(folder, monkeypatch):
    manifest = write_manifest(folder, listing(40), 4)
    for shard in range(10):
        write_part(folder, rows(shard, ok(0, 1, 2, 3)), shard, "a")
    monkeypatch.setattr(compaction, "ROWS_A_FILE", 16)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 8)
    totals = compact(folder, manifest)
    assert totals == Totals(40, 40, 0, {})
    names = ["index/part-00000.parquet", "index/part-00001.parquet", "index/part-00002.parquet"]
    assert folder.list("index") == names
    before = {name: folder.read(name) for name in names}
    folder.write("index/part-00003.parquet", b"stale")
    folder.write("index/part-00017.parquet", b"stale")
    folder.write("index/readme", b"mine")
    assert compact(folder, manifest) == totals
    assert folder.read("index/readme") == b"mine"
    folder.delete("index/readme")
    assert {name: folder.read(name) for name in folder.list("index")} == before
    assert [row["key"] for row in index_of(folder)] == [f"k{n:05d}.jpg" for n in range(40)]


def test_an_empty_index_is_an_index(tmp_path):
    folder = Folder(tmp_path)
    compact(folder, write_manifest(folder, [], 4))
    table = pyarrow.dataset.dataset(tmp_path / "index").to_table()
    assert (table.num_rows, table.column_names) == (0, COLUMNS.split())


@pytest.mark.long
@pytest.mark.parametrize("contiguous", [True, False], ids=["told by names", "parts read"])
def test_resume_of_a_finished_run(tmp_path, contiguous, capsys):
    """100,000 images in 400 parts; the times are printed for people, not judged."""
    folder = Folder(tmp_path)
    size, step = 1024, 256
    manifest = write_manifest(folder, listing(100_000), size)

    def write(task):
        shard, start = task
        images = manifest.shard_images(shard)
        if contiguous:
            positions = range(start, min(start + step, images))
        else:  # as of a run whose batches mixed the order
            positions = range(start // step, images, -(-images // step))
        keys = [f"k{shard * size + position:05d}.jpg" for position in positions]
        table = pa.table({"key": keys, "uri": keys, "position": pa.array(positions, pa.int32())})
        for name, value in (("status", "ok"), ("finished_at", NOON), ("run_id", "a"), ("preset", "paper")):
            table = table.append_column(name, pa.array([value] * len(keys)))
        write_part(folder, table, shard, "a")

    shards = range(manifest.shards)
    tasks = [(shard, start) for shard in shards for start in range(0, manifest.shard_images(shard), step)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, tasks))
    begin = time.perf_counter()
    assert list(pending_shards(folder, manifest)) == []
    looked = time.perf_counter()
    totals = compact(folder, manifest)
    compacted = time.perf_counter()
    assert totals == Totals(100_000, 100_000, 0, {})
    with capsys.disabled():
        print(f"\n100,000 images: nothing left known in {looked - begin:.2f} s, index in {compacted - looked:.2f} s")  # noqa: T201


def damage(folder, path, how):
    data = folder.read(path)
    changed = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "flipped": flipped(data, last_of_a_page(data)),
        "another": b"PAR1" + data[4:-8] + b"\xff\xff\xff\x7fPAR1",
    }
    folder.write(path, changed[how])


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


def last_of_a_page(data):
    """The last byte of the keys; a bit in the head of a page may have no meaning."""
    column = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(0)
    return (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "another"])
def test_a_damaged_part_is_removed_and_its_images_are_pending_again(folder, manifest, how):
    write_part(folder, rows(0, ok(0, 1, 2, 3)), 0, "a")
    hurt = write_part(folder, rows(1, {0: "ok", 1: "error", 2: "ok"}), 1, "a")
    write_part(folder, rows(1, {1: "error", 3: "ok"}, minute=1), 1, "b")
    damage(folder, hurt, how)
    if how != "flipped":  # which shows where that column is read
        assert list(pending_shards(folder, manifest)) == [PendingShard(1, 2), PendingShard(2, 2)]
        assert rows_left(folder, manifest, 1)["position"].to_pylist() == [0, 2]
    assert folder.exists(hurt), "a look removes nothing"
    totals = compact(folder, manifest)
    assert totals == Totals(10, 5, 1, {"decode: CorruptImageError": 1}, damaged=(hurt,))
    assert totals.missing == 4
    assert not folder.exists(hurt)
    assert compact(folder, manifest).damaged == ()


def test_a_part_whose_name_says_it_all_is_trusted_until_the_index_is_made(folder, manifest):
    whole = [write_part(folder, rows(shard, ok(*range(images))), shard, "a") for shard, images in enumerate((4, 4, 2))]
    damage(folder, whole[1], "flipped")
    assert list(pending_shards(folder, manifest)) == []
    assert (compact(folder, manifest).missing, folder.exists(whole[1])) == (4, False)
    assert list(pending_shards(folder, manifest)) == [PendingShard(1, 4)]


def test_a_part_that_arrives_damaged_once_is_read_again(tmp_path, manifest_of_ten, monkeypatch):
    folder, manifest = manifest_of_ten
    path = write_part(folder, rows(0, ok(0, 1, 2, 3)), 0, "a")
    read, arrived = Folder.read, []

    def cut_once(self, wanted):
        data = read(self, wanted)
        if wanted == path and not arrived:
            arrived.append(wanted)
            return data[:50]
        return data

    monkeypatch.setattr(Folder, "read", cut_once)
    assert compact(folder, manifest) == Totals(10, 4, 0, {})
    assert arrived == [path]


def test_a_part_without_a_column_of_today_is_read_with_nulls(tmp_path, manifest_of_ten):
    folder, manifest = manifest_of_ten
    path = write_part(folder, rows(0, ok(0, 1, 2, 3)), 0, "a")
    older = pq.read_table(io.BytesIO(folder.read(path))).drop_columns(["version"])
    sink = io.BytesIO()
    pq.write_table(older, sink)
    folder.write(path, sink.getvalue())
    assert compact(folder, manifest) == Totals(10, 4, 0, {})
    assert [row["version"] for row in index_of(folder)] == [None] * 4


@pytest.fixture
def manifest_of_ten(tmp_path):
    folder = Folder(tmp_path)
    return folder, write_manifest(folder, listing(10), 4)


@pytest.mark.long
def test_compaction_killed_half_way_is_made_again(tmp_path, monkeypatch):
    """Killed before any of its writes and deletions: the next one gives what an undisturbed one gives."""
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, listing(40), 4)
    monkeypatch.setattr(compaction, "ROWS_A_FILE", 16)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 8)
    for shard in range(10):
        write_part(folder, rows(shard, ok(0, 1, 2, 3)), shard, "a")
    for number in range(8):
        folder.write(f"index/part-{number:05d}.parquet", b"of an earlier run")
    wanted = None
    for fatal in [None, *range(8)]:
        steps = []

        def killed(self, path, *data, steps=steps, fatal=fatal, real=None):
            if path.startswith("index/"):
                if len(steps) == fatal:
                    raise KeyboardInterrupt
                steps.append(path)
            return real(self, path, *data)

        with monkeypatch.context() as patch:
            for name in ("write", "delete"):
                patch.setattr(Folder, name, partialmethod(killed, real=getattr(Folder, name)))
            with contextlib.suppress(KeyboardInterrupt):
                compact(folder, manifest)
        if fatal is not None:
            folder.write("index/part-00005.parquet", b"left over")
        assert compact(folder, manifest) == Totals(40, 40, 0, {})
        files = {path: folder.read(path) for path in folder.list("index")}
        wanted = wanted or files
        assert files == wanted
        assert [row["key"] for row in index_of(folder)] == [f"k{n:05d}.jpg" for n in range(40)]


def test_what_an_older_vbp_wrote_is_read_with_nulls_for_later_columns(tmp_path):
    folder = Folder(tmp_path / "out")
    manifest = write_manifest(folder, listing(4), 4)
    later = ["mask_width", "mask_height", "image_peak_x", "image_peak_y"]
    path = write_part(folder, rows(0, ok(0, 1, 2, 3)), 0, "a")

    def take_out(path):
        table = pq.read_table(pa.BufferReader(folder.read(path)))
        sink = pa.BufferOutputStream()
        pq.write_table(table.drop_columns(later), sink, write_page_checksum=True)
        folder.write(path, sink.getvalue().to_pybytes())

    take_out(path)
    assert compact(folder, manifest) == Totals(4, 4, 0, {})
    assert pa.dataset.dataset(tmp_path / "out" / "index").schema.names == COLUMNS.split()
    take_out("index/part-00000.parquet")
    (table,) = read_index(folder, ["key", *later])
    assert [set(table[name].to_pylist()) for name in later] == [{None}] * 4
