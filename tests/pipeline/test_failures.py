"""A failure belongs to its run, and keeps its type wherever it comes from."""

import pickle

import numpy as np
import pytest

from vbp.errors import StorageError, UsageError, VBPError
from vbp.pipeline.failures import RunFailedError, is_crash, naming
from vbp.pipeline.shared import ByRun


@pytest.mark.parametrize(
    ("cause", "crashed", "said"),
    [
        (StorageError("the disk is full"), False, "the disk is full"),
        (PermissionError("no"), False, "no"),
        (RuntimeError("out of memory"), True, "RuntimeError: out of memory"),
    ],
)
def test_a_failure_names_its_run_also_after_travelling(cause, crashed, said):
    def failing(batch):
        raise cause

    with pytest.raises(RunFailedError) as raised:
        ByRun(lambda run: failing)({"run": np.array([7, 7])})
    for error in (raised.value, pickle.loads(pickle.dumps(raised.value)), RunFailedError.of(9, raised.value)):
        assert (error.run, is_crash(error.cause), str(error)) == (7, crashed, said)


class Foreign(RuntimeError):
    """Cannot be made again from what it was made of."""

    def __init__(self, code, place):
        super().__init__(f"{code} at {place}")


class Sealed(StorageError):
    """Cannot even be packed."""

    def __reduce__(self):
        raise TypeError("no")


def raised_by(cause):
    def failing(batch):
        raise cause

    with pytest.raises(RunFailedError) as caught:
        ByRun(lambda run: failing)({"run": np.array([3])})
    return caught.value


def test_in_the_same_process_it_is_the_very_exception():
    cause = KeyError("lost")
    assert raised_by(cause).original() is cause
    assert cause.__cause__ is None


@pytest.mark.parametrize(
    "cause", [MemoryError("no more"), StorageError("the disk is full"), FileNotFoundError(2, "no")]
)
def test_from_another_process_it_is_of_its_type_and_names_what_was_raised_there(cause):
    arrived = pickle.loads(pickle.dumps(raised_by(cause)))
    original = arrived.original()
    assert (type(original), str(original)) == (type(cause), str(cause))
    assert original.__cause__ is arrived


@pytest.mark.parametrize(
    ("cause", "kind", "said"),
    [
        (Foreign(7, "there"), RuntimeError, "Foreign: 7 at there"),
        (Sealed("the disk is full"), VBPError, "the disk is full"),
    ],
)
def test_a_cause_that_cannot_travel_leaves_its_sentence(cause, kind, said):
    arrived = pickle.loads(pickle.dumps(raised_by(cause)))
    assert (arrived.run, type(arrived.original()), str(arrived.original())) == (3, kind, said)


def test_a_refusal_names_its_run_but_of_a_run_alone():
    for name, said in (("big", "run big: no"), ("", "no")):
        with pytest.raises(UsageError, match=f"^{said}$"), naming(name):
            raise UsageError("no")
    with pytest.raises(StorageError, match="^no$"), naming("big"):
        raise StorageError("no")
