"""A sample: chosen by the hash of the keys, whatever their order."""

import hashlib
from collections import deque

import numpy as np

from vbp.pipeline.sample import Choice, sampled
from vbp.storage.collections.tree import ManifestRow


def row(key):
    return ManifestRow(key, f"file:///{key}", key.encode(), None)


KEYS = [f"{number:05d}" for number in range(900)]
BY_HASH = sorted(KEYS, key=lambda key: hashlib.sha256(key.encode()).digest())


def test_images_are_chosen_by_the_hash_of_their_keys():
    choice = Choice(160)
    assert [each.key for each in choice.watch(map(row, [*KEYS, *KEYS[:50]]))] == KEYS + KEYS[:50]
    assert [each.key for each in choice.rows] == BY_HASH[:160]
    first = Choice(160, limit=310)
    deque(first.watch(map(row, KEYS)), maxlen=0)
    assert [each.key for each in first.rows] == [key for key in BY_HASH if key < "00310"][:160]


def test_a_sample_is_in_the_order_of_a_listing_and_that_of_the_stream_does_not_matter():
    mixed = np.random.default_rng(3).permutation(KEYS).tolist()
    for stream in (KEYS, mixed):
        assert [each.key for each in sampled(map(row, stream), 40)] == sorted(BY_HASH[:40])
    assert [each.key for each in sampled(map(row, mixed[:9]), 40)] == sorted(mixed[:9])
