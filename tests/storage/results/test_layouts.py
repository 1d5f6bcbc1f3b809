"""Layouts: where result files go, and that nothing else depends on it."""

import dataclasses
import gc
import io
import json
import shutil
import subprocess
import tarfile
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from vbp.errors import InterruptedRunError, StorageError
from vbp.images.encode import decode_mask
from vbp.pipeline import Observer, RunConfig, run
from vbp.storage.files import Folder
from vbp.storage.ledger.parts import write_part
from vbp.storage.results.layouts import WebDataset
from vbp.storage.results.read import read_result

PLACES = {f"{kind}_{name}" for kind in ("mask", "overlay") for name in ("uri", "offset", "length")}
OF_THE_RUN = {"run_id", "seconds", "finished_at"}
ALL = ("mask", "overlay", "input", "maps")


def config(photos, out, network_file, **changes):
    fields = {"input": str(photos), "output": str(out), "weights": network_file, "size": 64, "precision": "float32"}
    return RunConfig(**fields | {"runner": "local", "batch_size": 4, "layout": "webdataset"} | changes)


def index_of(out):
    rows = pads.dataset(Path(out) / "index").to_table().to_pylist()
    keys = [row["key"] for row in rows]
    assert len(keys) == len(set(keys))
    return {row["key"]: row for row in rows}


def without(row, names):
    return {name: value for name, value in row.items() if name not in names}


def tars_of(out):
    return sorted(str(path) for path in Path(out, "shards").rglob("*") if path.is_file())


def members_of(out):
    """Name -> content over all tars; no name twice."""
    found = {}
    for path in tars_of(out):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name not in found
                found[member.name] = tar.extractfile(member).read()
    return found


def samples_of(out):
    """Key -> sample, as the webdataset package reads the tars."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package leaves closing to the collector
        samples = list(webdataset.WebDataset(tars_of(out), shardshuffle=False).decode())
        gc.collect()
    found = {sample["json"]["key"]: sample for sample in samples}
    assert len(found) == len(samples)
    return found


def _start(runner, request):
    if runner == "ray":
        request.getfixturevalue("ray_session")


@pytest.fixture(autouse=True, scope="module")
def a_commit_for_every_batch():
    """Else it would be up to the machine's speed which images share a tar; Ray's workers go by that still."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbp.pipeline.local.COMMIT_SECONDS", 0)
        yield


@pytest.fixture(scope="module")
def tree(photos, tmp_path_factory):
    """The small tree with names that meet at their first dot, a broken image and a black one."""
    root = tmp_path_factory.mktemp("layouts") / "photos"
    shutil.copytree(photos, root)
    for name in ("01.jpg", "01.b.c.png", "__meta__/x.png", "grüße/日本.png", "l" * 240 + ".png"):
        (root / "cat" / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / "cat" / "01.png", root / "cat" / name)
    (root / "dog" / "broken.jpg").write_bytes((root / "bird" / "00.jpg").read_bytes()[:300])
    Image.new("RGB", (80, 60)).save(root / "dog" / "black.png")
    return root


