import os
from pathlib import Path

import pytest

from tests.storage.flat import FlatStore
from vbp.errors import StorageError
from vbp.storage.collections.tree import list_tree, one_image
from vbp.storage.files import Folder
from vbp.storage.leftout import LeftOut


def test_a_tree(folder):
    for name in ("cat/b.JPG", "cat/a.jpeg", "dog/deep/c.tiff", "d.webp", "notes.txt", "cat/._x", "png"):
        folder.write(name, b"123")
    rows = list(list_tree(folder))
    assert [(row.key, row.label, row.size) for row in rows] == [
        ("cat/a.jpeg", "cat", 3),
        ("cat/b.JPG", "cat", 3),
        ("d.webp", None, 3),
        ("dog/deep/c.tiff", "dog", 3),
    ]
    assert [row.path for row in rows] == [row.key.encode() for row in rows]
    assert [row.uri for row in rows] == [folder.uri(row.key) for row in rows]
    assert all(row.version for row in rows)


def test_what_a_tree_leaves_out(folder):
    names = (
        "cat/b.JPG",
        "cat/._b.jpg",
        "cat/c.jfif",
        "cat/d.heic",
        "e",
        "f.none",
        "notes.txt",
        ".ipynb_checkpoints/g.jpg",
    )
    for name in names:
        folder.write(name, b"123")
    left_out = LeftOut()
    assert [row.key for row in list_tree(folder, left_out=left_out)] == ["cat/b.JPG", "cat/c.jfif"]
    assert left_out.counts == {"system": 2, ".heic": 1, "none": 1, ".none": 1, ".txt": 1}
    asked = list_tree(folder, suffixes=(".heic", "none"), left_out=left_out)
    assert [row.key for row in asked] == ["cat/d.heic", "e"]


def test_names_that_need_another_key(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"1")
    (row,) = list_tree(Folder(tmp_path))
    assert row.path == b"caf\xe9.jpg"
    assert row.key.endswith("~caf_.jpg")
    assert row.uri == f"{tmp_path}/caf%E9.jpg"


ODD_KEYS = {
    "/lead.jpg": None,
    "//cat/a.jpg": "cat",
    "cat//b.jpg": "cat",
    "./dog/c.jpg": "dog",
    "../d.jpg": None,
    "e/../f.jpg": "e",
    "cat/line\nbreak.jpg": "cat",
    "back\\slash.jpg": None,
    f"{'x' * 300}/{'y' * 300}.jpg": None,
    "a?b#c%41.jpg": None,
    "cat/a.jpg": "cat",
}


@pytest.mark.parametrize("place", ["", "/photos"])
def test_every_key_of_a_bucket_is_a_row_of_its_own(place, monkeypatch):
    data = {f"b{place}/{key}": key.encode() for key in ODD_KEYS} | {f"b{place}/folder/": b""}
    monkeypatch.setattr("vbp.storage.files._open", lambda base, settings, process: (FlatStore(data), "b"))
    folder, left_out = Folder(f"s3://b{place}"), LeftOut()
    rows = list(list_tree(folder, left_out=left_out))
    assert left_out.counts == {"none": 1}
    assert len({row.key for row in rows}) == len({row.key.casefold() for row in rows}) == len(ODD_KEYS)
    for row in rows:
        key = row.path.decode()
        assert folder.read(key) == key.encode()
        assert row.label == ODD_KEYS[key] or len(key) > 300
        assert not {"", ".", ".."} & set(row.key.split("/"))
        assert row.key.isprintable()


@pytest.mark.parametrize("url", ["/photos", "http://host/photos"])
def test_elsewhere_no_path_leaves_its_folder(url):
    for path in ("../a.jpg", "/a.jpg", "a/../../b.jpg"):
        with pytest.raises(StorageError, match="does not lie within"):
            Folder(url).read(path)


def test_one_image_is_a_collection_of_one(folder):
    folder.write("cat/a.JPG", b"123")
    row = one_image(folder.child("cat/a.JPG"))
    assert (row.key, row.label, row.size, row.uri) == ("a.JPG", None, 3, folder.uri("cat/a.JPG"))
    assert folder.child("cat/a.JPG").read(os.fsdecode(row.path)) == b"123"
    folder.write("dog.jpg/a.jpg", b"123")
    folder.write("notes.txt", b"123")
    for other in ("dog.jpg", "cat", "none.jpg", "notes.txt"):
        assert one_image(folder.child(other)) is None
    assert one_image(folder.child("notes.txt"), (".txt",)).key == "notes.txt"


def test_one_image_tells_when_it_was_replaced(tmp_path):
    (tmp_path / "a.bmp").write_bytes(b"123")
    os.utime(tmp_path / "a.bmp", ns=(1, 7))
    assert one_image(Folder(tmp_path / "a.bmp")).version == "7"


def test_one_image_of_a_web_server():
    row = one_image(Folder("https://host/photos/a.jpg?width=9"))
    assert (row.key, row.path) == ("a.jpg", b"")
