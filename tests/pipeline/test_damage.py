"""Files of the ledger that are damaged: what was lost is made again, or a sentence says what to do."""

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from tests.damaged import damage
from vbp.errors import InterruptedRunError, UsageError
from vbp.images.encode import decode_mask
from vbp.pipeline import Observer, RunConfig, run
from vbp.review.output import Output
from vbp.review.validate import validate


def config(photos, out, network_file, **changes):
    fields = {"input": str(photos), "output": str(out), "weights": network_file, "size": 32, "precision": "float32"}
    return RunConfig(**fields | {"runner": "local", "batch_size": 4, "shard_size": 8} | changes)


def keys_of(out):
    return sorted(pads.dataset(out / "index").to_table(columns=["key"])["key"].to_pylist())


@pytest.fixture(scope="module")
def finished(photos, network_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    run(config(photos, out, network_file, limit=21))
    return out


@pytest.fixture
def out(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "out"))


class Notes(Observer):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


@pytest.mark.parametrize("data", [b"", b"PAR1 and then nothing"])
def test_a_damaged_part_is_made_again_within_the_run(out, photos, network_file, data):
    """Its name says that all is well, so it is noticed when the index is made."""
    part = sorted(out.glob("_run/parts/000001/*.parquet"))[0]
    part.write_bytes(data)
    notes = Notes()
    summary = run(config(photos, out, network_file), notes)
    assert (summary.ok, summary.computed, summary.succeeded) == (22, 1 + 8, True)
    assert [text for text in notes.texts if "damaged" in text] == [
        f"{part} is damaged and was removed; its images are done again."
    ]
    assert len(keys_of(out)) == len(set(keys_of(out))) == 22


def test_a_part_that_is_damaged_while_its_images_are_pending(photos, network_file, tmp_path):
    tree, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, tree)
    (tree / "bird" / "00.jpg").write_bytes(b"no image")
    assert run(config(tree, out, network_file, limit=8, max_failures="1")).error == 1
    (part,) = out.glob("_run/parts/000000/*.parquet")
    part.write_bytes(part.read_bytes()[:-30])
    summary = run(config(tree, out, network_file, max_failures="1"))
    assert (summary.ok, summary.error, summary.computed) == (21, 1, 22)
    assert not part.exists()


def test_rows_that_keep_getting_lost_interrupt(out, photos, network_file, monkeypatch):
    from vbp.pipeline import steps

    monkeypatch.setattr(steps, "write_part", lambda *arguments: None)
    with pytest.raises(InterruptedRunError, match="1 of 22 images without a row.*run the same command again"):
        run(config(photos, out, network_file))
    assert not (out / "_SUCCESS").exists()
    monkeypatch.undo()
    assert run(config(photos, out, network_file)).succeeded


@pytest.mark.parametrize("runner", ["local", "ray"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"", lambda data: data[:40] + b"?" + data[41:]]
)
def test_a_damaged_manifest_file_is_a_sentence(out, photos, network_file, runner, damage, ray_session):
    shutil.rmtree(out / "_run" / "parts")
    (path,) = out.glob("_run/manifest/*.parquet")
    path.write_bytes(damage(path.read_bytes()))
    made = config(photos, out, network_file, limit=21, runner=runner, workers=1)
    with pytest.raises(UsageError, match=f"{path} is damaged .*vbp validate {out} --repair, then") as caught:
        run(made)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_manifest_file_that_is_gone_is_a_sentence(out, photos, network_file, runner, ray_session):
    shutil.rmtree(out / "_run" / "parts")
    (path,) = out.glob("_run/manifest/*.parquet")
    path.unlink()
    made = config(photos, out, network_file, limit=21, runner=runner, workers=1)
    with pytest.raises(InterruptedRunError, match=f"{path} is gone; .*vbp validate {out} --repair, then") as caught:
        run(made)
    assert "\n" not in str(caught.value)
    if runner == "local":  # what the sentence advises helps
        validate(Output.open(str(out)), repair=True)
        assert run(made).computed == 21


