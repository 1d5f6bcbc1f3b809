"""The setup of the smallest possible measurement."""

import pytest

from vbp.evidence.timing import Setup


@pytest.fixture
def setup():
    return Setup(batch_size=1, rounds=1, device="cpu", precisions=("float32",))
