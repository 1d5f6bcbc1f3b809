"""Parcels: batches come out as they went in, large arrays without a copy, and no parcel is much too large."""

import math
import pickle
import random

import numpy as np
import pyarrow as pa
import pytest

from vbp.pipeline.on_ray.parcels import LARGE, packed, parcel_bytes, parcels, unpacked
from vbp.pipeline.resources import Node, Resources
from vbp.pipeline.steps import objects


def batch(rows, side=8, first=0):
    return {
        "key": objects([f"{first + row}.jpg" for row in range(rows)]),
        "width": objects([None, *range(1, rows)]),
        "position": np.arange(first, first + rows, dtype=np.int32),
        "pixels": np.full((rows, side, side, 3), first, np.uint8),
    }


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        if values.dtype == object:
            assert all(np.array_equal(one, other) for one, other in zip(found[name], values, strict=True))
        else:
            np.testing.assert_array_equal(found[name], values)


def test_batches_come_out_as_they_went_in():
    ragged = objects([np.arange(12).reshape(2, 2, 3), None, np.zeros((700, 700, 3), np.uint8), b"a file"])
    sent = [batch(4), batch(4, 512, 4), batch(4) | {"pixels": ragged}, batch(1) | {"pixels": np.zeros((1, 0))}]
    parcel = packed(sent)
    assert parcel.num_rows == 1
    assert parcel.num_columns == 3  # all but two large arrays
    for found, expected in zip(unpacked(parcel), sent, strict=True):
        assert_equal(found, expected)


def test_large_arrays_are_not_copied():
    sent = batch(4, 512)
    (found,) = unpacked(packed([sent]))
    assert sent["pixels"].nbytes >= LARGE
    assert np.shares_memory(found["pixels"], sent["pixels"])


def lying(sizes, gaps):
    """Arrays of so many bytes, one behind the other in one piece of memory, with gaps between."""
    memory, arrays, end = np.random.default_rng(0).integers(0, 256, sum(sizes) + sum(gaps), np.uint8), [], 0
    for size, gap in zip(sizes, gaps, strict=True):
        arrays.append(memory[end : end + size])
        end += size + gap
    return arrays


def test_large_arrays_that_lie_side_by_side_share_a_column():
    """As the masks and overlays of a batch come back from the device."""
    arrays = lying([LARGE + 5, LARGE, LARGE + 7, LARGE], [0, 0, 16, 0])
    sent = {"key": objects(["a"])} | {f"plane_{number}": array[None] for number, array in enumerate(arrays)}
    parcel = packed([sent, batch(4, 512)])
    assert [parcel.num_rows, parcel.num_columns] == [1, 4]  # all else, three planes, one plane, pixels
    found, other = unpacked(parcel)
    assert_equal(found, sent)
    assert_equal(other, batch(4, 512))
    assert all(np.shares_memory(found[name], sent[name]) for name in sent if name != "key")


def test_arrays_side_by_side_in_another_order_are_told_apart():
    first, second = lying([LARGE, LARGE], [0, 0])
    sent = {"key": objects(["a"]), "second": second[None], "first": first[None]}
    parcel = packed([sent])
    assert parcel.num_columns == 3
    (found,) = unpacked(parcel)
    assert_equal(found, sent)


def test_shared_columns_in_a_slice_of_a_table():
    sent = [
        {"key": objects([str(number)])} | dict(zip("ab", lying([LARGE + number, LARGE], [0, 0]), strict=True))
        for number in range(3)
    ]
    together = pa.concat_tables(packed([each]) for each in sent).combine_chunks()
    for row, expected in enumerate(sent):
        (found,) = unpacked(together.slice(row, 1))
        assert_equal(found, expected)


def test_ray_sends_shared_columns_as_they_are():
    """Its own way to pickle Arrow's tables neither copies them nor makes them a column each."""
    from ray._private.arrow_serialization import _arrow_table_reduce

    arrays = lying([LARGE + 5, LARGE], [0, 0])
    sent = {"key": objects(["a"])} | {f"plane_{number}": array[None] for number, array in enumerate(arrays)}
    buffers = []
    rebuild, parts = _arrow_table_reduce(packed([sent]))
    pickled = pickle.dumps((rebuild, parts), protocol=5, buffer_callback=buffers.append)
    (large,) = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers if len(buffer.raw()) >= LARGE]
    assert large.ctypes.data == arrays[0].ctypes.data
    assert large.nbytes == 2 * LARGE + 5
    rebuild, parts = pickle.loads(pickled, buffers=buffers)
    (found,) = unpacked(rebuild(*parts))
    assert_equal(found, sent)


