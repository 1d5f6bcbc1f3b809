"""Exceptions of workers, without Ray's wrapping."""

import pickle

from ray.exceptions import RayTaskError

from vbp.pipeline.failures import RunFailedError
from vbp.pipeline.on_ray.faults import cause_of


def test_a_failure_of_a_run_keeps_its_number_and_the_exception_that_was_raised():
    travelled = pickle.loads(pickle.dumps(RunFailedError.of(3, MemoryError("no more"))))
    error = RayTaskError("explain", "the traceback of the worker", travelled)
    failure = cause_of(error)
    assert isinstance(failure, RunFailedError)
    assert (failure.run, str(failure)) == (3, "MemoryError: no more")
    original = failure.original()
    assert (type(original), str(original)) == (MemoryError, "no more")
