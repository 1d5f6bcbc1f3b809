import random

import pytest

from vbp.storage.stores.order import in_byte_order
from vbp.storage.stores.store import File


@pytest.mark.parametrize("run", [3, 7, 1000])
def test_any_order_becomes_byte_order_and_nothing_comes_twice(run):
    names = [f"{letter}{mark}{number}" for letter in "aé\uffff😀" for mark in "-./" for number in range(9)]
    files = [File(name, len(name), "v") for name in names]
    random.Random(3).shuffle(files)
    assert list(in_byte_order(files + files[:20], run)) == sorted(files, key=lambda file: file.path.encode())


def test_nothing():
    assert list(in_byte_order([])) == []
