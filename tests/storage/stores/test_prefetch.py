"""Listings as one stream: in their order, read ahead side by side, whole after an early end."""

import contextlib
import gc
import tempfile
import threading
import time
import weakref

import pytest

from vbp.storage.stores import prefetch as ahead
from vbp.storage.stores.prefetch import one_after_the_other
from vbp.storage.stores.store import File


def files(letter, count):
    return [File(f"{letter}/{number:05d}\udcff\n", number, None) for number in range(count)]


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def listers():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vbp-list")]


@pytest.mark.parametrize("count", [0, 1, 7, 14, 15])
def test_the_order_of_the_listings(count, scratch, monkeypatch):
    monkeypatch.setattr(ahead, "PAGE", 7)
    listings = [files(letter, count) for letter in "zyxwvutsrqponmlkjihgfedcba"]
    found = list(one_after_the_other([lambda listing=listing: iter(listing) for listing in listings]))
    assert found == [file for listing in listings for file in listing]
    assert list(scratch.iterdir()) == []


def test_sixteen_are_read_at_a_time_and_no_further_than_their_room(scratch, monkeypatch):
    monkeypatch.setattr(ahead, "PAGE", 5)
    monkeypatch.setattr(ahead, "PAGES", 3)
    begun, read = set(), []

    def listing(number):
        begun.add(number)
        for file in files(str(number), 100):
            read.append(number)
            yield file

    stream = one_after_the_other([lambda number=number: listing(number) for number in range(40)])
    next(stream)
    end = time.monotonic() + 30
    while len(read) < 20 + 15 * 15 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    assert begun == set(range(16))
    assert read.count(0) == 20  # a page is with the reader
    assert {read.count(number) for number in range(1, 16)} == {15}
    stream.close()


def test_an_error_comes_in_its_turn(scratch):
    def broken():
        yield from files("b", 3)
        raise PermissionError("b")

    stream = one_after_the_other([lambda: iter(files("a", 3)), broken, lambda: iter(files("c", 3))])
    assert [next(stream) for _ in range(3)] == files("a", 3)
    with pytest.raises(PermissionError, match="b"):
        next(stream)
    assert listers() == []
    assert list(scratch.iterdir()) == []


def test_after_an_error_nothing_waits_for_the_garbage_collector(scratch):
    def broken():
        raise PermissionError("b")

    def call():
        stream = one_after_the_other([broken])
        with contextlib.suppress(PermissionError):
            next(stream)
        return weakref.ref(stream)

    gc.disable()
    try:
        assert call()() is None
    finally:
        gc.enable()


def test_nothing_outlives_an_early_end(scratch, monkeypatch):
    monkeypatch.setattr(ahead, "PAGE", 5)
    monkeypatch.setattr(ahead, "PAGES", 2)
    stream = one_after_the_other([lambda letter=letter: iter(files(letter, 1000)) for letter in "abcdefghijklmnopqrst"])
    assert next(stream).path.startswith("a/")
    assert listers()
    stream.close()
    assert listers() == []
    assert list(scratch.iterdir()) == []