def test_a_parcel_that_lies_behind_others_in_a_table():
    """As a slice, which begins within Arrow's buffers."""
    tables = [packed([batch(2, 512, first)]) for first in (0, 2, 4)]
    together = pa.concat_tables(tables).combine_chunks()
    for row, first in enumerate((0, 2, 4)):
        (found,) = unpacked(together.slice(row, 1))
        assert_equal(found, batch(2, 512, first))


def test_every_row_travels_once_and_in_order():
    seed = random.randrange(10**6)
    print("seed", seed)  # noqa: T201
    rng = random.Random(seed)
    sent, rows = [], 0
    for _ in range(rng.randrange(1, 12)):
        sent.append(batch(rng.randrange(1, 9), rng.choice([1, 8, 30]), rows))
        rows += len(sent[-1]["key"])
    found = [each for parcel in parcels(sent, 5000, cuts=rng.choice([True, False])) for each in unpacked(parcel)]
    positions = np.concatenate([each["position"] for each in found])
    assert positions.tolist() == list(range(rows))
    assert all((each["pixels"][..., 0] <= each["position"][:, None, None]).all() for each in found)


def bytes_of(values):
    if values.dtype != object:
        return values.nbytes
    return sum(value.nbytes if isinstance(value, np.ndarray) else len(value) for value in values)


def images_in(parcel, name):
    return [len(each[name]) for each in unpacked(parcel)]


def test_a_parcel_is_sent_when_it_has_its_bytes():
    """Of batches of 192 bytes of pixels and 4 of positions, the third fills 500."""
    found = list(parcels((batch(1, 8, first) for first in range(7)), 500))
    assert [images_in(parcel, "key") for parcel in found] == [[1, 1, 1], [1, 1, 1], [1]]


def test_batches_are_taken_one_after_the_other():
    taken = []

    def source():
        for number in range(4):
            taken.append(number)
            yield batch(1, 8, number)

    next(parcels(source(), 300))
    assert taken == [0, 1]


@pytest.mark.parametrize("is_file", [False, True])
def test_a_batch_of_large_images_is_cut_between_images(is_file):
    sizes = [100, 400, 700, 100, 2000, 100, 100]
    pictures = objects([bytes(size) if is_file else np.zeros(size, np.uint8) for size in sizes])
    found = list(parcels([{"key": objects(list("abcdefg")), "pixels": pictures}], 900, cuts=True))
    together = [[len(each) for one in unpacked(parcel) for each in one["pixels"]] for parcel in found]
    assert together == [[100, 400, 700, 100], [2000], [100, 100]]
    assert [bytes_of(one["pixels"]) for parcel in found for one in unpacked(parcel)] == [500, 800, 2000, 200]


def test_a_batch_for_the_network_stays_whole():
    """However large it is: in pieces it would go through the network several times."""
    found = list(parcels([batch(2, 8), batch(4, 100), batch(4, 100)], 900))
    assert [images_in(parcel, "key") for parcel in found] == [[2, 4], [4]]


def test_no_batches_make_no_parcel():
    assert list(parcels([], 1000)) == []


GB = 10**9
GPUS = {"workers": 1, "num_cpus": 1, "num_gpus": 1, "threads": 0}
ROOMY = Node(cpus=16, gpus=1, store=38 * GB)


@pytest.mark.parametrize(
    ("nodes", "shards", "megabytes"),
    [
        ([ROOMY], 64, 160),
        ([ROOMY], 63, 64),  # so few that all CPUs should have some
        ([Node(cpus=64, gpus=4, store=150 * GB)], 127, 64),
        ([Node(cpus=64, gpus=4, store=150 * GB)], 128, 160),
        ([Node(cpus=16, gpus=1, store=20 * GB)], 10**6, 64),
        ([ROOMY, Node(cpus=8, store=8 * GB)], 10**6, 64),
        ([ROOMY, Node(store=2 * GB)], 10**6, 160),  # a head that does no work
        ([Node(store=38 * GB)], 10**6, 64),  # no other node has come yet
        ([ROOMY, Node(gpus=8, store=8 * GB)], 10**6, 64),
        ([], 10**6, 64),
    ],
)
def test_a_whole_shard_is_a_parcel_where_there_is_room(nodes, shards, megabytes):
    assert parcel_bytes(shards, Resources(**GPUS), nodes) == megabytes * 2**20


def test_nobody_knows_the_room_of_nodes_that_may_come():
    assert parcel_bytes(10**6, Resources(**GPUS, at_most=math.inf), [ROOMY]) == 64 * 2**20
