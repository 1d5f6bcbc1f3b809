"""A file that is not there: the most similar name in its folder."""

import pytest

from vbp.networks.nearby import meant, nearby


@pytest.fixture
def folder(tmp_path):
    for name in ("model.pth", "Mine.PY", "model.onnx"):
        (tmp_path / name).touch()
    return tmp_path


def test_the_name_counts_not_the_path(folder):
    assert nearby(f"{folder}/mdel.pth") == "model.pth"
    assert nearby(f"{folder}/mdel.onx", (".onnx",)) == "model.onnx"
    assert nearby(f"{folder}/mime.py", (".py",)) == ""  # capitals are other letters
    assert nearby(f"{folder}/Mime.PY", (".py",)) == "Mine.PY"


def test_nothing_near(folder):
    for place in (
        f"{folder}/x",
        f"{folder}/none/model.pth",
        "s3://bucket/model.pth",
        f"{folder}/model.pth/x",
        "\0",
        "",
    ):
        assert (nearby(place), meant(place)) == ("", "")
    assert meant(f"{folder}/modl.pth") == " (did you mean model.pth?)"
