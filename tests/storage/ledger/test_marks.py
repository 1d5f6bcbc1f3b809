"""Marks stay when a process is killed, and only then."""

import contextlib
import json
import os

import pytest

from vbp.errors import StorageError
from vbp.storage.files import Folder
from vbp.storage.ledger.marks import Marks

SHARD = "_run/parts/000003"


def names(folder):
    return [path.removeprefix(f"{SHARD}/") for path in folder.list(SHARD)]


def start(folder, left):
    return Marks(folder, 3, names(folder), left)


def kinds(folder):
    return sorted(name.rpartition("-")[0] for name in names(folder))


def test_a_start_is_marked_until_its_end(folder):
    with start(folder, 7) as marks:
        assert (marks.stuck, marks.deaths) == (False, {})
        assert kinds(folder) == ["begun-7"]
        (path,) = folder.list(SHARD)
        assert json.loads(folder.read(path))["pid"] == os.getpid()
        with marks.alone(12):
            assert kinds(folder) == ["alone-12", "begun-7"]
        assert kinds(folder) == ["begun-7"]
    assert names(folder) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_is_no_death(folder, error):
    def work():
        with start(folder, 7) as marks, marks.alone(12):
            raise error

    with pytest.raises(error):
        work()
    assert names(folder) == []


def killed(folder, left, *alone):
    """What a worker leaves that is killed with these images in hand."""
    with contextlib.ExitStack() as stack:
        marks = stack.enter_context(start(folder, left))
        for position in alone:
            stack.enter_context(marks.alone(position))
        there = {path: folder.read(path) for path in folder.list(SHARD)}
    for path, data in there.items():
        folder.write(path, data)


def test_a_start_that_led_nowhere_is_known_by_the_number_left(folder):
    killed(folder, 7)
    assert start(folder, 7).stuck
    assert not start(folder, 5).stuck, "two images were committed since"


def test_deaths_are_counted_by_image_until_the_shard_came_to_its_end(folder):
    killed(folder, 7, 12)
    killed(folder, 7, 12)
    killed(folder, 6, 13)
    marks = start(folder, 6)
    assert marks.deaths == {12: 2, 13: 1}
    with pytest.raises(ZeroDivisionError), marks:
        raise ZeroDivisionError
    assert start(folder, 6).deaths == {12: 2, 13: 1}, "the cause was not found yet"
    with start(folder, 6):
        pass
    assert names(folder) == []


def test_parts_and_other_files_are_no_marks(folder):
    folder.write(f"{SHARD}/run-000000-000003-0123456789ab-4-0.parquet", b"")
    folder.write(f"{SHARD}/begun-x-12", b"")
    marks = start(folder, 4)
    assert (marks.stuck, marks.deaths) == (False, {})
    with marks:
        pass
    assert len(names(folder)) == 2


def test_a_mark_that_cannot_be_removed_ends_nothing(tmp_path, monkeypatch):
    def refuse(self, path):
        raise StorageError("no")

    folder = Folder(tmp_path)
    monkeypatch.setattr(Folder, "delete", refuse)
    with start(folder, 7):
        pass
    assert kinds(folder) == ["begun-7"]
