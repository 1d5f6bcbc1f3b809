"""Fetch alone: what it makes of an input that is lost while it reads."""

import os

import pytest

from vbp.errors import InterruptedRunError
from vbp.pipeline import breaker
from vbp.pipeline.steps import Fetch, objects


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(40):
        (root / f"{number:02d}.jpg").write_bytes(b"x")
    return root


def batch(root, numbers):
    names = [f"{number:02d}.jpg" for number in numbers]
    columns = {"key": names, "uri": [f"{root}/{name}" for name in names], "path": list(map(os.fsencode, names))}
    return {name: objects(values) for name, values in columns.items()}


@pytest.mark.parametrize("mount_point_is_left", [False, True])
def test_an_input_that_is_lost_makes_no_error_rows(photos, monkeypatch, mount_point_is_left):
    monkeypatch.setattr(breaker.Breaker.__init__, "__defaults__", (200, 10, 50, 0.0, lambda seconds: None, None))
    fetch = Fetch(str(photos))
    assert all(data == b"x" for data in fetch(batch(photos, range(20)))["data"])
    photos.rename(photos.with_name("elsewhere"))
    if mount_point_is_left:
        photos.mkdir()
    with pytest.raises(InterruptedRunError, match="FileNotFoundError.*run the same command again"):
        fetch(batch(photos, range(20, 24)))
    if mount_point_is_left:
        photos.rmdir()
    photos.with_name("elsewhere").rename(photos)
    assert all(data == b"x" for data in fetch(batch(photos, range(20, 40)))["data"])


def test_a_single_missing_file_is_an_error_row(photos):
    (photos / "05.jpg").unlink()
    found = Fetch(str(photos))(batch(photos, range(20)))
    assert [kind for kind in found["error_type"] if kind] == ["FileNotFoundError"]


def test_what_an_address_may_hold_in_secret_is_read_with_and_not_kept(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    columns = {"key": ["k", "l"], "uri": [f"{tmp_path}/a", "http://me:word@127.0.0.1:9/x?sig=word#word"]}
    found = Fetch("", max_bytes=4)({name: objects(values) for name, values in columns.items()})
    assert list(found["uri"]) == [f"{tmp_path}/a", "http://127.0.0.1:9/x"]
    assert list(found["error_type"]) == ["FileTooLargeError", "UsageError"]
    assert "word" not in str(found).replace("password", "")
