"""Folders meet outputs by the stated rules, in their order."""

import pytest

from vbp.errors import UsageError
from vbp.pipeline.classes import map_classes

WNIDS = [f"n{i:08d}" for i in range(1000)]


def test_wordnet_ids():
    found = map_classes(["n00000007", "n00000999"], 1000, None, WNIDS)
    assert found.index == {"n00000007": 7, "n00000999": 999}
    assert "WordNet" in found.rule


def test_wordnet_ids_mean_nothing_to_another_network():
    assert map_classes(["n00000007"], 10, None, WNIDS).index == {}


def test_class_names_whatever_the_case_and_the_dashes():
    found = map_classes(["Sports_Car", "tabby cat"], 3, ["dog", "tabby-cat", "sports car"], WNIDS)
    assert found.index == {"Sports_Car": 2, "tabby cat": 1}
    assert found.name(0) == "dog"


def test_a_name_of_two_classes_is_no_name():
    assert map_classes(["crane"], 3, ["crane", "crane", "dog"], WNIDS).index == {}


def test_as_many_folders_as_classes_count_alphabetically():
    found = map_classes(["dog", "cat"], 2, None, WNIDS)
    assert found.index == {"cat": 0, "dog": 1}
    assert found.name(1) == "dog"
    assert "alphabetical" in found.rule


def test_names_come_before_the_alphabet():
    assert map_classes(["cat", "dog"], 2, ["dog", "cat"], WNIDS).index == {"cat": 1, "dog": 0}


def test_nothing_fits_and_the_rule_says_why():
    found = map_classes(["cat", "holiday"], 3, ["cat", "dog", "bird"], WNIDS)
    assert found.index == {}
    for word in ("'holiday'", "2 folders", "3 classes", "--classes"):
        assert word in found.rule


def test_images_without_folders():
    assert "no class folders" in map_classes([], 3, None, WNIDS).rule


def test_a_class_file_of_another_length():
    with pytest.raises(UsageError, match="holds 2 names, the network has 3 classes"):
        map_classes(["cat"], 3, ["cat", "dog"], WNIDS)