@pytest.fixture(scope="module")
def files_run(tree, network_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("files") / "out"
    run(config(tree, out, network_file, layout="files", outputs=ALL))
    return out


@pytest.mark.parametrize("runner", ["local", "ray"])
@pytest.mark.parametrize("layout", ["webdataset", "none"])
def test_the_index_is_that_of_files_but_for_the_places(
    files_run, tree, network_file, tmp_path, layout, runner, request
):
    _start(runner, request)
    out = tmp_path / "out"
    made = config(tree, out, network_file, layout=layout, outputs=ALL, runner=runner, workers=1, shard_size=16)
    summary = run(made)
    assert (summary.ok, summary.error) == (28, 1)
    wanted, found = index_of(files_run), index_of(out)
    assert found.keys() == wanted.keys()
    for key, row in wanted.items():
        assert without(found[key], PLACES | OF_THE_RUN) == without(row, PLACES | OF_THE_RUN)
        for kind in ("mask", "overlay"):
            assert (row[f"{kind}_offset"], row[f"{kind}_length"]) == (None, None)
            if layout == "none" or row["status"] == "error":
                assert {found[key][f"{kind}_{name}"] for name in ("uri", "offset", "length")} == {None}
            else:
                assert read_result(found[key], kind) == read_result(row, kind)
    folders = {path.name for path in out.iterdir()}
    assert folders == {"index", "_run"} | ({"shards"} if layout == "webdataset" else set())


@pytest.fixture(scope="module")
def tar_run(tree, network_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("tars") / "out"
    run(config(tree, out, network_file, outputs=ALL))
    return out


def test_every_file_of_the_tree_is_a_member(files_run, tar_run):
    folders = {"mask": "masks", "overlay": "overlays", "input": "inputs", "maps": "maps"}
    samples = samples_of(tar_run)
    assert samples.keys() == {key for key, row in index_of(files_run).items() if row["status"] == "ok"}
    for key, sample in samples.items():
        for kind, folder in folders.items():
            suffix = ".jpg" if kind == "overlay" else ".png"
            assert sample[kind + suffix] == (files_run / folder / (key + suffix)).read_bytes()
        assert {name for name in sample if not name.startswith("__")} == {
            "mask.png", "overlay.jpg", "input.png", "maps.png", "json",
        }  # fmt: skip
    assert len(members_of(tar_run)) == 5 * len(samples)


def test_the_description_says_what_the_index_says(tar_run):
    rows = index_of(tar_run)
    for key, sample in samples_of(tar_run).items():
        told = dict(sample["json"])
        row = rows[key]
        assert {"key", "uri", "label", "sha256", "peak_x", "mask_mean", "prediction", "correct", "weights"} <= set(told)
        assert not set(told) & (PLACES | OF_THE_RUN | {"device", "status"})
        if row["flat"]:
            assert told.pop("log10_max") in (None, row["log10_max"])
        assert told == {name: row[name] for name in told}


def test_a_tar_holds_a_commit_in_order_and_has_no_memory_of_the_run(tree, tar_run, network_file, tmp_path):
    run(config(tree, tmp_path / "out", network_file, outputs=ALL))
    tars = {path.split("/shards/")[1]: Path(path).read_bytes() for path in tars_of(tar_run)}
    again = {path.split("/shards/")[1]: Path(path).read_bytes() for path in tars_of(tmp_path / "out")}
    assert again == tars
    parts = [pads.dataset(path).to_table().to_pylist() for path in (tar_run / "_run" / "parts").rglob("*.parquet")]
    seen = set()
    for rows in parts:
        positions = [row["position"] for row in rows]
        assert positions == sorted(positions)
        explained = [row for row in rows if row["status"] == "ok"]
        uris = {row["mask_uri"] for row in explained}
        assert len(uris) == (1 if explained else 0)
        for uri in uris:
            assert f"/{rows[0]['shard']:06d}/{min(positions):06d}-{max(positions):06d}-" in uri
        offsets = [row["mask_offset"] for row in explained]
        assert offsets == sorted(offsets)
        seen |= uris
    assert {f"{tar_run}/{path}" for path in seen} == set(tars_of(tar_run))


class Notes(Observer):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def no_parts_of_shard_1(output, table, shard, *attempt):
    if shard == 1:
        raise StorageError("cannot write 000001: the disk is full")
    return write_part(output, table, shard, *attempt)


@pytest.mark.parametrize(("runner", "batch_size"), [("local", 4), ("local", 8), ("ray", 8)])
def test_resumed_after_a_cut_between_tar_and_part(
    tree, network_file, tmp_path, monkeypatch, runner, batch_size, request
):
    """A commit of the same images takes the tar over; one of others leaves an orphan, which goes in the end."""
    out = tmp_path / "out"
    made = config(tree, out, network_file, shard_size=16)
    with monkeypatch.context() as patch:
        patch.setattr("vbp.pipeline.steps.write_part", no_parts_of_shard_1)
        with pytest.raises(InterruptedRunError, match="000001.*again"):
            run(made)
    (before,) = (path for path in tars_of(out) if "/000001/" in path)
    assert not list(Path(out).glob("_run/parts/000001/*.parquet"))

    _start(runner, request)
    observer = Notes()
    summary = run(dataclasses.replace(made, batch_size=batch_size, runner=runner, workers=1), observer)
    assert (summary.ok, summary.error) == (28, 1)
    taken_over = batch_size == 4
    assert (before in tars_of(out)) == taken_over
    removed = [note for note in observer.notes if "Removed" in note]
    assert removed == ([] if taken_over else ["Removed 1 tar file of commits that were cut off."])
    rows = index_of(out)
    assert set(tars_of(out)) == {row["mask_uri"] for row in rows.values() if row["mask_uri"]}
    assert samples_of(out).keys() == {key for key, row in rows.items() if row["status"] == "ok"}
    for row in rows.values():
        if row["status"] == "ok":
            mask_HW = decode_mask(read_result(row))
            assert mask_HW[row["peak_y"], row["peak_x"]] == mask_HW.max()


def test_failed_images_join_in_a_tar_of_their_own(tree, network_file, tmp_path):
    root = tmp_path / "photos"
    shutil.copytree(tree, root)
    made = config(root, tmp_path / "out", network_file, max_failures="1")
    run(made)
    before = {path: Path(path).read_bytes() for path in tars_of(tmp_path / "out")}
    shutil.copy(root / "bird" / "00.jpg", root / "dog" / "broken.jpg")
    summary = run(dataclasses.replace(made, retry_failed=True))
    assert (summary.ok, summary.error, summary.computed) == (29, 0, 1)
    (new,) = set(tars_of(tmp_path / "out")) - before.keys()
    assert {path: Path(path).read_bytes() for path in before} == before
    row = index_of(tmp_path / "out")["dog/broken.jpg"]
    assert row["mask_uri"] == new
    assert samples_of(tmp_path / "out").keys() == index_of(tmp_path / "out").keys()


def test_selected_images_alone_are_members(tree, files_run, network_file, tmp_path):
    run(config(tree, tmp_path / "out", network_file, select="correct", batch_size=1))
    truth = {key for key, row in index_of(files_run).items() if row["correct"]}
    assert 0 < len(truth) < 28
    assert samples_of(tmp_path / "out").keys() == truth
    assert len(tars_of(tmp_path / "out")) == len(truth)  # a commit without files has no tar
    assert {key for key, row in index_of(tmp_path / "out").items() if row["mask_uri"]} == truth


@pytest.mark.parametrize("changes", [{"fit": "original"}, {"frame": "image", "mask_format": "npy"}])
def test_results_of_many_sizes(tree, network_file, tmp_path, changes):
    run(config(tree, tmp_path / "out", network_file, outputs=("mask",), **changes))
    for row in index_of(tmp_path / "out").values():
        if row["status"] == "ok":
            assert decode_mask(read_result(row)).shape == (row["height"], row["width"])
            assert (row["overlay_uri"], row["overlay_offset"], row["overlay_length"]) == (None, None, None)


def test_starting_over_removes_tars(tree, network_file, tmp_path):
    run(config(tree, tmp_path / "out", network_file))
    run(config(tree, tmp_path / "out", network_file, layout="files", resume_mode="overwrite"))
    assert tars_of(tmp_path / "out") == []


def test_without_masks_and_overlays_no_tar_is_taken_for_an_orphan(tree, network_file, tmp_path):
    made = config(tree, tmp_path / "out", network_file, outputs=("input",))
    run(made)
    run(dataclasses.replace(made, retry_failed=True))
    assert len(samples_of(tmp_path / "out")) == 28


def test_names_that_readers_would_cut_or_skip(tmp_path):
    keys = sorted([
        "__all__/x.png", "a", "a.b", "a.b.c", "a/b.png", "a.b/c.png", ".hidden", "new\nfolder/x.png", "new\nline.png",
        "back\\slash.png", "back/slash.png", "%2E.png", "...", "日" * 83, "n" * 251, "n" * 250 + ".", "a#b?.png",
        "/".join(["folder." * 30] * 3) + "/x.png", "'quoted' \"twice\".png", "CAT.PNG", "cat.png", "cat.jpg",
    ])  # fmt: skip
    rows = pa.table({"key": keys, "position": range(len(keys))})
    contents = [f"mask of {key}".encode() for key in keys]
    columns = WebDataset(Folder(tmp_path), {"mask": ".png"}).write(0, rows, {"mask": contents})
    samples = samples_of(tmp_path)
    assert {key: sample["mask.png"] for key, sample in samples.items()} == dict(zip(keys, contents, strict=True))
    for row, content in enumerate(contents):
        place = {name: column[row] for name, column in columns.items()}
        assert read_result(place | {"mask_uri": f"{tmp_path}/{place['mask_uri']}"}) == content
    subprocess.run(["tar", "-x", "-f", tars_of(tmp_path)[0], "-C", tmp_path], check=True)
    assert len([path for path in tmp_path.rglob("*.json") if path.is_file()]) == len(keys)


def test_a_description_without_infinity(tmp_path):
    """JSON knows none; readers other than Python's would refuse the whole sample."""
    rows = pa.table({"key": ["a.b"], "log10_max": [float("-inf")], "mask_mean": [0.0], "position": [3]})
    layout = WebDataset(Folder(tmp_path), {"mask": ".png"})
    columns = layout.write(5, rows, {"mask": [b"mask"]})
    (path,) = tars_of(tmp_path)
    assert columns == {"mask_uri": [path.removeprefix(f"{tmp_path}/")], "mask_offset": [512], "mask_length": [4]}
    (member,) = (data for name, data in members_of(tmp_path).items() if name == "a%2Eb.json")
    assert json.loads(member) == {"key": "a.b", "log10_max": None, "mask_mean": 0.0}


def test_in_a_bucket(tree, files_run, s3_server, network_file):
    folder = Folder(s3_server.new_url(), s3_server.storage_options)
    options = s3_server.storage_options
    made = config(tree, folder.uri("out"), network_file, storage_options=options, outputs=("mask", "overlay"))
    assert run(made).ok == 28
    tables = [pq.read_table(io.BytesIO(folder.read(path))) for path in folder.list("out/index")]
    rows = pa.concat_tables(tables).to_pylist()
    wanted = index_of(files_run)
    assert {row["key"] for row in rows} == wanted.keys()
    for row in rows:
        if row["status"] == "ok":
            assert row["mask_uri"].startswith(folder.uri("out/shards/"))
            for kind in ("mask", "overlay"):
                assert read_result(row, kind, options) == read_result(wanted[row["key"]], kind)
    objects = folder.list("out/shards")
    assert {folder.uri(path) for path in objects} == {row["mask_uri"] for row in rows if row["mask_uri"]}

    folder.write("out/shards/000000/000000-000003-0123456789abcdef.tar", b"cut off")
    assert run(dataclasses.replace(made, retry_failed=True)).computed == 1
    assert folder.list("out/shards") == objects
