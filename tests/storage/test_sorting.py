"""Sorted, whatever part of it waits on disk."""

import random
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest

from vbp.storage import sorting as module
from vbp.storage.sorting import Sorter


class Item(NamedTuple):
    name: bytes
    number: int


SCHEMA = pa.schema([("name", pa.binary()), ("number", pa.int64())])


@pytest.mark.parametrize("in_memory", [1, 7, 50, 1000])
def test_sorted_like_a_list(monkeypatch, in_memory):
    monkeypatch.setattr(module, "ITEMS_IN_MEMORY", in_memory)
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    items = [Item(rng.randbytes(rng.randrange(3)), rng.randrange(5)) for _ in range(200)]
    with Sorter(Item, SCHEMA) as sorter:
        for item in items:
            sorter.add(item)
        folder = Path(sorter._folder.name)
        found = list(sorter)
        assert found == sorted(items)
        assert {type(item) for item in found} == {Item}
        assert len(list(folder.iterdir())) == 200 // in_memory
    assert not folder.exists()


def test_nothing():
    with Sorter(Item, SCHEMA) as sorter:
        assert list(sorter) == []
