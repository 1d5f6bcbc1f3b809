"""Sealed batches: whatever a step does with the rows, each comes out with its own values."""

import pickle
import random

import numpy as np
import pytest

from vbp.pipeline.on_ray.parcels import LARGE, packed, parcels, unpacked
from vbp.pipeline.on_ray.sealed import opened, sealed
from vbp.pipeline.steps import objects


def batch(rows, first=0):
    numbers = range(first, first + rows)
    return {
        "key": objects([f"{number}.jpg" for number in numbers]),
        "uri": objects([f"s3://bucket/{number}.jpg" for number in numbers]),
        "width": objects([None if number % 3 == 0 else number for number in numbers]),
        "position": np.arange(first, first + rows, dtype=np.int32),
        "pixels": np.full((rows, 2, 2, 3), first, np.uint8),
    }


READ = frozenset(("key", "pixels", "label"))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


def test_only_what_is_read_is_there():
    found = sealed(batch(3), READ)
    assert [name for name in found if name in batch(3)] == ["key", "pixels"]
    assert {len(values) for values in found.values()} == {3}


def test_an_opened_batch_has_all_columns():
    assert_equal(opened(sealed(batch(5), READ)), batch(5))


def test_what_was_made_on_the_way_is_there_and_counts():
    on_its_way = sealed(batch(2), READ)
    del on_its_way["pixels"]
    found = opened(on_its_way | {"mask": np.ones((2, 4)), "width": objects([7, 8])})
    expected = batch(2) | {"mask": np.ones((2, 4)), "width": objects([7, 8])}
    assert_equal(found, {name: values for name, values in expected.items() if name != "pixels"})


def test_a_batch_that_is_not_sealed_is_opened_already():
    given = batch(2)
    assert opened(given) is given


def test_rows_in_another_order_and_some_of_them():
    """As runs that share a worker take them apart and join them."""
    seed = random.randrange(10**6)
    print("seed", seed)  # noqa: T201
    rows = random.Random(seed).choices(range(9), k=12)
    found = opened({name: values[rows] for name, values in sealed(batch(9), READ).items()})
    assert_equal(found, {name: values[rows] for name, values in batch(9).items()})


@pytest.mark.parametrize("cuts", [False, True])
def test_parcels_of_sealed_batches(cuts):
    """Each with its own bytes, also if it was cut."""
    sent = [batch(4), batch(3, 4), batch(2, 7)]
    found = [opened(each) for parcel in parcels(sent, 60, cuts=cuts, read=READ) for each in unpacked(parcel)]
    assert len(found) == (4 if cuts else 3)  # three rows of 16 bytes are within 60
    whole = {name: np.concatenate([each[name] for each in sent]) for name in sent[0]}
    assert_equal({name: np.concatenate([each[name] for each in found]) for name in whole}, whole)


def test_large_files_go_through_without_a_copy():
    """Whole photographs, on which overlays are drawn later, are in the parcel once, and in the next one too."""
    files = objects([bytes([number]) * LARGE for number in range(3)])
    first = packed([sealed(batch(3) | {"data": files}, READ)])
    (there,) = unpacked(first)
    second = packed([there])
    assert 3 * LARGE < first.nbytes < 3 * LARGE + 20_000
    large = [max(parcel.columns[1:], key=lambda column: column.nbytes) for parcel in (first, second)]
    addresses = [column.chunk(0).flatten().buffers()[2].address for column in large]
    assert addresses[0] == addresses[1]
    (found,) = [opened(each) for each in unpacked(second)]
    assert_equal(found, batch(3) | {"data": files})


def test_nothing_is_unpickled_on_the_way():
    class Harmful:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    (there,) = unpacked(packed([sealed(batch(1) | {"extra": objects([Harmful()])}, READ)]))
    pickle.dumps(there)
    with pytest.raises(pytest.fail.Exception, match="unpickled"):
        opened(there)
