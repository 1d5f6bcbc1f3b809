"""The chain of steps in one process: overlapped, committed every few seconds, and ended cleanly."""

import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pytest

from vbp.pipeline import RunConfig, local, run
from vbp.pipeline.local import ahead, gathered, joined


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as made:
        yield made


def encoded(*sizes):
    """A batch as it leaves Encode: files of so many bytes, None for none."""
    files = np.empty(len(sizes), object)
    files[:] = [None if size is None else bytes(size) for size in sizes]
    return {"key": np.array([f"k{n}" for n in range(len(sizes))], object), "file_mask": files}


def test_ahead_keeps_the_order_and_works_one_ahead(pool):
    made, threads = [], set()

    def items():
        for number in range(5):
            threads.add(threading.get_ident())
            made.append(number)
            yield number

    seen = []
    for item in ahead(pool, items()):
        time.sleep(0.02)
        assert len(made) <= item + 2, "no more than one item waits"
        seen.append(item)
    assert seen == [0, 1, 2, 3, 4]
    assert threads.isdisjoint({threading.get_ident()})


def test_ahead_passes_errors_on_after_the_items_before_them(pool):
    def items():
        yield 1
        raise ValueError("broken")

    seen = []
    with pytest.raises(ValueError, match="broken"):
        seen.extend(ahead(pool, items()))
    assert seen == [1]


def test_ahead_leaves_nothing_running_behind_when_it_is_left_early(pool):
    running = []

    def items():
        for number in range(100):
            running.append(number)
            time.sleep(0.05)
            running.remove(number)
            yield number

    stream = ahead(pool, items())
    next(stream)
    stream.close()
    assert running == []
    assert pool.submit(int).result(timeout=5) == 0


class Interrupted(Executor):
    """Makes an item at once; Ctrl-C comes in the wait for the third one."""

    def __init__(self):
        self.made = 0

    def submit(self, make, /, *arguments):
        self.made += 1
        item = Future() if self.made != 3 else InterruptedOnce()
        item.set_result(make(*arguments))
        return item


class InterruptedOnce(Future):
    was_interrupted = False

    def result(self, timeout=None):
        if not self.was_interrupted:
            self.was_interrupted = True
            raise KeyboardInterrupt
        return super().result(timeout)


def test_ahead_hands_out_what_is_being_made_when_it_is_interrupted_and_makes_no_more():
    pool, seen = Interrupted(), []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(ahead(pool, iter("abcde")))
    assert (seen, pool.made) == (["a", "b", "c"], 3)


def test_ahead_is_interrupted_at_its_end():
    seen = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(ahead(Interrupted(), iter("ab")))
    assert seen == ["a", "b"]


def test_what_waits_is_handed_out_before_an_interrupt():
    def batches():
        yield encoded(1, 1)
        yield encoded(1)
        raise KeyboardInterrupt

    parts = []
    with pytest.raises(KeyboardInterrupt):
        parts.extend(gathered(batches(), seconds=1000, size=1000))
    assert [len(part["key"]) for part in parts] == [3]


def test_batches_wait_for_each_other_as_long_as_it_takes():
    batches = [encoded(10, 20), encoded(None), encoded(30)]
    parts = list(gathered(batches, seconds=1000, size=1000))
    assert [len(part["key"]) for part in parts] == [4]
    assert [None if data is None else len(data) for data in parts[0]["file_mask"]] == [10, 20, None, 30]


def test_batches_are_committed_after_so_many_seconds_or_bytes():
    batches = [encoded(1, 1), encoded(1), encoded(1)]
    assert [len(part["key"]) for part in gathered(batches, seconds=0, size=1000)] == [2, 1, 1]
    assert [len(part["key"]) for part in gathered(batches, seconds=1000, size=3)] == [3, 1]
    assert list(gathered([], 1, 1)) == []


def test_joining_keeps_rows_and_kinds():
    one, other = ({"n": np.array([1, 2]), "x": np.array([None, "a"], object)} for _ in range(2))
    both = joined([one, other])
    assert both["n"].tolist() == [1, 2, 1, 2]
    assert both["x"].tolist() == [None, "a", None, "a"]


def parts(out):
    return sorted(Path(out).glob("_run/parts/*/*.parquet"))


def config(photos, out, network_file, **changes):
    fields = {"input": str(photos), "output": str(out), "weights": network_file, "size": 32, "precision": "float32"}
    return RunConfig(**fields | {"runner": "local", "batch_size": 2} | changes)


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_shard_is_one_part_if_it_takes_no_longer_than_that(photos, network_file, tmp_path, runner, ray_session):
    run(config(photos, tmp_path / "out", network_file, shard_size=11, runner=runner, workers=1))
    assert [pads.dataset(part).count_rows() for part in parts(tmp_path / "out")] == [11, 11]


def test_what_takes_longer_is_committed_on_the_way(photos, network_file, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "COMMIT_SECONDS", 0.0)
    run(config(photos, tmp_path / "out", network_file, shard_size=22))
    assert [pads.dataset(part).count_rows() for part in parts(tmp_path / "out")] == [2] * 11


def test_an_exception_of_any_step_ends_the_run_and_keeps_what_was_committed(
    photos, network_file, tmp_path, monkeypatch
):
    from vbp.pipeline import steps

    decode, batches = steps.Decode.run, []

    def broken(self, batch):
        batches.append(batch)
        if len(batches) == 5:
            raise ZeroDivisionError("a bug")
        return decode(self, batch)

    monkeypatch.setattr(local, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(steps.Decode, "run", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(config(photos, tmp_path / "out", network_file, shard_size=22))
    kept = len(parts(tmp_path / "out"))
    assert 0 < kept <= 4
    monkeypatch.undo()
    summary = run(config(photos, tmp_path / "out", network_file, shard_size=22))
    assert (summary.ok, summary.computed) == (22, 22 - 2 * kept)
