"""Numbers with nouns: singular and plural; lists."""

import pytest

from vbp.words import counted, listed


@pytest.mark.parametrize(("number", "words"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_one_is_singular(number, words):
    assert counted(number, "image") == words


@pytest.mark.parametrize(("number", "words"), [(0, "0 rows were"), (1, "1 row was"), (2, "2 rows were")])
def test_more_than_an_s(number, words):
    assert counted(number, "row was", "rows were") == words


@pytest.mark.parametrize(("names", "words"), [("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")])
def test_a_list(names, words):
    assert listed(names) == words
