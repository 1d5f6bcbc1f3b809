"""Folders are paired with the network's outputs only if the class names match in full, never by chance."""

import pytest

from vbp.errors import UsageError
from vbp.networks.classfile import ClassNames
from vbp.pipeline.classes import map_classes
from vbp.pipeline.config import BY_ORDER

WNIDS = [f"n{i:08d}" for i in range(1000)]


def by_file(folders, names, own=None, ids=None):
    declared = ClassNames(tuple(names), ids and tuple(ids))
    return map_classes(folders, len(names), own, WNIDS, declared)


def test_wordnet_ids():
    found = map_classes(["n00000007", "n00000999"], 1000, None, WNIDS)
    assert found.index == {"n00000007": 7, "n00000999": 999}
    assert "WordNet" in found.rule


def test_wordnet_ids_mean_nothing_to_another_network():
    assert map_classes(["n00000007"], 10, None, WNIDS).index == {}


def test_class_names_whatever_the_case_and_the_dashes():
    for found in (
        map_classes(["Sports_Car", "tabby cat"], 3, ["dog", "tabby-cat", "sports car"], WNIDS),
        by_file(["Sports_Car", "tabby cat"], ["dog", "tabby-cat", "sports car"]),
    ):
        assert found.index == {"Sports_Car": 2, "tabby cat": 1}
        assert found.name(0) == "dog"


def test_one_of_several_names_is_enough():
    assert by_file(["hound", "Felis catus"], ["dog, hound", "cat, Felis catus"]).index == {"hound": 0, "Felis catus": 1}
    # but a whole name comes before a part of another
    assert by_file(["crane"], ["bird, crane", "crane"]).index == {"crane": 1}


def test_ids_of_the_class_file():
    found = by_file(["n00000002", "dog"], ["cat", "dog"], ids=["n00000002", "n00000001"])
    assert found.index == {"n00000002": 0, "dog": 1}


def test_wordnet_folders_and_imagenets_own_names_in_a_file():
    own = [f"name {i}" for i in range(1000)]
    file = [f"Name_{i}, {i} for short" for i in range(1000)]
    found = by_file(["n00000007"], file, own)
    assert (found.index, found.name(7)) == ({"n00000007": 7}, "Name_7, 7 for short")
    with pytest.raises(UsageError, match="folder 'n00000007' is none of the 1000 class names"):
        by_file(["n00000007"], file[::-1], own)


def test_a_name_of_two_classes_is_no_name():
    assert map_classes(["crane"], 3, ["crane", "crane", "dog"], WNIDS).index == {}
    with pytest.raises(UsageError, match="folder 'crane' is the name of the classes 0 and 1"):
        by_file(["crane"], ["crane", "crane", "dog"])


def test_order_counts_only_on_request():
    found = map_classes(["dog", "cat"], 2, None, WNIDS)
    assert (found.index, found.names) == ({}, None)
    assert "nobody says which of the network's 2 outputs each of 'cat', 'dog'" in found.rule
    assert "--classes FILE, or by-order" in found.advice
    assert found.with_advice == f"{found.rule}; {found.advice}"
    found = map_classes(["dog", "cat"], 2, None, WNIDS, BY_ORDER)
    assert (found.index, found.name(1)) == ({"cat": 0, "dog": 1}, "dog")
    assert "alphabetical" in found.rule


def test_order_and_other_names():
    found = map_classes(["b", "a"], 2, ["one", "two"], WNIDS, BY_ORDER)
    assert (found.index, found.name(0)) == ({"a": 0, "b": 1}, "one")


def test_order_against_the_checkpoints_own_names():
    assert map_classes(["cat", "dog"], 2, ["cat", "dog"], WNIDS, BY_ORDER).index == {"cat": 0, "dog": 1}
    with pytest.raises(UsageError, match="folder 'cat' class 0, but the checkpoint itself calls class 1 so"):
        map_classes(["cat", "dog"], 2, ["dog", "cat"], WNIDS, BY_ORDER)


def test_order_needs_a_folder_for_each_class():
    with pytest.raises(UsageError, match=r"INPUT has 2 \('cat', 'dog'\), the network 3 classes"):
        map_classes(["cat", "dog"], 3, None, WNIDS, BY_ORDER)


def test_names_that_match_in_full_need_no_request():
    assert map_classes(["cat", "dog"], 2, ["dog", "cat"], WNIDS).index == {"cat": 1, "dog": 0}


def test_foreign_folders_are_no_classes_of_the_checkpoint():
    found = map_classes(["cat", "holiday"], 2, ["cat", "holidays"], WNIDS)
    assert found.index == {}
    for word in ("'holiday'", "the closest are 'holidays'", "--classes FILE", "by-order"):
        assert word in found.with_advice


@pytest.mark.parametrize(
    ("folders", "names", "message"),
    [
        (
            ["cat", "dog", "zebra"],
            ["zebra", "cat", "dogs"],
            "folder 'dog' is none of the 3 class names in the file .*; the closest are 'dogs'",
        ),
        (
            ["cat", "holiday", "x"],
            ["cat", "dog"],
            r"'holiday' is none of the 2 class names .* \(nor is 'x'\)",
        ),
        (["qqq"], ["cat", "dog", "bird", "fish"], "there are 'cat', 'dog', 'bird' and 1 more"),
    ],
)
def test_a_class_file_that_does_not_match_is_refused(folders, names, message):
    with pytest.raises(UsageError, match=message):
        by_file(folders, names)


def test_images_without_folders():
    assert "no class folders" in map_classes([], 3, None, WNIDS).rule
    assert by_file([], ["cat"]).index == {}


def test_a_class_file_of_another_length():
    with pytest.raises(UsageError, match="holds 2 names, the network has 3 classes"):
        map_classes(["cat"], 3, None, WNIDS, ClassNames(("cat", "dog")))