def test_results_whose_record_is_gone_are_not_mixed_with_others(out, photos, network_file):
    (out / "_run" / "run.json").unlink()
    with pytest.raises(UsageError, match=r"run\.json is gone.*overwrite"):
        run(config(photos, out, network_file))
    summary = run(config(photos, out, network_file, resume_mode="overwrite", size=48))
    assert (summary.ok, summary.computed) == (22, 22)


def content_of(out):
    """What matters of each image: its row's digest of the input, and its mask."""
    rows = pads.dataset(out / "index").to_table(columns=["key", "sha256", "mask_uri"]).to_pylist()
    assert len(rows) == len({row["key"] for row in rows})
    return {row["key"]: (row["sha256"], Path(row["mask_uri"]).read_bytes()) for row in rows}


def add_an_image(tree):
    shutil.copy(tree / "cat" / "01.png", tree / "bird" / "!first.png")
    return {}


def rename_an_image(tree):
    (tree / "bird" / "00.jpg").rename(tree / "dog" / "zz.jpg")
    return {}


def cut_shards_otherwise(tree):
    return {"shard_size": 5}


@pytest.mark.parametrize("change", [add_an_image, rename_an_image, cut_shards_otherwise])
def test_a_manifest_that_is_lost_is_made_anew_and_rows_are_of_their_keys(photos, network_file, tmp_path, change):
    tree, out, fresh = (tmp_path / name for name in ("photos", "out", "fresh"))
    shutil.copytree(photos, tree)
    run(config(tree, out, network_file))
    options = change(tree)
    (out / "_run" / "manifest.json").unlink()
    notes = Notes()
    made = config(tree, out, network_file, **options)
    assert run(made, notes).succeeded
    assert any("of other images than are now" in text for text in notes.texts)
    run(config(tree, fresh, network_file, **options))
    assert content_of(out) == content_of(fresh)
    names = {str(path.relative_to(out / "masks")) for path in (out / "masks").rglob("*.png")}
    assert names == {str(path.relative_to(fresh / "masks")) for path in (fresh / "masks").rglob("*.png")}
    assert run(made).computed == 0


def test_the_same_manifest_made_anew_costs_nothing(out, photos, network_file):
    (out / "_run" / "manifest.json").unlink()
    assert run(config(photos, out, network_file, limit=21)).computed == 0


def test_another_manifest_beside_the_parts(out, photos, network_file, tmp_path):
    """Of the same INPUT, with shards of another size: from a copy of another output, say."""
    other = tmp_path / "other"
    run(config(photos, other, network_file, shard_size=6, limit=21))
    shutil.copy(other / "_run" / "manifest.json", out / "_run" / "manifest.json")
    shutil.copytree(other / "_run" / "manifest", out / "_run" / "manifest", dirs_exist_ok=True)
    assert run(config(photos, out, network_file, limit=21)).succeeded
    assert content_of(out) == content_of(other)


def test_rows_of_other_images_never_reach_the_index(out, photos, network_file, tmp_path):
    """Also where the manifest's name is the same: the files of the listing alone were put there."""
    expected = content_of(out)
    record = json.loads((out / "_run" / "manifest.json").read_text())
    (out / "_run" / "manifest.json").write_text(json.dumps(record | {"shard_size": 6}))
    other = tmp_path / "other"
    run(config(photos, other, network_file, shard_size=6, limit=21))
    ((theirs,), (ours,)) = (folder.glob("_run/manifest/*.parquet") for folder in (other, out))
    shutil.copy(theirs, ours)
    (out / "_SUCCESS").unlink()
    notes = Notes()
    summary = run(config(photos, out, network_file, limit=21), notes)
    assert summary.succeeded
    assert any("not of the images in their places" in text for text in notes.texts)
    assert content_of(out) == expected


def test_a_manifest_of_another_input_is_refused(out, photos, network_file):
    path = out / "_run" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"input": "/elsewhere"}))
    with pytest.raises(UsageError, match=r"lists another INPUT \(=/elsewhere\)"):
        run(config(photos, out, network_file, limit=21))


