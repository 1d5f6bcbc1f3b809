"""Single failures pass through; mass failures in the store pause the run, then stop it."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from vbp.errors import InterruptedRunError, StorageError
from vbp.pipeline.breaker import Breaker


def watch(breaker, read, tasks):
    with ThreadPoolExecutor(4) as pool:
        return list(breaker.watch(pool, read, tasks))


def failing_from(numbers, error):
    def read(task):
        if task in numbers:
            raise error
        return task * 10

    return read


def test_results_keep_their_order_and_single_failures_are_values():
    results = watch(Breaker(sleep=pytest.fail), failing_from({3}, StorageError("no answer")), range(30))
    assert results[2] == 20
    assert isinstance(results[3], StorageError)


def test_missing_files_do_not_trip_while_others_are_found():
    results = watch(Breaker(sleep=pytest.fail), failing_from(range(99), FileNotFoundError("gone")), range(100))
    assert sum(isinstance(result, FileNotFoundError) for result in results) == 99


def test_when_nothing_at_all_is_found_the_input_has_moved():
    with pytest.raises(InterruptedRunError, match="FileNotFoundError"):
        watch(Breaker(sleep=lambda seconds: None), failing_from(range(60), FileNotFoundError("gone")), range(60))


def test_a_few_failures_never_trip_even_if_they_are_all():
    assert len(watch(Breaker(sleep=pytest.fail), failing_from(range(9), StorageError("x")), range(9))) == 9


@pytest.mark.parametrize("error", [StorageError("503"), PermissionError("403")])
def test_mass_failure_stops_the_run_and_names_the_cause(error):
    slept = []
    with pytest.raises(InterruptedRunError, match=f"{type(error).__name__}: {error}.*run the same command again"):
        watch(Breaker(sleep=slept.append), failing_from(range(100), error), range(100))
    assert slept == [30.0]


def test_a_store_that_comes_back_during_the_pause_loses_nothing():
    broken = {"now": True}

    def read(task):
        if broken["now"] and task >= 20:
            raise StorageError("no answer")
        return task

    breaker = Breaker(sleep=lambda seconds: broken.update(now=False))
    assert watch(breaker, read, range(100)) == list(range(100))


def test_the_window_remembers_earlier_batches():
    breaker = Breaker(window=200, sleep=pytest.fail)
    watch(breaker, failing_from((), None), range(190))
    assert len(watch(breaker, failing_from(range(20), StorageError("x")), range(20))) == 20  # 20 of the last 200


def test_other_exceptions_are_bugs_and_pass():
    with pytest.raises(ZeroDivisionError):
        watch(Breaker(), lambda task: 1 / task, [1, 0])


def test_a_disk_that_is_lost_in_the_middle():
    """Most of a full window is missing, though the images before were found."""
    with pytest.raises(InterruptedRunError, match=r"FileNotFoundError.*the disk is back, run the same command again"):
        watch(Breaker(sleep=lambda seconds: None), failing_from(range(99, 200), FileNotFoundError("gone")), range(200))
    kept = watch(Breaker(sleep=pytest.fail), failing_from(range(100, 200), FileNotFoundError("gone")), range(200))
    assert len(kept) == 200


def test_an_input_that_is_gone_as_a_whole_stops_at_the_first_missing_file():
    slept, gone = [], [True]
    breaker = Breaker(sleep=slept.append, is_gone=lambda: gone[0])
    with pytest.raises(InterruptedRunError, match="FileNotFoundError"):
        watch(breaker, failing_from({39}, FileNotFoundError("gone")), range(40))
    assert slept == [30.0]
    gone[0] = False
    results = watch(breaker, failing_from({39}, FileNotFoundError("gone")), range(40))
    assert isinstance(results[39], FileNotFoundError)
