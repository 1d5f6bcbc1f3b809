"""Where an image's files lie."""

import pytest

from vbp.errors import UsageError
from vbp.storage.files import Folder
from vbp.storage.results.files import files_of

TAR = "shards/000000/000000-000001-0123456789abcdef.tar"
ALL = ["mask", "overlay", "input", "maps"]


def config(layout="files", outputs=("mask", "overlay"), mask_format="png8"):
    return {"layout": layout, "outputs": list(outputs), "mask_format": mask_format}


@pytest.mark.parametrize(("start", "length", "data"), [(2, 3, b"234"), (8, 5, b"89"), (10, 2, b""), (20, 5, b"")])
def test_a_range_of_a_tar_that_may_have_been_cut(folder, start, length, data):
    folder.write(TAR, b"0123456789")
    row = {"key": "a.jpg", "mask_uri": f"s3://elsewhere/{TAR}", "mask_offset": start, "mask_length": length}
    files = files_of(folder, config("webdataset"))
    assert files.read(row, "mask") == data
    assert dict(files.expected(row)) == {TAR: start + length}
    with pytest.raises(FileNotFoundError):
        files.read(row | {"mask_uri": None}, "mask")
    folder.delete(TAR)
    with pytest.raises(FileNotFoundError):
        files.read(row, "mask")


def test_own_files(tmp_path):
    folder = Folder(tmp_path)
    files = files_of(folder, config(outputs=ALL, mask_format="npy"))
    paths = ["masks/d/a.jpg.npy", "overlays/d/a.jpg.jpg", "inputs/d/a.jpg.png", "maps/d/a.jpg.png"]
    assert files.paths("d/a.jpg") == paths
    assert dict(files.expected({"key": "d/a.jpg"})) == dict.fromkeys(paths, 1)
    assert [files.key_of(path) for path in paths] == ["d/a.jpg"] * 4
    for path in paths:
        folder.write(path, path.encode())
    assert [files.read({"key": "d/a.jpg"}, kind) for kind in ALL] == [path.encode() for path in paths]


def test_without_files_of_its_own_an_image_has_no_paths(tmp_path):
    for layout in ("none", "webdataset"):
        assert files_of(Folder(tmp_path), config(layout)).paths("a.jpg") == []


@pytest.mark.parametrize(("outputs", "folders"), [(ALL, ("shards",)), (["overlay"], ("shards",)), (["maps"], ())])
def test_tars_are_looked_at_only_where_rows_name_them(tmp_path, outputs, folders):
    assert files_of(Folder(tmp_path), config("webdataset", outputs)).folders == folders


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": "zarr"}, r"layout of .* \(=zarr\)"),
        ({"outputs": ["mask", "depth"]}, "the result depth"),
        ({"mask_format": "webp"}, r"mask format \(=webp\)"),
    ],
)
def test_an_output_of_the_future(tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        files_of(Folder(tmp_path), config() | changes)
