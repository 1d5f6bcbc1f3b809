"""Files that vbp did not write stay: a first run refuses them, and starting over leaves them alone."""

import contextlib
import json
import shutil

import pytest

from tests.killed import Killed, dying
from tests.review.conftest import Made
from vbp.errors import UsageError
from vbp.pipeline import RunConfig, run
from vbp.pipeline.clearing import clear, forget_listing, holds_run, refuse_others
from vbp.storage.files import Folder
from vbp.storage.ledger.marks import Marks
from vbp.storage.manifest.manifest import Manifest

KEYS = [f"cat/{n}.jpg" for n in range(6)]


@pytest.fixture
def made(tmp_path):
    """An output with images of every state: done, failed, begun, and one whose row alone is known."""
    made = Made(Folder(tmp_path / "out"), KEYS, outputs=["mask", "overlay", "input", "maps"])
    made.commit([0, 1])
    made.commit([4], "error")
    made.finish()
    made.commit([5], key="gone.jpg", files=False)
    for name in ("inputs/cat/0.jpg.png", "maps/cat/0.jpg.png", "masks/cat/3.jpg.npy", "masks/gone.jpg.png",
                 "shards/000001/000000-000001-0123456789abcdef.tar", "index/part-00007.parquet"):  # fmt: skip
        made.folder.write(name, b"ours")
    Marks(made.folder, 1, [], 2).__enter__()
    return made


def names(folder):
    return sorted(folder.list())


FOREIGN = ["masks/cat/0.jpg", "masks/truth/0.png", "masks/other.jpg.png", "inputs/cat/0.jpg.jpg", "index/notes.txt",
           "shards/000009/000000-000001-0123456789abcdef.tar", "shards/mine.tar", "_run/notes.txt", "mine.txt",
           "_run/parts/000000/notes.parquet", "index/data.parquet"]  # fmt: skip


def test_starting_over_removes_what_is_ours_and_nothing_else(made):
    clear(made.folder, "anew")
    assert names(made.folder) == []
    assert not holds_run(made.folder)


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_killed_in_forgetting_a_listing_it_leaves_no_manifest_that_lacks_a_part(made, monkeypatch, moment):
    """Else whatever resumes it stops at the missing part, for ever."""
    with dying(moment, monkeypatch), contextlib.suppress(Killed):
        forget_listing(made.folder)
    manifest = Manifest.load(made.folder)
    for shard in range(manifest.shards if manifest else 0):
        manifest.read_shard(shard)


def test_what_no_record_explains_stays(made, tmp_path):
    for name in FOREIGN:
        made.folder.write(name, b"not ours")
    outside = tmp_path / "external"
    (outside / "cat").mkdir(parents=True)
    (outside / "cat" / "1.jpg.png").write_bytes(b"not ours")
    shutil.rmtree(tmp_path / "out" / "maps")
    (tmp_path / "out" / "maps").symlink_to(outside)
    clear(made.folder, "anew")
    assert names(made.folder) == sorted([*FOREIGN, "maps/cat/1.jpg.png"])


def test_a_record_that_is_damaged_explains_what_the_rest_explains(made):
    (part,) = (path for path in made.folder.list("_run/manifest"))
    made.folder.write(part, b"damaged")
    made.folder.write("_run/run.json", b"{")
    clear(made.folder, "anew")
    assert names(made.folder) == ["masks/cat/3.jpg.npy"]  # of an image that had no row


def test_without_a_run_nothing_is_touched(tmp_path):
    folder = Folder(tmp_path)
    folder.write("masks/cat/0.jpg.png", b"not ours")
    clear(folder, "anew")
    assert names(folder) == ["masks/cat/0.jpg.png"]


@pytest.mark.parametrize(
    "name", ["masks/a/0.png", "overlays/x", "inputs/0.jpg", "maps/m", "shards/a.tar", "index/i", "masks"]
)
def test_a_first_run_refuses_folders_of_others(tmp_path, name):
    folder = Folder(tmp_path)
    folder.write(name, b"not ours")
    with pytest.raises(UsageError, match=f"holds files that no run has written, .*: {name}; choose another OUTPUT"):
        refuse_others(folder)


def config(source, output, network_file, **changes):
    fields = {"input": str(source), "output": str(output), "weights": network_file, "size": 32, "limit": 4}
    return RunConfig(**fields | {"runner": "local", "precision": "float32", "batch_size": 4} | changes)


@pytest.mark.parametrize("mode", ["resume", "overwrite", "fail"])
def test_ground_truth_beside_the_photos(photos, network_file, tmp_path, mode):
    """`data/images` and `data/masks`, and `data` as OUTPUT."""
    data = tmp_path / "data"
    shutil.copytree(photos, data / "images")
    shutil.copytree(photos, data / "masks")
    before = sorted(map(str, data.rglob("*")))
    with pytest.raises(UsageError, match="holds files that no run has written"):
        run(config(data / "images", data, network_file, resume_mode=mode))
    assert [path for path in sorted(map(str, data.rglob("*"))) if "_run" not in path] == before


def test_ground_truth_that_came_later_survives_starting_over(photos, network_file, tmp_path):
    made = config(photos, tmp_path / "out", network_file)
    run(made)
    shutil.copytree(photos, tmp_path / "out" / "masks" / "truth")
    assert run(config(photos, tmp_path / "out", network_file, resume_mode="overwrite", fit="stretch")).computed == 4
    truth = [path.read_bytes() for path in sorted((tmp_path / "out" / "masks" / "truth").rglob("*.*"))]
    assert truth == [path.read_bytes() for path in sorted(photos.rglob("*.*"))]


def test_images_that_a_list_names_among_the_results(photos, network_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(photos, out / "inputs")
    listed = sorted(map(str, (out / "inputs").rglob("*.*")))
    (tmp_path / "list.txt").write_text("\n".join(listed) + "\n")
    with pytest.raises(UsageError, match="holds files that no run has written"):
        run(config(tmp_path / "list.txt", out, network_file))
    assert sorted(map(str, (out / "inputs").rglob("*.*"))) == listed


def test_a_finished_run_that_was_moved_gets_a_new_index(photos, network_file, tmp_path):
    import pyarrow.dataset as pads

    run(config(photos, tmp_path / "out", network_file))
    (tmp_path / "out").rename(tmp_path / "moved")
    assert run(config(photos, tmp_path / "moved", network_file)).computed == 0
    rows = pads.dataset(tmp_path / "moved" / "index").to_table().to_pylist()
    for row in rows:
        assert row["mask_uri"] == f"{tmp_path}/moved/masks/{row['key']}.png"
        assert row["overlay_uri"] == f"{tmp_path}/moved/overlays/{row['key']}.jpg"
    assert json.loads((tmp_path / "moved/_run/run.json").read_text())["summary"]["output"] == f"{tmp_path}/moved"
