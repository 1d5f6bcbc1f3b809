"""What a failure becomes: a sentence that says whether the same command helps, and the run that it belongs to."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vbp.errors import InterruptedRunError, StorageError, UsageError, VBPError


@contextmanager
def failures_as_sentences(*, before_work: bool) -> Iterator[None]:
    """Failures of storage as errors that say whether the same command may help.

    Raises:
        UsageError: before any work, a place cannot be used as it is.
        InterruptedRunError: a store stopped answering, or does not take what is written.
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
    """Whether the same request may go through later: unlike a missing, forbidden or misnamed file."""
    lasting = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
    return not isinstance(error, lasting)


@contextmanager
def naming(run: str) -> Iterator[None]:
    """Refusals say which run they are of; one that runs alone has no name."""
    try:
        yield
    except UsageError as error:
        if not run:
            raise
        raise UsageError(f"run {run}: {error}") from error


def is_crash(error: Exception) -> bool:
    """Whether it is none that is raised on purpose, nor one of the system."""
    return not isinstance(error, (VBPError, OSError))


def told(error: Exception) -> str:
    """An exception as one sentence; a crash with its type."""
    return f"{type(error).__name__}: {error}" if is_crash(error) else str(error)


class RunFailedError(VBPError):
    """One of the runs that share workers cannot go on; the others can.

    Attributes:
        run: its number.
        cause: the exception that was raised for it, of its own type also where it comes from another process.
    """

    run: int
    cause: Exception

    @classmethod
    def of(cls, run: int, cause: Exception) -> RunFailedError:
        """A failure of run number `run`; one that names its run already stays as it is."""
        if isinstance(cause, cls):
            return cause
        error = cls(told(cause))
        error.run, error.cause = run, cause
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels also where the cause cannot."""
        try:
            packed = pickle.dumps(self.cause)
        except Exception:  # whatever a foreign exception has in it
            packed = b""
        return _arrived, (self.run, packed, str(self), is_crash(self.cause))

    def original(self) -> Exception:
        """The cause; one of another process names what was raised there as its own cause."""
        if self.cause is not self.__cause__:
            self.cause.__cause__ = self
        return self.cause


def _arrived(run: int, packed: bytes, said: str, crashed: bool) -> RunFailedError:
    try:
        cause = pickle.loads(packed)
    except Exception:  # its class is not known here, or cannot be made again
        cause = RuntimeError(said) if crashed else VBPError(said)
    return RunFailedError.of(run, cause)


@contextmanager
def on_behalf_of(run: int) -> Iterator[None]:
    """What is raised within is a failure of run number `run`."""
    try:
        yield
    except Exception as error:
        raise RunFailedError.of(run, error) from error
