"""One seed of the fuzz of checkpoints."""

import pytest

from tests.chaos.edges.checkpoints import fuzz


@pytest.mark.long
def test_whatever_a_checkpoint_holds_ends_in_its_weights_or_a_sentence():
    outcome = fuzz(1, 100)
    print(outcome)  # noqa: T201
    assert outcome.faults == []
    assert outcome.cases == 100
    assert outcome.ends["weights"] >= 15
    assert outcome.ends["refused"] >= 40
