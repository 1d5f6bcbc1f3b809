"""One seed of the fuzz of image files."""

import pytest

from tests.chaos.edges.images import fuzz


@pytest.mark.long
def test_whatever_a_header_says_ends_in_pixels_or_an_image_error():
    outcome = fuzz(1, 1500)
    print(outcome)  # noqa: T201
    assert outcome.faults == []
    assert outcome.cases == 1500
    assert outcome.ends["pixels"] >= 100
    assert outcome.ends["CorruptImageError"] >= 100
