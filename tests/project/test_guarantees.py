"""Each promise of docs/guarantees.md names what holds it: files of tests, and tests in them, that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not re.match(r"\| (promise|\|)", line)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:42])
def test_each_promise_names_tests_that_there_are(row):
    named = re.findall(r"`(tests/[^`]+)`", row.rstrip("| ").rpartition("|")[2])
    assert named, row
    for name in named:
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not test or re.search(rf"^def {re.escape(test)}\(", (ROOT / path).read_text(), re.MULTILINE), name


def test_every_place_that_the_page_names_is_there():
    for path in re.findall(r"`((?:tests|vbp|docs)/[\w/.]+)", PAGE):
        assert (ROOT / path).exists(), path
