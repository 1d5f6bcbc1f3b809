"""Where an image's files lie."""

import pytest

from tests.review.conftest import Made
from vbp.errors import UsageError
from vbp.review.files import files_of
from vbp.review.output import Output
from vbp.storage.files import Folder

TAR = "shards/000000/000000-000001-0123456789abcdef.tar"


@pytest.fixture(params=["local", "s3"])
def made(request, tmp_path):
    if request.param == "local":
        return Made(Folder(tmp_path / "out"), ["a.jpg"], layout="webdataset")
    server = request.getfixturevalue("s3_server")
    return Made(Folder(server.new_url(), server.storage_options), ["a.jpg"], layout="webdataset")


@pytest.mark.parametrize(("start", "length", "data"), [(2, 3, b"234"), (8, 5, b"89"), (10, 2, b""), (20, 5, b"")])
def test_a_range_of_a_tar_that_may_have_been_cut(made, start, length, data):
    made.folder.write(TAR, b"0123456789")
    row = {"key": "a.jpg", "mask_uri": f"s3://elsewhere/{TAR}", "mask_offset": start, "mask_length": length}
    files = files_of(Output.at(made.folder))
    assert files.read(row, "mask") == data
    assert dict(files.expected(row)) == {TAR: start + length}
    with pytest.raises(FileNotFoundError):
        files.read(row | {"mask_uri": None}, "mask")
    made.folder.delete(TAR)
    with pytest.raises(FileNotFoundError):
        files.read(row, "mask")


def test_own_files(make):
    made = make(["d/a.jpg"], outputs=["mask", "overlay", "input", "maps"], mask_format="npy")
    paths = {path for path, _ in files_of(Output.at(made.folder)).expected({"key": "d/a.jpg"})}
    assert paths == {"masks/d/a.jpg.npy", "overlays/d/a.jpg.jpg", "inputs/d/a.jpg.png", "maps/d/a.jpg.png"}


def test_a_layout_of_the_future(make):
    with pytest.raises(UsageError, match=r"layout of .* \(=zarr\)"):
        files_of(Output.at(make(layout="zarr").folder))