def test_parts_without_any_record_are_not_taken_for_rows(out, photos, network_file):
    for name in ("run.json", "manifest.json"):
        (out / "_run" / name).unlink()
    with pytest.raises(UsageError, match=r"run\.json is gone, though _run/parts/.*overwrite"):
        run(config(photos, out, network_file))


@pytest.mark.parametrize("seed", [14, 48, 73])
def test_damage_at_random(out, photos, network_file, seed):
    """Resumed, repaired or not, and started over: all images have one row each and their files, or it is refused."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        files = [path for path in sorted(out.rglob("*")) if path.suffix in (".parquet", ".json", "") and path.is_file()]
        damage(chance, chance.choice(files))
    if chance.random() < 0.5:
        with suppress(UsageError):
            validate(Output.open(str(out)), deep=True, repair=True)
    with suppress(UsageError):
        assert run(config(photos, out, network_file)).succeeded
        assert len(keys_of(out)) == len(set(keys_of(out))) == 22
    with suppress(UsageError):
        for tries_left in (2, 1, 0):  # what one damage hides shows when that is mended
            found = validate(Output.open(str(out)), deep=True, repair=True)
            assert run(config(photos, out, network_file)).succeeded
            if found.is_sound:
                assert_whole(out)
                break
            assert tries_left, found
    assert run(config(photos, out, network_file, resume_mode="overwrite")).computed == 22
    assert_whole(out)
    assert validate(Output.open(str(out)), deep=True).is_sound


def assert_whole(out):
    rows = pads.dataset(out / "index").to_table().to_pylist()
    assert len({row["key"] for row in rows}) == len(rows) == 22
    for row in rows:
        assert row["status"] == "ok"
        mask = decode_mask(Path(row["mask_uri"]).read_bytes())
        assert float(mask.mean()) == pytest.approx(row["mask_mean"], abs=0.01)
        assert Path(row["overlay_uri"]).stat().st_size


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("bird\ncat\ndog\n")
    return path


def test_class_names_that_changed_under_their_path_are_refused(photos, network_file, tmp_path, names):
    made = config(photos, tmp_path / "out", network_file, classes=str(names), limit=4)
    run(made)
    names.write_text("dog\ncat\nbird\n")
    for wanted in (made, config(photos, tmp_path / "out", network_file, classes=str(names))):
        with pytest.raises(UsageError, match=r"the content of --classes \(=.*names.txt\) has changed since"):
            run(wanted)
    names.write_text("bird\ncat\ndog\n")
    moved = names.rename(tmp_path / "moved.txt")
    assert run(config(photos, tmp_path / "out", network_file, classes=str(moved), limit=8)).computed == 4


def test_a_manifest_file_that_changed_under_its_path_is_refused_or_refreshed(photos, network_file, tmp_path):
    listed = sorted(map(str, photos.rglob("*.*")))
    source = tmp_path / "list.txt"
    source.write_text("\n".join(listed[:4]) + "\n")
    made = config(source, tmp_path / "out", network_file)
    assert run(made).images == 4
    source.write_text("\n".join(listed[:6]) + "\n")
    with pytest.raises(UsageError, match="the content of INPUT .*list.txt.* has changed since .*--refresh"):
        run(made)
    assert run(config(source, tmp_path / "out", network_file, refresh=True)).images == 6
    assert run(made).computed == 0


def test_an_older_record_without_digests_still_counts(photos, network_file, tmp_path, names):
    made = config(photos, tmp_path / "out", network_file, classes=str(names), limit=4)
    run(made)
    for name, gone in (("run.json", "classes_sha256"), ("manifest.json", "id")):
        path = tmp_path / "out" / "_run" / name
        record = json.loads(path.read_text())
        (record["fingerprint"] if name == "run.json" else record).pop(gone)
        record.pop("manifest", None)
        path.write_text(json.dumps(record))
    assert run(made).computed == 0
