"""The part worker: its stand-in for a GPU, and how figures are taken from what went through."""

from types import SimpleNamespace

import numpy as np
import pytest

from vbp.evidence import worker
from vbp.evidence.worker import PretendedDevice, Taken


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for name, value in {"IMAGES": 4, "SIZE": 32, "CLASSES": 6}.items():
        monkeypatch.setattr(worker, name, value)


def test_the_step_is_the_one_of_a_gpu_worker():
    batch = worker.decoded()
    found = worker.explain(0.0)(batch)
    assert (found["mask"].shape, found["mask"].dtype) == ((4, 32, 32), np.uint8)
    assert found["overlay"].shape == (4, 32, 32, 3)
    assert "pixels" not in found
    assert all(0 <= number < 6 for number in found["prediction"])
    assert list(found["error_stage"]) == [None] * 4


def test_the_device_works_once_and_then_only_takes_its_time(monkeypatch):
    clock = SimpleNamespace(perf_counter=lambda: clock.now, sleep=lambda seconds: None, now=100.0)
    monkeypatch.setattr(worker, "time", clock)
    device, done = PretendedDevice(0.5), []
    sent, computed = device.stream(), device.stream()
    arrived, first, second = device.event(), device.event(), device.event()
    device.enqueue(sent, lambda: done.append("sent"), None, arrived)
    device.enqueue(computed, lambda: done.append("one"), arrived, first)
    device.enqueue(computed, lambda: done.append("other"), None, second)
    assert (arrived.at, first.at, second.at) == (100, 100.5, 101)  # one after another
    clock.now = 200.0
    device.enqueue(computed, lambda: done.append("again"), arrived, first)
    assert first.at == 200.5
    assert done == ["sent", "one", "other"]


def test_memory_is_used_again_when_nobody_has_it():
    device = PretendedDevice(0.5)
    first = device.pinned(1000)
    part = first[100:].numpy()[1:]
    place = first.data_ptr()
    del first
    assert device.pinned(1000).data_ptr() != place  # a part of it is still held
    del part
    assert device.pinned(999).data_ptr() != place
    held = [device.pinned(1000) for _ in range(3)]
    places = {each.data_ptr() for each in held}
    assert place in places
    assert len(places) == 3


def test_each_call_of_the_step_alone_is_timed():
    found = worker.step_alone(3)
    assert len(found) == 3
    assert min(found) > 0


def test_the_rate_is_taken_in_the_middle_and_each_process_counts():
    """Of 21 batches, the ninth (two fifths) to the nineteenth (nine tenths); one process does two thirds of them."""
    each = [{"at": 10.0 + number, "process": number % 3 // 2, "cpu": 0.1 * number} for number in range(21)]
    rows = [row | {"images": 4, "driver": 7 + 0.01 * row["at"]} for row in each]
    warned = ["", "slow", "slow\nno CUDA graph"]
    found = worker.taken([row | {"warned": warned[number % 3]} for number, row in enumerate(rows[::-1])])
    assert found.images == 4 * 10
    assert found.batches == 10
    assert found.seconds == 10
    assert found.cpu == pytest.approx(0.1 * (18 - 9) + 0.1 * (17 - 8))
    assert found.driver == pytest.approx(0.10)
    assert found.warned == ["no CUDA graph", "slow"]


@pytest.mark.parametrize(("cores", "target", "notes"), [(2, None, 2), (4, 1.15, 1)])
def test_the_time_for_a_batch_has_a_target_where_there_are_cores(monkeypatch, cores, target, notes):
    monkeypatch.setattr(worker, "_cores", lambda: cores)
    found = [Taken(40, 0.3, 0.07, 0.02, parcel_bytes=64 << 20), Taken(40, 0.15, 0.05, 0.01, parcel_bytes=64 << 20)]
    alone, process, over, driver = worker._figures([2.0, 4.0, 2.5], found)
    assert (alone.median, alone.target, alone.reached) == (2.5, 3, True)
    assert (process.values, process.target, process.reached) == (pytest.approx([7, 5]), 8, True)
    assert (over.values, over.target) == (pytest.approx([2, 1]), target)
    assert (driver.values, driver.target) == (pytest.approx([2, 1]), None)
    assert worker._rate(found).rates == [pytest.approx(40 / 0.3), pytest.approx(40 / 0.15)]
    size, *others = worker._notes(found)
    assert "parcels of 64 MiB" in size
    assert 1 + len(others) == notes
