"""The external sort: in order, however much of it is on disk."""

import random
import tempfile
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
def test_sorted_like_a_list(monkeypatch, tmp_path, in_memory):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "ITEMS_IN_MEMORY", in_memory)
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    items = [Item(rng.randbytes(rng.randrange(3)), rng.randrange(5)) for _ in range(200)]
    with Sorter(Item, SCHEMA) as sorter:
        for item in items:
            sorter.add(item)
        found = list(sorter)
        assert found == sorted(items)
        assert {type(item) for item in found} == {Item}
        assert len(list(tmp_path.glob("vbp-*/*"))) == 200 // in_memory
    assert list(tmp_path.iterdir()) == []


def test_sorted_tables_are_merged_with_the_items(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    items = [Item(b"%d" % (n % 4), n) for n in range(30)]
    with Sorter(Item, SCHEMA) as sorter:
        for number in (0, 1, 2):
            sorter.add_sorted(module.as_table(sorted(items[number * 9 : number * 9 + 9]), SCHEMA))
        sorter.add_sorted(module.as_table([], SCHEMA))
        for item in items[27:]:
            sorter.add(item)
        assert list(sorter) == sorted(items)
        assert len(list(tmp_path.glob("vbp-*/*"))) == 3


def test_equal_items_stay_in_their_order(monkeypatch):
    monkeypatch.setattr(module, "ITEMS_IN_MEMORY", 3)
    items = [Item(name, number) for number, name in enumerate([b"b", b"a", b"b", b"a", b"b", b"a", b"a", b"b"])]
    with Sorter(Item, SCHEMA, key=lambda item: item.name) as sorter:
        for item in items:
            sorter.add(item)
        assert list(sorter) == sorted(items)


def test_nothing():
    with Sorter(Item, SCHEMA) as sorter:
        assert list(sorter) == []
