"""Failures of runs: a sentence that says whether the same command may help, and the run to which it belongs."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vbp.errors import InterruptedRunError, StorageError, UsageError, VBPError


@contextmanager
def failures_as_sentences(*, before_work: bool) -> Iterator[None]:
    """Turn errors of storage into errors that say whether the same command may help.

    Raises:
        UsageError: before any work, a place cannot be used.
        InterruptedRunError: a store stopped answering, or refuses writes.
    """
    try:
        yield
    except (StorageError, OSError) as error:
        causes = (error, error.__cause__)
        if before_work and any(isinstance(cause, OSError) and not _may_pass(cause) for cause in causes):
            raise UsageError(str(error)) from error
        sentence = str(error).rstrip(".")
        raise InterruptedRunError(f"{sentence}. What was finished is kept; run the same command again.") from error


def _may_pass(error: OSError) -> bool:
    """Whether the same request may succeed later; not so for a missing, forbidden or misnamed file."""
    lasting = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
    return not isinstance(error, lasting)


@contextmanager
def naming(run: str) -> Iterator[None]:
    """Put the run's name before a refusal; a single run has no name."""
    try:
        yield
    except UsageError as error:
        if not run:
            raise
        raise UsageError(f"run {run}: {error}") from error


def is_crash(error: Exception) -> bool:
    """Whether an error is neither one of vbp nor one of the operating system."""
    return not isinstance(error, (VBPError, OSError))


def told(error: Exception) -> str:
    """An exception as one sentence; a crash also has its type."""
    return f"{type(error).__name__}: {error}" if is_crash(error) else str(error)


class RunFailedError(VBPError):
    """One of the runs that share workers cannot go on; the others can.

    Attributes:
        run: the run's number.
        cause: the exception that was raised, with its own type even if it comes from another process.
    """

    run: int
    cause: Exception

    @classmethod
    def of(cls, run: int, cause: Exception) -> RunFailedError:
        """A failure of run number `run`; a cause that is a `RunFailedError` already is returned unchanged."""
        if isinstance(cause, cls):
            return cause
        error = cls(told(cause))
        error.run, error.cause = run, cause
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        """Can be pickled even if the cause cannot."""
        try:
            packed = pickle.dumps(self.cause)
        except Exception:  # exceptions of other packages may hold anything
            packed = b""
        return _arrived, (self.run, packed, str(self), is_crash(self.cause))

    def original(self) -> Exception:
        """The cause; if it comes from another process, its ``__cause__`` is the exception there."""
        if self.cause is not self.__cause__:
            self.cause.__cause__ = self
        return self.cause


def _arrived(run: int, packed: bytes, said: str, crashed: bool) -> RunFailedError:
    try:
        cause = pickle.loads(packed)
    except Exception:  # its class is unknown here, or cannot be unpickled
        cause = RuntimeError(said) if crashed else VBPError(said)
    return RunFailedError.of(run, cause)


@contextmanager
def on_behalf_of(run: int) -> Iterator[None]:
    """Turn exceptions of the context into failures of run number `run`."""
    try:
        yield
    except Exception as error:
        raise RunFailedError.of(run, error) from error
