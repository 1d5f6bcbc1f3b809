"""The main job, whole: local and Ray, resume, selection, and what it leaves behind."""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from vbp.errors import InterruptedRunError, StorageError, UsageError
from vbp.pipeline import Observer, RunConfig, run
from vbp.review.status import status

EXCEPTED = {"run_id", "seconds", "finished_at", "device", "mask_uri", "overlay_uri"}
"""Columns in which equal runs may differ (the URIs name the output folder)."""


def config(photos, out, network_file, **changes):
    fields = {"input": str(photos), "output": str(out), "weights": network_file, "size": 64, "precision": "float32"}
    return RunConfig(**fields | {"runner": "local", "batch_size": 4} | changes)


def index_of(out):
    rows = pads.dataset(Path(out) / "index").to_table().to_pylist()
    keys = [row["key"] for row in rows]
    assert len(keys) == len(set(keys))
    return {row["key"]: row for row in rows}


def size_of(path):
    with Image.open(path) as image:
        return image.size


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def edited(path, **changes):
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (record | changes).items() if value is not ...}))


def test_what_is_left_out_is_said_and_read_when_it_is_asked_for(photos, tmp_path, network_file):
    root, out = tmp_path / "photos", tmp_path / "out"
    for name in ("cat/01.png", "cat/._01.png", "cat/07.odd", "__MACOSX/cat/._01.png", "cat/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "cat/01.png", root / name)
    seen = Notes()
    made = config(root, out, network_file)
    summary = run(made, seen)
    assert (summary.images, summary.left_out) == (1, {"system": 2, ".odd": 1, ".txt": 1})
    assert "Left out of the listing: 2 are hidden or system files, 1 ends in .odd, 1 ends in .txt." in seen.notes
    assert json.loads((out / "_run/run.json").read_text())["summary"]["left_out"] == summary.left_out
    assert status(str(out)).left_out == summary.left_out
    # an output of before all this was counted
    edited(out / "_run/manifest.json", left_out=..., suffixes=...)
    facts = json.loads((out / "_run/run.json").read_text())
    edited(out / "_run/run.json", summary={n: v for n, v in facts["summary"].items() if n != "left_out"})
    assert run(made).computed == 0
    other = dataclasses.replace(made, suffixes=(".png", "odd"))
    assert (run(other).computed, run(other).computed) == (1, 0)
    assert set(index_of(out)) == {"cat/01.png", "cat/07.odd"}


def test_one_image_is_a_collection(photos, network_file, tmp_path):
    made = config(photos / "cat/01.png", tmp_path / "out", network_file)
    assert (run(made).computed, run(made).computed) == (1, 0)
    row = index_of(tmp_path / "out")["01.png"]
    assert (row["status"], row["label"], row["uri"]) == ("ok", None, made.input)
    assert (tmp_path / "out/masks/01.png.png").exists()


class Notes(Observer):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def assert_agree(one, other, *, exact):
    """Two outputs hold the same results: indexes equal, masks equal (`exact`) or within 1e-5 before 16-bit rounding."""
    rows, others = index_of(one), index_of(other)
    assert rows.keys() == others.keys()
    for key, row in rows.items():
        for name, value in row.items():
            if name in EXCEPTED:
                continue
            if isinstance(value, float):
                assert value == pytest.approx(others[key][name], rel=1e-4, abs=1e-5), (key, name)
            else:
                assert value == others[key][name], (key, name)
    for kind in ("masks", "overlays"):
        files, other_files = files_below(Path(one) / kind), files_below(Path(other) / kind)
        assert files.keys() == other_files.keys()
        if exact:
            assert files == other_files
        elif kind == "masks":
            for name, data in files.items():
                a, b = np.load(io.BytesIO(data)), np.load(io.BytesIO(other_files[name]))
                np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture(scope="module")
def local_run(photos, network_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "out"
    return out, run(config(photos, out, network_file, mask_format="npy"))


def test_summary(local_run, photos):
    out, summary = local_run
    assert (summary.images, summary.ok, summary.error, summary.computed) == (22, 22, 0, 22)
    assert summary.succeeded
    assert summary.exit_code == 0
    assert summary.output == str(out)
    assert set(summary.stage_seconds) == {"fetch", "decode", "explain", "encode", "write"}


def test_output_tree(local_run):
    out, summary = local_run
    assert {path.name for path in out.iterdir()} == {"masks", "overlays", "index", "_run", "_SUCCESS"}
    record = json.loads((out / "_run" / "run.json").read_text())
    assert record["config"]["size"] == 64
    assert record["summary"]["ok"] == 22
    assert record["run_id"] == summary.run_id
    assert not list(out.rglob("*.tmp"))


def test_rows_tell_the_truth_about_files(local_run, photos):
    out, _ = local_run
    for key, row in index_of(out).items():
        with Image.open(photos / key) as original:
            assert (row["width"], row["height"], row["format"]) == (*original.size, original.format)
        assert row["bytes"] == (photos / key).stat().st_size
        assert row["label"] == key.split("/")[0]
        mask = np.load(row["mask_uri"])
        assert mask.shape == (64, 64)
        assert mask.dtype == np.float32
        assert (mask.min(), mask.max()) == (0.0, 1.0)
        assert mask[row["peak_y"], row["peak_x"]] == 1.0
        assert (row["mask_width"], row["mask_height"]) == (64, 64)
        across, down = (row["frame_right"] - row["frame_left"]) / 64, (row["frame_bottom"] - row["frame_top"]) / 64
        assert row["image_peak_x"] == pytest.approx(row["frame_left"] + (row["peak_x"] + 0.5) * across)
        assert row["image_peak_y"] == pytest.approx(row["frame_top"] + (row["peak_y"] + 0.5) * down)
        assert row["mask_mean"] == pytest.approx(mask.mean(), rel=1e-4)
        assert row["mask_area"] == pytest.approx((mask > 0.5).mean(), abs=1e-6)
        assert size_of(row["overlay_uri"]) == (64, 64)
        assert row["mask_uri"] == str(out / "masks" / (key + ".npy"))
        assert 0 < row["probability"] <= 1
        assert row["correct"] == (row["predicted_label"] == row["label"])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_does_not_matter(local_run, photos, network_file, tmp_path, batch_size):
    run(config(photos, tmp_path / "out", network_file, mask_format="npy", batch_size=batch_size))
    assert_agree(local_run[0], tmp_path / "out", exact=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_ray_equals_local(local_run, photos, network_file, tmp_path, ray_session, workers):
    made = config(
        photos, tmp_path / "out", network_file, mask_format="npy", runner="ray", workers=workers, shard_size=5
    )
    summary = run(made)
    assert (summary.runner, summary.workers, summary.ok) == ("ray", workers, 22)
    assert_agree(local_run[0], tmp_path / "out", exact=False)


def test_spread_plan_equals_local(local_run, photos, network_file, tmp_path, ray_session, monkeypatch):
    """The shape that GPUs get, on CPUs."""
    import vbp.pipeline.on_ray.dataset as plans

    monkeypatch.setattr(plans, "plan", partial(plans.plan, spread=True))
    summary = run(
        config(photos, tmp_path / "out", network_file, mask_format="npy", runner="ray", workers=1, shard_size=9)
    )
    assert summary.ok == 22
    assert_agree(local_run[0], tmp_path / "out", exact=False)


def test_a_neighbour_in_the_batch_changes_nothing(photos, network_file, tmp_path):
    """Every other image is replaced by another; the rest keep their masks to the bit."""
    changed = tmp_path / "photos"
    shutil.copytree(photos, changed)
    for number, path in enumerate(sorted(changed.rglob("*.*"))):
        if number % 2:
            Image.new("RGB", (90, 90), (number * 9, 200, 30)).save(path)
    for source, out in ((photos, "one"), (changed, "other")):
        run(config(source, tmp_path / out, network_file, mask_format="npy"))
    one, other = (files_below(tmp_path / out / "masks") for out in ("one", "other"))
    kept = sorted(one)[::2]
    assert {name: one[name] for name in kept} == {name: other[name] for name in kept}
    assert one[sorted(one)[1]] != other[sorted(one)[1]]


def test_a_second_run_has_nothing_to_do(local_run, photos, network_file):
    out, _ = local_run
    before = files_below(out)
    summary = run(config(photos, out, network_file, mask_format="npy"))
    assert (summary.images, summary.ok, summary.computed) == (22, 22, 0)
    after = files_below(out)
    assert before == after


def test_that_nothing_is_left_is_known_without_torch(local_run, photos, network_file):
    made = config(photos, local_run[0], network_file, mask_format="npy").as_json()
    code = """
import json, sys
from vbp.pipeline import RunConfig, run
summary = run(RunConfig(**json.loads(sys.argv[1]) | {"outputs": ("mask", "overlay")}))
assert (summary.ok, summary.computed) == (22, 0), summary
print("torch" in sys.modules, "ray" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code, json.dumps(made)], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]


def test_other_weights_are_refused_by_their_places_and_content(local_run, photos, network_file, tmp_path):
    """Also where every image has its row, so that the network is not loaded to see it."""
    out, other = tmp_path / "out", tmp_path / "other.safetensors"
    shutil.copytree(local_run[0], out)
    tensors = load_file(network_file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, other)
    digests = [hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8] for file in (network_file, other)]
    said = f"weights was {network_file} (SHA-256 {digests[0]}...), now {other} (SHA-256 {digests[1]}...). Use"
    with pytest.raises(UsageError, match=re.escape(said)):
        run(config(photos, out, str(other), mask_format="npy"))


def test_weights_that_changed_in_their_place_are_refused(local_run, photos, network_file, tmp_path):
    out, place = tmp_path / "out", tmp_path / "net.safetensors"
    shutil.copytree(local_run[0], out)
    record = json.loads((out / "_run" / "run.json").read_text())
    record["config"]["weights"] = str(place)
    (out / "_run" / "run.json").write_text(json.dumps(record))
    save_file({name: tensor + 1 for name, tensor in load_file(network_file).items()}, place)
    with pytest.raises(UsageError, match=r"net\.safetensors \(SHA-256 \w{8}\.\.\.\): its content has changed since"):
        run(config(photos, out, str(place), mask_format="npy"))


@pytest.mark.parametrize("weights", ["https://127.0.0.1:1/model.pth", "s3://no-such-bucket-anywhere/model.pth"])
def test_weights_that_no_store_gives_are_a_usage_error(photos, tmp_path, weights, monkeypatch):
    def silent(uri, options):
        raise StorageError(f"cannot read {uri}: Connection refused")

    monkeypatch.setattr("vbp.networks.weights.read_uri", silent)
    with pytest.raises(UsageError, match=r"--weights \(=.*model\.pth\) cannot be read: .*refused; look at its address"):
        run(config(photos, tmp_path / "out", weights))
    assert not (tmp_path / "out").exists()


def test_what_a_checkpoint_was_taken_for_is_told(photos, network_file, tmp_path):
    import torch

    class Notes(Observer):
        def __init__(self):
            self.heard = []

        def note(self, text):
            self.heard.append(text)

    notes, file = Notes(), tmp_path / "best.pth"
    torch.save({"model": load_file(network_file), "model_ema": {"module": load_file(network_file)}}, file)
    assert run(config(photos, tmp_path / "out", str(file), limit=2), notes).ok == 2
    said = f"Weights {file}: the averaged weights under 'model_ema' are taken, not those beside them."
    assert said in notes.heard


def test_another_configuration_is_refused_and_the_difference_named(local_run, photos, network_file):
    with pytest.raises(UsageError, match="overlay_style was 'heat', now 'red'"):
        run(config(photos, local_run[0], network_file, mask_format="npy", overlay_style="red"))


def test_resume_mode_fail(local_run, photos, network_file):
    with pytest.raises(UsageError, match="--resume-mode"):
        run(config(photos, local_run[0], network_file, mask_format="npy", resume_mode="fail"))


def test_overwrite_starts_over(photos, network_file, tmp_path):
    run(config(photos, tmp_path / "out", network_file, size=32))
    summary = run(config(photos, tmp_path / "out", network_file, resume_mode="overwrite"))
    assert (summary.ok, summary.computed) == (22, 22)
    assert size_of(index_of(tmp_path / "out")["cat/01.png"]["mask_uri"]) == (64, 64)


def test_limit_then_the_rest(photos, network_file, tmp_path):
    first = run(config(photos, tmp_path / "out", network_file, limit=5))
    assert (first.images, first.ok, len(index_of(tmp_path / "out"))) == (5, 5, 5)
    rest = run(config(photos, tmp_path / "out", network_file))
    assert (rest.images, rest.ok, rest.computed, len(index_of(tmp_path / "out"))) == (22, 22, 17, 22)


def test_refresh_adds_new_images(photos, network_file, tmp_path):
    tree = tmp_path / "photos"
    shutil.copytree(photos, tree)
    run(config(tree, tmp_path / "out", network_file))
    shutil.copy(tree / "cat" / "01.png", tree / "bird" / "new.png")
    assert run(config(tree, tmp_path / "out", network_file)).images == 22
    summary = run(config(tree, tmp_path / "out", network_file, refresh=True))
    assert (summary.images, summary.ok, summary.computed) == (23, 23, 1)


def test_failed_images_are_rows_and_are_tried_again_when_asked(photos, network_file, tmp_path):
    tree = tmp_path / "photos"
    shutil.copytree(photos, tree)
    good = (tree / "cat" / "01.png").read_bytes()
    (tree / "cat" / "01.png").write_bytes(good[:100])
    (tree / "dog" / "empty.jpg").write_bytes(b"")
    made = config(tree, tmp_path / "out", network_file)
    summary = run(made)
    assert (summary.images, summary.ok, summary.error, summary.exit_code) == (23, 21, 2, 3)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    row = index_of(tmp_path / "out")["cat/01.png"]
    assert (row["status"], row["error_stage"], row["mask_uri"]) == ("error", "decode", None)
    assert row["error_type"] == "CorruptImageError"
    assert row["bytes"] == 100
    assert index_of(tmp_path / "out")["dog/empty.jpg"]["error_type"] == "EmptyFileError"
    assert summary.reasons == {"decode: CorruptImageError": 1, "decode: EmptyFileError": 1}

    (tree / "cat" / "01.png").write_bytes(good)
    assert run(made).computed == 0
    summary = run(dataclasses.replace(made, retry_failed=True, max_failures="1"))
    assert (summary.ok, summary.error, summary.computed, summary.exit_code) == (22, 1, 2, 0)
    assert index_of(tmp_path / "out")["cat/01.png"]["status"] == "ok"


def test_an_image_that_vanishes_after_listing(photos, network_file, tmp_path):
    tree = tmp_path / "photos"
    shutil.copytree(photos, tree)
    run(config(tree, tmp_path / "out", network_file, limit=1))  # lists one

    class Vanish(Observer):
        def started(self, images, done):
            (tree / "dog" / "02.bmp").unlink()

    summary = run(config(tree, tmp_path / "out", network_file), Vanish())
    assert (summary.ok, summary.error) == (21, 1)
    row = index_of(tmp_path / "out")["dog/02.bmp"]
    assert (row["error_stage"], row["error_type"]) == ("fetch", "FileNotFoundError")

    shutil.copy(photos / "dog" / "02.bmp", tree / "dog" / "02.bmp")
    summary = run(config(tree, tmp_path / "out", network_file))  # what could not be fetched is tried by every run
    assert (summary.ok, summary.error, summary.computed) == (22, 0, 1)


@pytest.mark.parametrize(("select", "correct"), [("misclassified", False), ("correct", True)])
def test_select(local_run, photos, network_file, tmp_path, select, correct):
    run(config(photos, tmp_path / "out", network_file, select=select))
    rows = index_of(tmp_path / "out")
    truth = index_of(local_run[0])
    assert all(row["status"] == "ok" for row in rows.values())
    with_mask = {key for key, row in rows.items() if row["mask_uri"] is not None}
    assert with_mask == {key for key, row in truth.items() if row["correct"] is correct}
    assert 0 < len(with_mask) < 22
    assert {p.removesuffix(".png") for p in files_below(tmp_path / "out" / "masks")} == with_mask


def test_all_outputs_at_the_size_of_the_original(photos, network_file, tmp_path):
    run(config(photos, tmp_path / "out", network_file, outputs=("mask", "overlay", "input", "maps"), frame="image"))
    for key, row in index_of(tmp_path / "out").items():
        for path in (row["mask_uri"], row["overlay_uri"], tmp_path / "out" / "inputs" / (key + ".png")):
            assert size_of(path) == (row["width"], row["height"])
        assert (tmp_path / "out" / "maps" / (key + ".png")).exists()


@pytest.mark.parametrize("fit", ["pad", "stretch", "original"])
def test_fits(photos, network_file, tmp_path, fit):
    run(config(photos, tmp_path / "out", network_file, fit=fit, batch_size=None))
    for row in index_of(tmp_path / "out").values():
        size = (row["width"], row["height"]) if fit == "original" else (64, 64)
        assert size_of(row["mask_uri"]) == size


def test_layout_none_writes_the_index_alone(photos, network_file, tmp_path):
    run(config(photos, tmp_path / "out", network_file, layout="none"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index", "_run", "_SUCCESS"}
    assert all(row["mask_uri"] is None and row["mask_mean"] > 0 for row in index_of(tmp_path / "out").values())


def test_a_manifest_as_input(photos, network_file, tmp_path):
    (tmp_path / "list.txt").write_text(f"{photos}/cat/01.png\n{photos}/dog/02.bmp\n")
    summary = run(config(tmp_path / "list.txt", tmp_path / "out", network_file))
    assert summary.ok == 2
    assert {Path(row["uri"]).name for row in index_of(tmp_path / "out").values()} == {"01.png", "02.bmp"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": "nowhere"}, ["INPUT", "nowhere", "does not exist"]),
        ({"model": "vgg99"}, ["vgg99"]),
        ({"weights": "nowhere.pth"}, ["nowhere.pth"]),
        ({"model": "vgg19"}, ["vgg19"]),
        ({"device": "cuda"}, ["--device cuda", "GPU"]),
    ],
)
def test_usage_errors_come_before_any_work(photos, network_file, tmp_path, changes, words):
    with pytest.raises(UsageError) as caught:
        run(dataclasses.replace(config(photos, tmp_path / "out", network_file), **changes))
    for word in words:
        assert word in str(caught.value)
    assert files_below(tmp_path / "out") == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cuda"},
        {"classes": "nowhere.txt"},
        {"preset": "reference", "refresh": True},
        {"input": "other"},
        {"input": "other", "limit": 30},
        {"input": "empty", "resume_mode": "overwrite"},
        {"device": "cuda", "resume_mode": "overwrite"},
        {"classes": "nowhere.txt", "resume_mode": "overwrite"},
        {"size": 1, "resume_mode": "overwrite"},
    ],
)
def test_a_refused_run_leaves_a_finished_output_as_it_was(local_run, photos, network_file, tmp_path, changes):
    out = tmp_path / "out"
    shutil.copytree(local_run[0], out)
    shutil.copytree(photos, tmp_path / "other" / "more")
    (tmp_path / "empty").mkdir()
    before = files_below(out)
    if "input" in changes:
        changes = changes | {"input": str(tmp_path / changes["input"])}
    with pytest.raises(UsageError):
        run(dataclasses.replace(config(photos, out, network_file, mask_format="npy"), **changes))
    assert files_below(out) == before


def test_a_refused_first_run_does_not_decide_for_the_next(photos, network_file, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(photos / "cat", other / "cat")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    with pytest.raises(UsageError, match="folder 'cat' is none of the 3 class names"):
        run(config(other, tmp_path / "out", network_file, select="correct", classes=str(tmp_path / "names.txt")))
    summary = run(config(photos, tmp_path / "out", network_file))
    assert (summary.images, summary.ok) == (22, 22)


def test_starting_over_touches_nothing_where_there_was_never_a_run(photos, network_file, tmp_path):
    (tmp_path / "out" / "inputs").mkdir(parents=True)
    (tmp_path / "out" / "inputs" / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"holds files that no run has written, .*: inputs/mine\.txt"):
        run(config(photos, tmp_path / "out", network_file, resume_mode="overwrite"))
    assert (tmp_path / "out" / "inputs" / "mine.txt").read_text() == "keep me"


def test_a_smaller_limit_than_what_is_done_takes_nothing_back(local_run, photos, network_file, tmp_path):
    shutil.copytree(local_run[0], tmp_path / "out")
    summary = run(config(photos, tmp_path / "out", network_file, mask_format="npy", limit=5))
    assert (summary.images, summary.ok, summary.exit_code) == (22, 22, 0)
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_an_output_whose_classes_went_by_the_alphabet_goes_on_so(photos, network_file, tmp_path):
    """As they did before that had to be asked for."""
    out, nameless = tmp_path / "out", tmp_path / "nameless.safetensors"
    save_file(load_file(network_file), nameless)
    made, seen = config(photos, out, str(nameless), limit=1), Notes()
    run(made, seen)
    reason = "It is not known which predictions are correct: nobody says"
    assert [note for note in seen.notes if note.startswith(reason)]
    run(dataclasses.replace(made, refresh=True), again := Notes())
    assert not [note for note in again.notes if note.startswith("It is not known which")]  # nothing is computed
    assert next(iter(index_of(out).values()))["correct"] is None
    edited(out / "_run/run.json", classes={"bird": 0, "cat": 1, "dog": 2})
    run(dataclasses.replace(made, limit=2))
    assert {row["correct"] is None for row in index_of(out).values()} == {True, False}


def test_a_trial_run_does_not_decide_batches_or_classes(photos, network_file, tmp_path):
    run(config(photos, tmp_path / "out", network_file, limit=1, batch_size=None))
    summary = run(config(photos, tmp_path / "out", network_file, batch_size=None))
    assert summary.batch_size == 2
    assert all(row["correct"] is not None for row in index_of(tmp_path / "out").values())


def test_new_folders_may_not_renumber_old_ones(photos, network_file, tmp_path):
    """Two folders of three classes have no numbers; with a third the rows before would have had some."""
    tree = tmp_path / "photos"
    shutil.copytree(photos, tree)
    run(config(tree, tmp_path / "out", network_file))
    (tree / "bird").rename(tree / "zebra")
    with pytest.raises(UsageError, match="folder 'bird' stood for class 0|folder 'cat' stood for class 1"):
        run(config(tree, tmp_path / "out", network_file, refresh=True))


def test_a_stricter_allowance_judges_a_finished_run_anew(photos, network_file, tmp_path):
    tree = tmp_path / "photos"
    shutil.copytree(photos, tree)
    (tree / "cat" / "bad.png").write_bytes(b"no image")
    assert run(config(tree, tmp_path / "out", network_file, max_failures="1")).exit_code == 0
    assert run(config(tree, tmp_path / "out", network_file, max_failures="0")).exit_code == 3


@pytest.mark.parametrize("damage", ["_run/run.json", "_run/manifest.json"])
def test_damaged_records(local_run, photos, network_file, tmp_path, damage):
    shutil.copytree(local_run[0], tmp_path / "out")
    (tmp_path / "out" / damage).write_text("{")
    made = config(photos, tmp_path / "out", network_file, mask_format="npy")
    with pytest.raises(UsageError, match="damaged.*(overwrite|listed anew)"):
        run(made)
    assert run(dataclasses.replace(made, resume_mode="overwrite")).ok == 22


def test_a_run_that_lost_the_lease_promises_nothing(photos, network_file, tmp_path):
    class Robbed(Observer):
        def started(self, images, done):
            lease = tmp_path / "out" / "_run" / "lease.json"
            lease.write_text(lease.read_text().replace('"attempt": "', '"attempt": "other-'))

    with pytest.raises(InterruptedRunError, match="lost"):
        run(config(photos, tmp_path / "out", network_file), Robbed())
    assert not list((tmp_path / "out").glob("masks/*/*"))
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_an_image_too_small_for_the_network_is_a_row(photos, network_file, tmp_path):
    tree = tmp_path / "photos"
    shutil.copytree(photos, tree)
    Image.new("RGB", (5, 5)).save(tree / "cat" / "tiny.png")
    summary = run(config(tree, tmp_path / "out", network_file, fit="original"))
    assert (summary.ok, summary.error) == (22, 1)
    assert index_of(tmp_path / "out")["cat/tiny.png"]["error_stage"] == "explain"


def test_one_bad_uri_in_a_manifest_is_a_row(photos, network_file, tmp_path):
    (tmp_path / "list.txt").write_text(f"{photos}/cat/01.png\nnosuchscheme://x/y.jpg\n")
    summary = run(config(tmp_path / "list.txt", tmp_path / "out", network_file))
    assert (summary.ok, summary.error) == (1, 1)
    assert [row["error_stage"] for row in index_of(tmp_path / "out").values() if row["error_stage"]] == ["fetch"]


@pytest.mark.long
def test_named_weights_are_never_a_path(photos, tmp_path, monkeypatch):
    (tmp_path / "random").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(config(photos, tmp_path / "out", "random", model="vgg11", limit=2)).ok == 2


def test_an_empty_tree(network_file, tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "notes.md").write_text("no image")
    with pytest.raises(UsageError, match=r"holds no images.*\.jpg"):
        run(config(tmp_path / "photos", tmp_path / "out", network_file))


def test_select_without_a_classifier(photos, network_file, tmp_path):
    from safetensors.torch import load_file, save_file

    features = {name: tensor for name, tensor in load_file(network_file).items() if name.startswith("features")}
    save_file(features, tmp_path / "features.safetensors")
    made = config(photos, tmp_path / "out", str(tmp_path / "features.safetensors"))
    with pytest.raises(UsageError, match="no classifier"):
        run(dataclasses.replace(made, select="correct"))
    summary = run(made)
    assert summary.ok == 22
    assert all(row["prediction"] is None for row in index_of(tmp_path / "out").values())


def test_unwritable_output(photos, network_file, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="OUTPUT"):
        run(config(photos, tmp_path / "file" / "out", network_file))


def start(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        [sys.executable, "-m", "vbp.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def wait_for_parts(out, count, process, seconds=240):
    deadline = time.monotonic() + seconds
    while len(list(Path(out).glob("_run/parts/*/*.parquet"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no parts in time"
        time.sleep(0.01)


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_killed_and_resumed(photos, network_file, tmp_path, runner):
    """kill -9 half-way, the same command at once: every image once, nothing finished computed again."""
    tree = tmp_path / "photos"
    for copy in range(4):
        shutil.copytree(photos, tree / str(copy))
    arguments = [
        "explain", str(tree), str(tmp_path / "out"), "--weights", network_file, "--size", "96", "--batch-size", "2",
        "--precision", "float32", "--runner", runner, "--workers", "1", "--shard-size", "10",
    ]  # fmt: skip
    process = start(*arguments)
    wait_for_parts(tmp_path / "out", 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    time.sleep(3 if runner == "ray" else 0)  # Ray ends the orphaned workers itself
    finished = {
        row["key"]: row["finished_at"]
        for part in (tmp_path / "out").glob("_run/parts/*/*.parquet")
        for row in pads.dataset(part).to_table(columns=["key", "finished_at"]).to_pylist()
    }
    again = start(*arguments, "--json")
    stdout, stderr = again.communicate(timeout=400)
    assert again.returncode == 0, stderr
    summary = json.loads(stdout)
    assert (summary["images"], summary["ok"]) == (88, 88)
    assert summary["computed"] == 88 - len(finished)
    rows = index_of(tmp_path / "out")
    assert len(rows) == 88
    assert {key: rows[key]["finished_at"] for key in finished} == finished


@pytest.mark.slow
def test_sigterm_ends_with_4_and_the_next_run_continues(photos, network_file, tmp_path):
    tree = tmp_path / "photos"
    for copy in range(4):
        shutil.copytree(photos, tree / str(copy))
    made = config(tree, tmp_path / "out", network_file, size=96, batch_size=2)
    process = start(
        "explain", str(tree), str(tmp_path / "out"), "--weights", network_file, "--size", "96", "--batch-size", "2",
        "--precision", "float32", "--runner", "ray", "--workers", "1",
    )  # fmt: skip
    wait_for_parts(tmp_path / "out", 2, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 4, stderr
    assert "SIGTERM" in stderr
    assert "again" in stderr
    summary = run(made)
    assert (summary.ok, summary.succeeded) == (88, True)
    assert 0 < summary.computed < 88


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_store_that_fails_while_writing_interrupts(photos, network_file, tmp_path, runner, ray_session):
    out = tmp_path / "out"
    run(config(photos, out, network_file, limit=2))
    shutil.rmtree(out / "overlays")
    (out / "overlays").write_text("a file where a folder should be")
    with pytest.raises(InterruptedRunError, match="overlays.*run the same command again"):
        run(config(photos, out, network_file, runner=runner, workers=1))
    (out / "overlays").unlink()
    assert run(config(photos, out, network_file)).ok == 22
