"""A tree cut into branches: enough of them, none too often, and only those behind a path."""

import pytest

from vbp.errors import StorageError
from vbp.storage.files import Folder
from vbp.storage.stores import branches as module
from vbp.storage.stores import local
from vbp.storage.stores.branches import Branch, branches_in, cut_up
from vbp.storage.stores.store import File


def files(*paths):
    return [File(path, 1, None) for path in paths]


def tree(cuts):
    """A tree as it is cut: the entries of each folder; None where they are too many."""
    asked = []

    def cut(folder):
        asked.append(folder)
        entries = cuts[folder]
        if isinstance(entries, Exception):
            raise entries
        return None if entries is None else branches_in(folder, files(*entries))

    return cut, asked


CUTS = {
    "": ["0.jpg", "a/", "b/", "b0.jpg", "b1.jpg", "c/"],
    "a/": ["a/1.jpg", "a/d/"],
    "a/d/": [],
    "b/": None,
    "c/": StorageError("forbidden"),
}


def test_folders_are_cut_until_there_are_enough_branches(monkeypatch):
    first = [
        Branch("", files("0.jpg")),
        Branch("a/"),
        Branch("b/"),
        Branch("", files("b0.jpg", "b1.jpg")),
        Branch("c/"),
    ]
    finest = [first[0], Branch("a/", files("a/1.jpg")), *first[2:]]
    for enough, expected in ((1, [Branch("")]), (2, first), (100, finest)):
        monkeypatch.setattr(module, "ENOUGH", enough)
        cut, asked = tree(CUTS)
        assert cut_up(cut) == expected
        assert len(asked) == len(set(asked))  # what cannot be cut is not asked about again


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (b"", 5),
        (b"0.jpg", 4),
        (b"a", 4),
        (b"a/1.jpg", 3),
        (b"b", 3),
        (b"b/x", 3),
        (b"b0.jpg", 2),
        (b"b1.jpg", 1),
        (b"c/zzz", 1),
        (b"d", 0),
        ("\udcff".encode(errors="surrogateescape"), 0),
    ],
)
def test_only_branches_behind_a_path(after, expected):
    found = cut_up(tree(CUTS)[0], after)
    assert len(found) == expected
    assert found == cut_up(tree(CUTS)[0])[5 - expected :]


def test_a_chain_of_folders_is_not_followed_for_ever(monkeypatch):
    monkeypatch.setattr(module, "LEVELS", 3)
    asked = []

    def cut(folder):
        asked.append(folder)
        return [Branch(f"{folder}a/")]

    assert cut_up(cut) == [Branch("a/a/a/")]
    assert asked == ["", "a/", "a/a/"]


def test_of_a_disk_a_folder_of_many_files_is_not_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "LOOSE", 3)
    folder = Folder(tmp_path)
    for name in (
        "flat/1.jpg",
        "few/1.jpg",
        "few/a/1.jpg",
        *(f"many/{number}.jpg" for number in range(4)),
        "many/a/1.jpg",
    ):
        folder.write(name, b"1")
    cut = folder.cut_up()
    assert [branch.folder for branch in cut] == ["few/", "few/a/", "flat/", "many/"]
    assert list(folder.walk_branches(cut)) == list(folder.walk())


def test_of_a_disk_links_into_oneself_have_nothing_below(tmp_path):
    folder = Folder(tmp_path)
    for name in ("a/b/1.jpg", "a/2.jpg", "c.jpg"):
        folder.write(name, b"1")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "here").symlink_to(tmp_path)
    found = folder.cut_up()
    assert [branch.folder for branch in found if branch.files is None] == []
    assert list(folder.walk_branches(found)) == list(folder.walk())
