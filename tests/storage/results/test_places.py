"""Where results lie: relative in the ledger, absolute in the index, and nowhere else."""

import pyarrow as pa
import pytest

from vbp.storage.files import Folder
from vbp.storage.results.places import elsewhere, key_of_result, made_absolute, misplaced, names_of, place_of

TAR = "shards/000002/000000-000004-0123456789abcdef.tar"


@pytest.mark.parametrize(
    ("uri", "kind", "place"),
    [
        ("masks/a/b.jpg.png", "mask", "masks/a/b.jpg.png"),
        ("masks/a/b.jpg.npy", "mask", "masks/a/b.jpg.npy"),
        ("overlays/a/b.jpg.jpg", "overlay", "overlays/a/b.jpg.jpg"),
        ("/old/out/masks/a/b.jpg.png", "mask", "masks/a/b.jpg.png"),
        ("s3://b/old/masks/a/b.jpg.png", "mask", "masks/a/b.jpg.png"),
        (TAR, "mask", TAR),
        (f"s3://b/old/{TAR}", "overlay", TAR),
        ("masks/a/other.jpg.png", "mask", None),
        ("overlays/a/b.jpg.jpg", "mask", None),
        ("masks/a/b.jpg.exe", "mask", None),
        ("/old/mymasks/a/b.jpg.png", "mask", None),
        ("masks/../masks/a/b.jpg.png", "mask", "masks/a/b.jpg.png"),
        ("../../etc/passwd", "mask", None),
        ("shards/000001/000000-000004-0123456789abcdef.tar", "mask", None),
        ("shards/000002/000000-000004-0123.tar", "mask", None),
        ("", "mask", None),
    ],
)
def test_what_a_run_can_have_written(uri, kind, place):
    """For the image a/b.jpg in shard 2: whatever is in front, what is used is the path below OUTPUT."""
    assert place_of(uri, kind, "a/b.jpg", 2) == place


def test_names_of_results_and_back():
    names = list(names_of("a/b.jpg"))
    assert names == ["masks/a/b.jpg.png", "masks/a/b.jpg.npy", "overlays/a/b.jpg.jpg", "inputs/a/b.jpg.png",
                     "maps/a/b.jpg.png"]  # fmt: skip
    assert {key_of_result(name) for name in names} == {"a/b.jpg"}
    for other in ("masks/a/b.jpg", "overlays/a.png", "shards/a.png", "a.png", "masks"):
        assert key_of_result(other) is None


def rows(*places):
    keys = [f"{number}.jpg" for number in range(len(places))]
    columns = {"key": keys, "shard": pa.array([2] * len(keys), pa.int32())}
    columns |= {"mask_uri": pa.array([mask for mask, _ in places], pa.string())}
    return pa.table(columns | {"overlay_uri": pa.array([overlay for _, overlay in places], pa.string())})


def test_the_index_says_where_the_output_is_now(tmp_path):
    folder = Folder(tmp_path / "now")
    ledger = rows(
        ("masks/0.jpg.png", "overlays/0.jpg.jpg"), ("/before/masks/1.jpg.png", None), (None, None), (TAR, TAR),
        ("masks/0.jpg.png", None),
    )  # fmt: skip
    assert misplaced(ledger).to_pylist() == [False, False, False, False, True]
    index = made_absolute(folder, ledger)
    root = f"{tmp_path}/now"
    assert index["mask_uri"].to_pylist() == [
        f"{root}/masks/0.jpg.png", f"{root}/masks/1.jpg.png", None, f"{root}/{TAR}", None,
    ]  # fmt: skip
    assert index["overlay_uri"].to_pylist() == [f"{root}/overlays/0.jpg.jpg", None, None, f"{root}/{TAR}", None]
    assert elsewhere(folder, index) == 0
    assert elsewhere(Folder(tmp_path / "moved"), index) == 3
    assert elsewhere(folder, rows((None, None))) == 0
