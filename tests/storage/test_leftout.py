"""Files that are no images are recognised by their names, and counted in bounded memory."""

import pytest

from vbp.storage.leftout import KINDS, LeftOut, in_words, is_system, suffix_of, suffixes_in


@pytest.mark.parametrize(
    "path",
    [
        "cat/._a.jpg",
        "__MACOSX/cat/a.jpg",
        "cat/.ipynb_checkpoints/a-checkpoint.jpg",
        ".DS_Store",
        "cat/Thumbs.db",
        "DESKTOP.INI",
        "cat/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
        ".Trashes/501/a.jpg",
        "$RECYCLE.BIN/a.jpg",
        "lost+found/a.jpg",
        "cat/Icon\r",
        "...jpg",
    ],
)
def test_files_of_systems(path):
    assert is_system(path)


@pytest.mark.parametrize(
    "path", ["a.jpg", "./a.jpg", "../a.jpg", "cat//a.jpg", "thumbs.db.jpg", "my.__MACOSX/a.jpg", ""]
)
def test_files_of_people(path):
    assert not is_system(path)


@pytest.mark.parametrize(
    ("path", "suffix"),
    [
        ("cat.d/a.JPG", ".jpg"),
        ("a.tar.gz", ".gz"),
        ("a.jpg_original", ".jpg_original"),
        ("a.jpg~", ".jpg~"),
        ("cat.d/a", ""),
        ("At noon. What a day", ""),
        ("a.averylongendingofaname", ""),
        ("a.\u65e5\u672c", ""),
        (".jpg", ""),
        ("a.", ""),
        ("a.jpg\n", ""),
    ],
)
def test_suffixes(path, suffix):
    assert suffix_of(path) == suffix


def test_memory_is_bounded_and_no_file_lost():
    left_out = LeftOut()
    for number in range(1000):
        left_out.add(f"a.{number}")
    left_out.add(".x")
    left_out.add("x")
    assert left_out.counts["others"] == 1000 - KINDS
    assert sum(left_out.counts.values()) == 1002
    assert len(left_out.counts) == KINDS + 3
    assert in_words(left_out.counts).endswith(f", {1002 - 12} have other suffixes")


def test_words():
    assert in_words({}) == ""
    counts = {"system": 1, "none": 2, "others": 40, ".heic": 30, ".txt": 1, "repeated": 2}
    assert in_words(counts) == (
        "30 end in .heic, 2 have no suffix, 2 repeat an image, 1 ends in .txt, 1 is hidden or a system file, "
        "40 have other suffixes"
    )


def test_suffixes_that_are_asked_for():
    assert suffixes_in(" JPG,.Heic, none,.jpg") == (".jpg", ".heic", "none")
    for wrong in ("", "jpg,,png", "*.jpg", "a b", "."):
        with pytest.raises(ValueError, match="'"):
            suffixes_in(wrong)
