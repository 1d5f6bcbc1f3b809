"""How far decoded pixels differ."""

import numpy as np

from vbp.evidence.gpucheck.decoders import apart


def test_differences_are_in_grey_levels():
    ours, theirs = np.full((2, 2, 3), 250, np.uint8), np.full((2, 2, 3), 250, np.uint8)
    theirs[0, 0, 0] = 4
    assert apart([theirs, ours], [ours, ours]) == "pixels differ by 10.25 levels on average, at most 246"
