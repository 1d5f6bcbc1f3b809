"""``--refresh``: new, replaced and vanished images, with a kill at every moment."""

import dataclasses
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow.dataset as pads
import pytest
from PIL import Image

from tests.killed import Killed, dying
from vbp.pipeline import Observer, RunConfig, run
from vbp.review.failures import failures
from vbp.review.output import Output
from vbp.review.status import status
from vbp.review.validate import validate
from vbp.storage.files import Folder


class Notes(Observer):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def tree(photos, tmp_path):
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture
def asked(tree, tmp_path, network_file):
    """A run of the small tree, masks alone."""
    return RunConfig(
        input=str(tree), output=str(tmp_path / "out"), weights=network_file, size=64, precision="float32",
        runner="local", batch_size=4, outputs=("mask",), shard_size=5,
    )  # fmt: skip


def replace(path, colour=None):
    """Another picture in the same place: whole, or no picture at all."""
    if colour is None:
        path.write_bytes(b"no image")
    else:
        Image.radial_gradient("L").resize((97, 71)).point(lambda v: v * colour // 255).convert("RGB").save(path)


def rows_of(out):
    return {row["key"]: row for row in pads.dataset(Path(out) / "index").to_table().to_pylist()}


def masks_of(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in Path(out, "masks").rglob("*.png")}


def same_masks(out, asked, tmp_path):
    """Whether the masks are those of a run that never saw another tree."""
    fresh = dataclasses.replace(asked, output=str(tmp_path / "fresh"), refresh=False, max_failures="100%")
    run(fresh)
    return masks_of(out) == masks_of(fresh.output)


def test_a_replaced_image_gets_another_mask(tree, asked, tmp_path):
    run(asked)
    before = rows_of(asked.output)
    replace(tree / "cat" / "01.png", 250)
    replace(tree / "dog" / "02.bmp", 120)
    (tree / "bird" / "00.jpg").unlink()
    shutil.copy(tree / "cat" / "01.png", tree / "bird" / "new.png")
    assert run(asked).computed == 0
    seen = Notes()
    summary = run(dataclasses.replace(asked, refresh=True), seen)
    assert (summary.images, summary.ok, summary.computed) == (23, 23, 3)
    assert any("1 image is new, 2 changed, 1 gone (what has a result keeps it)" in note for note in seen.notes)
    after = rows_of(asked.output)
    assert {key for key in after if after[key]["run_id"] == summary.run_id} == {
        "cat/01.png", "dog/02.bmp", "bird/new.png",
    }  # fmt: skip
    assert after["cat/01.png"]["sha256"] != before["cat/01.png"]["sha256"]
    assert after["cat/01.png"]["version"] == str((tree / "cat" / "01.png").stat().st_mtime_ns)
    assert after["bird/00.jpg"] == before["bird/00.jpg"] | {"gone": True}  # its row stays
    assert [key for key in after if after[key]["gone"]] == ["bird/00.jpg"]
    assert summary.gone == 1
    again = run(dataclasses.replace(asked, refresh=True))
    assert (again.computed, again.images) == (0, 23)


def test_images_that_are_gone_are_no_failures_and_come_back(tree, asked, tmp_path):
    """One had failed, one was never done, one has a result; then one comes back as it was, and one as another."""
    bad, late, done = (tree / name for name in ("cat/01.png", "dog/02.bmp", "bird/00.jpg"))
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (bad, late, done)}
    replace(bad)
    asked = dataclasses.replace(asked, max_failures="0")
    assert run(asked).exit_code == 3
    (part,) = [path for path in Path(asked.output, "_run/parts").rglob("*.parquet") if has_row(path, "dog/02.bmp")]
    part.unlink()
    for path in kept:
        path.unlink()
    assert not run(dataclasses.replace(asked, retry_failed=True)).succeeded
    refreshed = dataclasses.replace(asked, refresh=True)
    summary = run(refreshed)
    assert (summary.images, summary.ok, summary.error, summary.gone, summary.exit_code) == (20, 20, 0, 1, 0)
    assert rows_of(asked.output).keys() & {"cat/01.png", "dog/02.bmp", "bird/00.jpg"} == {"bird/00.jpg"}
    assert run(dataclasses.replace(asked, retry_failed=True)).computed == 0
    seen = review(asked.output)
    assert (seen.status.images, seen.status.left, seen.status.gone, seen.status.state) == (20, 0, 1, "finished")
    assert (seen.found.images, seen.found.left, seen.found.gone, seen.found.next_step) == (20, 0, 1, "Sound.")
    assert seen.failures == 0
    for path, (content, moment) in kept.items():
        path.write_bytes(content)
        os.utime(path, ns=(moment, moment))
    replace(late, 250)
    summary = run(refreshed)
    assert (summary.images, summary.ok, summary.gone, summary.computed) == (22, 22, 0, 2)
    assert same_masks(asked.output, asked, tmp_path)


def has_row(part, key):
    return key in pads.dataset(part).to_table(columns=["key"])["key"].to_pylist()


def review(out):
    """What the commands say of an output."""
    output = Output.open(out)
    return SimpleNamespace(status=status(out), found=validate(output), failures=failures(output).images)


def test_a_refresh_that_finds_nothing_touches_nothing(tree, asked):
    run(asked)
    files = {path: path.stat().st_mtime_ns for path in Path(asked.output).rglob("*") if path.is_file()}
    assert run(dataclasses.replace(asked, refresh=True)).computed == 0
    assert {path: path.stat().st_mtime_ns for path in Path(asked.output).rglob("*") if path.is_file()} == files


