"""One seed of the fuzz of names, trees, keys, manifests and class files."""

import pytest

from tests.chaos.edges.trees import fuzz


@pytest.mark.long
def test_whatever_people_bring_ends_in_rows_or_one_sentence():
    outcome = fuzz(1, 210)
    print(outcome)  # noqa: T201
    assert outcome.faults == []
    assert outcome.cases == 210
    for end in ("tree", "bucket", "manifest", "classes", "refused"):
        assert outcome.ends[end] >= 10
