"""Whether an output is sound; every kind of fault is made by hand, found, mended, and gone."""

import dataclasses
import json
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tests.review.conftest import FIRST, Made, files_below
from vbp.cli import main
from vbp.errors import UsageError
from vbp.pipeline import RunConfig, run
from vbp.review.output import Output
from vbp.review.validate import FAULTS, validate
from vbp.storage import sorting
from vbp.storage.files import Folder
from vbp.storage.ledger.compaction import compact
from vbp.storage.ledger.lease import LEASE, Lease
from vbp.storage.record import save_record


def look(made, **options):
    return validate(Output.open(made.url), **options)


def kinds(found):
    return {finding.kind: finding.count for finding in found.findings}


def path(made, name):
    return Path(made.url, name)


def parts(made):
    return sorted(Path(made.url).glob("_run/parts/*/*.parquet"))


@pytest.mark.parametrize("in_memory", [3, 1000])
@pytest.mark.parametrize("deep", [False, True])
def test_sound(finished, monkeypatch, in_memory, deep):
    monkeypatch.setattr(sorting, "ITEMS_IN_MEMORY", in_memory)
    before = files_below(Path(finished.url))
    found = look(finished, deep=deep)
    assert found.findings == ()
    assert (found.images, found.ok, found.error, found.files, found.masks_opened) == (10, 10, 0, 20, 10)
    assert (found.is_sound, found.next_step) == (True, "Sound.")
    assert files_below(Path(finished.url)) == before


def test_an_unfinished_run_is_sound_so_far(make):
    """Its work in flight has left files without rows, and the index of an earlier time is not promised."""
    made = make()
    made.commit([0, 1])
    made.commit([2], "error")
    made.folder.write("masks/cat/00003.jpg.png", b"half of a commit")
    compact(made.folder, made.manifest)
    made.commit([4])
    found = look(made)
    assert found.findings == ()
    assert (found.images, found.ok, found.error, found.left) == (10, 3, 1, 6)
    assert found.next_step == "Sound so far; 6 images are left: give the run's command again."


def test_a_run_that_was_killed_in_the_making_of_the_index_is_sound_so_far(finished):
    finished.folder.delete("_SUCCESS")
    found = look(finished)
    assert (found.is_sound, found.left) == (True, 0)
    assert found.next_step == "Sound so far; there is no _SUCCESS: give the run's command again."


def lose_a_row(made):
    parts(made)[-1].unlink()
    compact(made.folder, made.manifest)
    return {"row lost": 2}, 0


def name_another_image(made):
    made.commit([5], key="stranger.jpg", seconds=99)
    return {"row of no image": 1, "row lost": 1}, 1


def come_late(made):
    """With the row of an image that has changed since, and was done again."""
    made.commit([5], seconds=99, version="v0")
    return {"row outdated": 1}, 1


def cut_a_part(made):
    parts(made)[0].write_bytes(parts(made)[0].read_bytes()[:-20])
    return {"part damaged": 1, "row lost": 4}, 0


def rename_a_part(made):
    """The name promises more than the file holds; resume believes names."""
    parts(made)[0].rename(str(parts(made)[0]).replace("-4-0.parquet", "-3-0.parquet"))
    return {"part damaged": 1, "row lost": 4}, 0


def lose_an_index_file(made):
    path(made, "index/part-00000.parquet").unlink()
    return {"index row lost": 10}, 0


def cut_an_index_file(made):
    index = path(made, "index/part-00000.parquet")
    index.write_bytes(index.read_bytes()[:-40])
    return {"index damaged": 1}, 0


def double_an_index_file(made):
    shutil.copy(path(made, "index/part-00000.parquet"), path(made, "index/part-00001.parquet"))
    return {"index row doubled": 10}, 0


def change_an_index_row(made):
    table = pq.read_table(path(made, "index/part-00000.parquet"))
    status = pa.array(["error"] + table["status"].to_pylist()[1:])
    table = table.set_column(table.schema.get_field_index("status"), table.schema.field("status"), status)
    pq.write_table(table, path(made, "index/part-00000.parquet"))
    return {"index row differs": 1}, 0


