import os
from pathlib import Path

from vbp.storage.files import Folder
from vbp.storage.leftout import LeftOut
from vbp.storage.listing import list_tree


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


def test_results_inside_the_input_are_no_input(folder):
    for name in ("a.jpg", "out/masks/a.jpg.png", "outside/b.jpg"):
        folder.write(name, b"")
    assert [row.key for row in list_tree(folder, folder.child("out"))] == ["a.jpg", "outside/b.jpg"]
    assert len(list(list_tree(folder, Folder("/elsewhere")))) == 3


def test_names_that_need_another_key(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"1")
    (row,) = list_tree(Folder(tmp_path))
    assert row.path == b"caf\xe9.jpg"
    assert row.key.endswith("~caf_.jpg")
    assert row.uri == f"{tmp_path}/caf%E9.jpg"