def test_an_image_that_was_replaced_by_none_keeps_no_mask(tree, asked, tmp_path):
    run(asked)
    replace(tree / "cat" / "01.png")
    summary = run(dataclasses.replace(asked, refresh=True))
    assert (summary.ok, summary.error, summary.computed) == (21, 1, 1)
    assert not Path(asked.output, "masks", "cat", "01.png.png").exists()
    assert same_masks(asked.output, asked, tmp_path)


def test_a_row_that_gets_another_label_is_of_another_class(tree, asked, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("uri,label\nphotos/cat/01.png,cat\n")
    asked = dataclasses.replace(asked, input=str(rows))
    run(asked)
    rows.write_text("uri,label\nphotos/cat/01.png,dog\n")
    run(dataclasses.replace(asked, refresh=True))
    (row,) = rows_of(asked.output).values()
    assert (row["label"], row["correct"]) == ("dog", row["predicted_label"] == "dog")


def test_the_same_size_at_another_time_is_a_change(tree, asked):
    run(asked)
    os.utime(tree / "cat" / "01.png", ns=(1, 1))
    summary = run(dataclasses.replace(asked, refresh=True))
    assert (summary.ok, summary.computed) == (22, 1)
    assert rows_of(asked.output)["cat/01.png"]["version"] == "1"


def test_a_smaller_limit_calls_nothing_gone(tree, asked):
    run(asked)
    seen = Notes()
    assert run(dataclasses.replace(asked, refresh=True, limit=3), seen).computed == 0
    assert "gone" not in " ".join(seen.notes)


def test_refresh_on_a_store(s3_server, photos, asked, tmp_path):
    options = s3_server.storage_options
    bucket = Folder(s3_server.new_url(), options)
    for path in sorted(photos.rglob("*.*"))[:6]:
        bucket.write(f"photos/{path.relative_to(photos)}", path.read_bytes())
    names = [path.removeprefix("photos/") for path in bucket.list("photos")]
    asked = dataclasses.replace(
        asked, input=bucket.uri("photos"), output=bucket.uri("out"), storage_options=options, shard_size=2
    )
    run(asked)
    bucket.write(f"photos/{names[0]}", (photos / "cat" / "01.png").read_bytes())
    summary = run(dataclasses.replace(asked, refresh=True))
    assert (summary.ok, summary.computed) == (6, 1)
    again = run(dataclasses.replace(asked, refresh=True))
    assert (again.ok, again.computed) == (6, 0)


@pytest.mark.parametrize(("after", "plain_run_between"), [(0, True), (4, False), (5, True), (9, True), (12, False)])
def test_killed_while_refreshing(tree, asked, tmp_path, monkeypatch, after, plain_run_between):
    """Dead after some writes and deletions, then again: the masks are those of the tree as it is now.

    Every such moment is tried in tests/storage/manifest/test_refresh.py.
    """
    asked = dataclasses.replace(asked, max_failures="100%")
    run(asked)
    replace(tree / "cat" / "01.png", 250)
    replace(tree / "dog" / "02.bmp")
    replace(tree / "dog" / "20.jpg", 60)
    shutil.copy(tree / "cat" / "01.png", tree / "bird" / "new.png")
    with dying(after, monkeypatch, spared="lease"), pytest.raises(Killed):
        run(dataclasses.replace(asked, refresh=True))
    if plain_run_between:
        run(asked)
    summary = run(dataclasses.replace(asked, refresh=True))
    assert (summary.images, summary.ok, summary.error) == (23, 22, 1)
    assert Path(asked.output, "_SUCCESS").exists()
    assert same_masks(asked.output, asked, tmp_path)
    rows = rows_of(asked.output)
    for key in ("cat/01.png", "dog/02.bmp", "dog/20.jpg"):
        assert rows[key]["bytes"] == (tree / key).stat().st_size


def test_an_image_that_changes_after_listing_is_told_by_its_row(tree, asked):
    """The row holds the version that was listed, and size and hash of what was read; the next refresh sees it."""
    listed = str((tree / "cat" / "01.png").stat().st_mtime_ns)

    class Change(Observer):
        def started(self, images, done):
            replace(tree / "cat" / "01.png", 99)

    run(asked, Change())
    row = rows_of(asked.output)["cat/01.png"]
    assert (row["version"], row["bytes"]) == (listed, (tree / "cat" / "01.png").stat().st_size)
    assert run(dataclasses.replace(asked, refresh=True)).computed == 1
    assert run(dataclasses.replace(asked, refresh=True)).computed == 0


def test_a_manifest_tells_of_changes_by_its_column_version(photos, asked, tmp_path):
    def write(*versions):
        names = ("cat/01.png", "dog/02.bmp", "bird/00.jpg")
        lines = [f"{photos}/{name},{name},{version}" for name, version in zip(names, versions, strict=True)]
        (tmp_path / "list.csv").write_text("\n".join(["uri,key,version", *lines]))

    asked = dataclasses.replace(asked, input=str(tmp_path / "list.csv"))
    write("a", "b", "")
    assert run(asked).computed == 3
    write("a", "c", "d")
    assert run(dataclasses.replace(asked, refresh=True)).computed == 1
    rows = rows_of(asked.output)
    assert {key: row["version"] for key, row in rows.items()} == {
        "cat/01.png": "a", "dog/02.bmp": "c", "bird/00.jpg": None,
    }  # fmt: skip


def test_a_new_image_beyond_the_limit_is_said_and_done_later(tree, asked):
    limited = dataclasses.replace(asked, limit=5)
    run(limited)
    replace(tree / "bird" / "+first.png", 200)
    seen = Notes()
    assert run(dataclasses.replace(limited, refresh=True), seen).images == 5
    assert any("0 images are new, 0 changed, 1 more is new, but beyond --limit 5" in note for note in seen.notes)
    assert run(asked).images == 23
    assert "bird/+first.png" in rows_of(asked.output)