def forget_where_a_mask_is(made):
    made.commit([5], seconds=99, mask_uri=None)
    compact(made.folder, made.manifest)
    return {"row misplaced": 1, "file of no row": 2}, 1


def lose_files(made):
    path(made, "masks/cat/00001.jpg.png").unlink()
    path(made, "overlays/cat/00001.jpg.jpg").unlink()
    path(made, "overlays/dog/00009.jpg.jpg").unlink()
    return {"file lost": 3}, 2


def lose_all_files(made):
    shutil.rmtree(path(made, "masks"))
    return {"file lost": 10}, 10


def empty_a_file(made):
    path(made, "overlays/cat/00000.jpg.jpg").write_bytes(b"")
    path(made, "masks/dog/00005.jpg.png").write_bytes(b"")
    return {"file short": 2}, 2


def swap_masks(made):
    one, other = path(made, "masks/cat/00000.jpg.png"), path(made, "masks/dog/00007.jpg.png")
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return {"mask differs": 2}, 2


def cut_a_mask(made):
    mask = path(made, "masks/dog/00008.jpg.png")
    mask.write_bytes(mask.read_bytes()[:-30])
    return {"mask differs": 1}, 1


def flip_bits(made):
    mask = path(made, "masks/dog/00008.jpg.png")
    data = bytearray(mask.read_bytes())
    data[len(data) // 2] ^= 0xFF
    mask.write_bytes(data)
    return {"mask differs": 1}, 1


@pytest.mark.parametrize(
    "damage",
    [
        cut_an_index_file, lose_a_row, name_another_image, come_late, cut_a_part, rename_a_part, lose_an_index_file,
        double_an_index_file, change_an_index_row, lose_files, lose_all_files, empty_a_file, swap_masks, cut_a_mask,
        flip_bits, forget_where_a_mask_is,
    ],
)  # fmt: skip
def test_damage_is_found_mended_and_gone(finished, damage):
    expected, redo = damage(finished)
    found = look(finished)
    assert kinds(found) == expected
    assert not found.is_sound
    assert found.redo == redo
    assert f"vbp validate {finished.url} --repair" in found.next_step
    assert all(finding.examples for finding in found.findings)

    before = {name: data for name, data in files_below(Path(finished.url)).items() if "/parts/" in name}
    mended = look(finished, repair=True)
    assert kinds(mended) == kinds(found)
    assert mended.repaired
    assert "the run's command" in mended.next_step
    assert not path(finished, "_SUCCESS").exists()
    assert not path(finished, LEASE).exists()
    kept = {name for name, data in files_below(Path(finished.url)).items() if before.get(name) == data}
    assert len(set(before) - kept) <= 4  # parts that hold none of these images are not touched
    after = look(finished)
    assert after.findings == ()
    for number in range(10):
        finished.commit([number], seconds=200)
    assert look(finished.finish()).is_sound


def another_came_in_between(made):
    save_record(made.folder, made.record | {"attempt": "another"})


def write_nonsense_into_the_promise(made):
    path(made, "_SUCCESS").write_bytes(b"[]")


@pytest.mark.parametrize(
    "damage",
    [cut_an_index_file, lose_an_index_file, double_an_index_file, another_came_in_between,
     write_nonsense_into_the_promise],
)  # fmt: skip
def test_a_promise_that_does_not_fit_is_found_and_withdrawn(finished, damage):
    assert look(finished.promise()).is_sound
    damage(finished)
    found = look(finished)
    assert (kinds(found), found.is_complete) == ({"promise broken": 1}, False)
    assert f"vbp validate {finished.url} --repair" in found.next_step
    assert look(finished, repair=True).repaired
    assert not path(finished, "_SUCCESS").exists()
    assert look(finished).is_sound
    assert look(finished.promise()).is_sound


def test_a_file_of_the_index_of_other_bytes_is_found(finished):
    """Of the same size, and with the same rows."""
    index = path(finished.promise(), "index/part-00000.parquet")
    data = index.read_bytes()
    index.write_bytes(data.replace(b"parquet-cpp", b"PARQUET-CPP"))
    assert index.stat().st_size == len(data)
    found = look(finished)
    assert (kinds(found), found.is_sound) == ({"index file differs": 1}, False)
    assert look(finished, repair=True).repaired
    assert look(finished.promise()).is_sound


OWN_LITTER = ["inputs/cat/00001.jpg.png", "masks/cat/00001.jpg.npy", "overlays/cat/.vbp-0123456789abcdef.tmp",
              "_run/parts/.vbp-0123456789abcdef.tmp"]  # fmt: skip
FOREIGN = ["masks/stranger.jpg.png", "maps/cat", "masks/cat/.vbp-mine.tmp", "mine.txt",
           "overlays/.vbp-aaaaaaaaaaaaaaaa.tmp"]  # fmt: skip


@pytest.fixture
def littered(finished, tmp_path):
    for name in (*OWN_LITTER, *FOREIGN):
        path(finished, name).parent.mkdir(parents=True, exist_ok=True)
        path(finished, name).write_bytes(b"x")
    for name in OWN_LITTER:
        os.utime(path(finished, name), (0, 0))  # the last of FOREIGN is of a write that may still go on
    (tmp_path / "external" / "cat").mkdir(parents=True)
    (tmp_path / "external" / "cat" / "00001.jpg.png").write_bytes(b"x")
    shutil.rmtree(path(finished, "maps"))
    path(finished, "maps").symlink_to(tmp_path / "external")
    return finished


def test_orphans_are_found_and_removed_only_when_asked(littered, tmp_path):
    before = files_below(Path(littered.url))
    found = look(littered)
    assert kinds(found) == {"file of no row": 2, "file of others": 2, "temporary file": 2}
    assert (found.orphans, found.is_sound) == (4, False)
    assert found.next_step == f"Run vbp validate {littered.url} --remove-orphans."
    assert look(littered, repair=True).is_sound is False
    listed = []
    assert not look(littered, remove_orphans=True, on_orphans=listed.extend).orphans_removed
    assert sorted(listed) == sorted(OWN_LITTER)
    assert files_below(Path(littered.url)) == before
    removed = look(littered, remove_orphans=True)
    assert (removed.orphans_removed, removed.is_sound, removed.is_complete) == (True, True, True)
    assert set(before) - set(files_below(Path(littered.url))) == set(OWN_LITTER)
    assert (tmp_path / "external" / "cat" / "00001.jpg.png").exists()
    again = look(littered)
    assert (kinds(again), again.is_sound, again.next_step) == ({"file of others": 2}, True, "Sound.")


@pytest.mark.parametrize("answer", [None, "n", "y"])
def test_the_command_asks_before_it_deletes(littered, monkeypatch, answer):
    """And without a terminal only lists."""
    monkeypatch.setattr("vbp.cli._can_ask", lambda: answer is not None)
    result = CliRunner().invoke(main, ["validate", littered.url, "--remove-orphans"], input=f"{answer}\n")
    assert all(name in result.stderr for name in OWN_LITTER)
    assert not any(name in result.stderr for name in FOREIGN)
    assert ("add --yes" in result.stderr) == (answer is None)
    assert result.exit_code == (0 if answer == "y" else 3)
    assert [path(littered, name).exists() for name in OWN_LITTER] == [answer != "y"] * 4
    assert CliRunner().invoke(main, ["validate", littered.url, "--remove-orphans", "--yes"]).exit_code == 0
    assert all(path(littered, name).exists() for name in FOREIGN if name != "maps/cat")


def test_files_of_an_error_row_and_of_an_image_left_out_are_orphans(make):
    made = make(6)
    made.commit([0])
    made.commit([1], mask_mean=None, mask_uri=None, overlay_uri=None)  # as with --select
    made.commit([4], "error")
    made.folder.write("masks/cat/00004.jpg.png", b"of an earlier time")
    (finding,) = look(made).findings
    assert (finding.kind, finding.count) == ("file of no row", 3)


def test_while_a_run_is_at_work_its_writes_are_no_faults_and_nothing_is_changed(littered):
    lease = Lease(littered.folder, FIRST)
    lease.acquire()
    try:
        assert kinds(look(littered)) == {"file of no row": 2, "file of others": 2}
        with pytest.raises(UsageError, match="is being written .*process"):
            look(littered, repair=True)
    finally:
        lease.release()


def test_a_repair_holds_the_lease_and_takes_it_from_the_dead(finished, monkeypatch):
    path(finished, "masks/cat/00001.jpg.png").unlink()
    gone = {"attempt": FIRST, "host": "h", "machine": "m", "pid": 1, "started": 0.0, "token": "t"}
    finished.folder.write(
        LEASE, json.dumps(gone | {"renewed_at": datetime(2026, 1, 1, tzinfo=UTC).isoformat()}).encode()
    )
    holders, write = [], Folder.write
    monkeypatch.setattr(Lease.__init__, "__kwdefaults__", {**Lease.__init__.__kwdefaults__, "take_over_after": 1.0})

    def watched(self, name, data):
        if "/parts/" in name:
            holders.append(json.loads(finished.folder.read(LEASE))["attempt"])
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", watched)
    waits = []
    assert look(finished, repair=True, on_wait=waits.append).repaired
    assert re.match(r"Waiting for attempt .* on h", waits[0])
    assert all(holder.startswith("repair-") for holder in holders)
    assert holders
    assert not path(finished, LEASE).exists()


def test_the_sample_is_seeded(make):
    made = make(40)
    for shard in range(10):
        made.commit(range(4 * shard, 4 * shard + 4))
    for mask in path(made, "masks").rglob("*.png"):
        mask.write_bytes(b"broken")

    def opened(**options):
        found = look(made, **options)
        return found.masks_opened, [finding.examples for finding in found.findings]

    assert opened(sample=5) == opened(sample=5)
    assert opened(sample=5)[0] == 5
    assert opened(sample=5) != opened(sample=5, seed=1)
    assert opened(sample=0) == (0, [])
    assert opened(deep=True)[0] == 40


def test_layout_none(make):
    made = make(4, layout="none")
    made.commit([0, 1, 2, 3], files=False, mask_uri=None, overlay_uri=None)
    assert look(made.finish()).findings == ()
    made.folder.write("masks/cat/00000.jpg.png", b"whose is this?")
    assert kinds(look(made)) == {"file of no row": 1}


def test_a_limit(make):
    made = make(8, limit=3)
    made.commit([0, 1, 2])
    assert look(made.finish()).findings == ()


def test_names_that_are_prefixes_of_each_other(make):
    keys = ["a", "a-b.jpg", "a.jpg", "a.png.jpg", "a/b.jpg", "a/b", "é.jpg", "z\n.jpg", "50%.jpg"]
    made = make(sorted(keys, key=str.encode))
    for number in range(len(keys)):
        made.commit([number])
    made.finish()
    assert look(made).findings == ()
    path(made, "masks/a-b.jpg.png").unlink()
    (finding,) = look(made).findings
    assert finding.examples == ("masks/a-b.jpg.png",)


def test_every_kind_of_fault_has_its_sentence(littered):
    assert all(finding.kind in FAULTS for finding in look(littered).findings)


def test_on_a_real_store(s3_server):
    options = s3_server.storage_options
    made = Made(Folder(s3_server.new_url(), options), ["a.jpg", "b/c.jpg", "d.jpg"])
    made.commit([0, 1, 2])
    made.finish()
    assert validate(Output.open(made.url, options), deep=True).findings == ()
    made.folder.delete("masks/b/c.jpg.png")
    made.folder.write("overlays/x", b"x")
    made.folder.write("inputs/d.jpg.png", b"x")
    found = validate(Output.open(made.url, options), repair=True, remove_orphans=True)
    assert (kinds(found), found.redo) == (
        {"file lost": 1, "file of no row": 1, "file of others": 1}, 1,
    )  # fmt: skip
    assert validate(Output.open(made.url, options)).left == 1
    assert (made.folder.exists("overlays/x"), made.folder.exists("inputs/d.jpg.png")) == (True, False)


def test_a_run_mends_what_was_taken_back(photos, network_file, tmp_path):
    config = RunConfig(
        input=str(photos), output=str(tmp_path / "out"), weights=network_file, size=32, runner="local", batch_size=8,
        precision="float32", outputs=("mask", "overlay", "input", "maps"), mask_format="png16",
    )  # fmt: skip
    assert run(config).ok == 22
    made = Output.open(config.output)
    before = {name: data for name, (data, _) in files_below(tmp_path / "out").items() if name.startswith("ma")}
    assert validate(made, deep=True).is_sound
    (tmp_path / "out" / "maps" / "cat" / "01.png.png").unlink()
    mask = next((tmp_path / "out" / "masks").rglob("*.png"))
    mask.write_bytes(mask.read_bytes()[::-1])
    assert validate(made, deep=True, repair=True).redo == 2
    assert run(config).computed == 2
    assert validate(Output.open(config.output), deep=True).next_step == "Sound."
    assert {name: data for name, (data, _) in files_below(tmp_path / "out").items() if name.startswith("ma")} == before


@pytest.fixture(scope="module")
def tar_run(photos, network_file, tmp_path_factory):
    """A finished run into tars of four images, and its configuration."""
    config = RunConfig(
        input=str(photos), output=str(tmp_path_factory.mktemp("tars") / "out"), weights=network_file, size=32,
        runner="local", batch_size=4, precision="float32", layout="webdataset", shard_size=11,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbp.pipeline.local.COMMIT_SECONDS", 0)
        run(config)
    return config


def images_in(tar):
    first, last, _ = tar.name.split("-")
    return int(last) - int(first) + 1


def lose_a_tar(tars):
    tars[0].unlink()
    return {"file lost": 2 * images_in(tars[0])}, images_in(tars[0])  # masks and overlays


def cut_a_tar(tars):
    tars[0].write_bytes(tars[0].read_bytes()[:512])
    return {"file short": 2 * images_in(tars[0])}, images_in(tars[0])


def spoil_a_mask(tars):
    data = tars[0].read_bytes()
    at = data.index(b"IDAT")
    tars[0].write_bytes(data[:at] + b"XXXX" + data[at + 4 :])
    return {"mask differs": 1}, 1


def leave_a_tar(tars):
    tars[0].with_name("000000-000003-0123456789abcdef.tar").write_bytes(b"of no row")
    return {"file of no row": 1}, 0


@pytest.mark.parametrize("break_it", [lose_a_tar, cut_a_tar, spoil_a_mask, leave_a_tar])
def test_tars(tar_run, tmp_path, break_it):
    """In a copy: rows find their tars wherever the output is."""
    out = tmp_path / "moved"
    shutil.copytree(tar_run.output, out)
    tars = sorted((out / "shards").rglob("*.tar"))
    found = validate(Output.open(str(out)), deep=True)
    assert (kinds(found), found.files, found.masks_opened) == ({"output moved": 22}, len(tars), 22)
    assert found.next_step == f"Run vbp validate {out} --rebase."
    wrong, redo = break_it(tars)
    wrong["output moved"] = 22
    found = validate(Output.open(str(out)), deep=True, repair=True, remove_orphans=True)
    assert found.redo == redo
    assert kinds(found) == wrong
    assert run(dataclasses.replace(tar_run, output=str(out))).computed == redo
    again = validate(Output.open(str(out)), deep=True)
    assert (again.findings, again.ok) == ((), 22)


def test_a_tar_of_a_commit_under_way_is_no_fault(tar_run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(tar_run.output, out)
    (out / "_SUCCESS").unlink()
    next((out / "_run" / "parts" / "000001").iterdir()).unlink()
    assert validate(Output.open(str(out))).is_sound


def test_tars_that_no_row_can_name_are_left_alone(photos, network_file, tmp_path):
    config = RunConfig(
        input=str(photos), output=str(tmp_path / "out"), weights=network_file, size=32, runner="local", batch_size=8,
        precision="float32", layout="webdataset", outputs=("input",), limit=8,
    )  # fmt: skip
    run(config)
    assert validate(Output.open(config.output), deep=True, remove_orphans=True).is_sound
    assert list((tmp_path / "out" / "shards").rglob("*.tar"))


def test_the_command(finished):
    def vbp(*arguments):
        return CliRunner().invoke(main, ["validate", finished.url, *arguments])

    sound = vbp()
    assert (sound.exit_code, sound.stdout.splitlines()[-1]) == (0, "Sound.")
    path(finished, "masks/cat/00001.jpg.png").unlink()
    wrong = vbp()
    assert wrong.exit_code == 3
    for text in ("masks/cat/00001.jpg.png", FAULTS["file lost"], "--repair"):
        assert text in wrong.stdout
    told = json.loads(vbp("--json").stdout)
    assert (told["redo"], told["is_sound"], told["findings"][0]["kind"]) == (1, False, "file lost")
    assert vbp("--repair").exit_code == 3
    assert vbp().exit_code == 0


def test_an_output_that_was_moved(finished, tmp_path):
    Path(finished.url).rename(tmp_path / "moved")
    moved = Output.open(str(tmp_path / "moved"))
    found = validate(moved)
    assert (kinds(found), found.is_sound) == ({"output moved": 10}, False)
    assert found.next_step == f"Run vbp validate {tmp_path}/moved --rebase."
    assert validate(moved, repair=True).is_complete
    mended = validate(moved, rebase=True)
    assert (mended.rebased, mended.is_sound, mended.is_complete) == (True, True, True)
    moved = Output.open(str(tmp_path / "moved"))
    assert validate(moved, deep=True).findings == ()
    for table in moved.rows(["key", "mask_uri", "overlay_uri"]):
        for row in table.to_pylist():
            assert Path(row["mask_uri"]) == tmp_path / "moved" / "masks" / f"{row['key']}.png"
            assert Path(row["overlay_uri"]).exists()


def test_rows_that_point_elsewhere_are_not_sound(finished):
    """In parts and index alike, as somebody else may have written them."""
    for number, uri in enumerate(["/etc/hostname", "masks/../../x.png", "s3://b/masks/cat/00002.jpg.png.gif"]):
        finished.commit([number], seconds=300 + number, mask_uri=uri)
    found = look(finished)
    assert kinds(found)["row misplaced"] == 3
    assert look(finished, repair=True).redo == 3
    assert look(finished).left == 3


def test_a_manifest_that_is_damaged_is_listed_anew(finished):
    (listed,) = path(finished, "_run/manifest").iterdir()
    listed.write_bytes(listed.read_bytes()[:60])
    found = look(finished)
    assert kinds(found) == {"manifest damaged": 3}  # and no rows or files of its images
    assert "--repair" in found.next_step
    mended = look(finished, repair=True)
    assert (mended.repaired, mended.redo) == (True, 0)
    assert mended.next_step == "Repaired: give the run's command again."
    assert not path(finished, "_run/manifest.json").exists()
    assert not path(finished, "_SUCCESS").exists()
    assert look(finished).is_sound
    assert look(finished).next_step.startswith("Sound so far; there is no list of images")


def test_files_of_others_in_the_index_are_to_be_moved(finished):
    path(finished, "index/mine.parquet").write_bytes(b"not ours")
    found = look(finished)
    assert (kinds(found), found.is_sound) == ({"index stranger": 1}, False)
    assert found.next_step == "Move the files out of index/ that are not of it."
    assert not look(finished, repair=True, remove_orphans=True).repaired
    assert path(finished, "index/mine.parquet").exists()


def test_a_part_of_no_shard_goes(finished):
    name = parts(finished)[0]
    path(finished, "_run/parts/000007").mkdir()
    shutil.copy(name, path(finished, "_run/parts/000007"))
    assert kinds(look(finished)) == {"part damaged": 1}
    assert look(finished, repair=True).repaired
    assert not list(path(finished, "_run/parts/000007").iterdir())
