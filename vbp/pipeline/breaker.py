"""Breaker: stops a run whose store fails, before a million images become error rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from vbp.errors import InterruptedRunError, StorageError, VBPError

T = TypeVar("T")
R = TypeVar("R")


class Breaker:
    """Returns single failures as results; when most reads fail, it pauses, tries again, and then stops the run.

    It blames the store for a read that has no answer after retries (``StorageError``) or is refused
    (``PermissionError``).  It blames the image for a missing file, unless most files of a full window are missing,
    no read succeeds any more, or the whole input is gone: then a disk was lost, or the input was moved.

    Args:
        window: number of the latest reads that count.
        least: fewer failures of the store than this never stop the run.
        missing: this many reads without one success stop the run, whatever their errors: the input was moved.
        pause_seconds: wait before the failed reads are tried once more.
        sleep: function that waits; tests pass their own.
        is_gone: says whether the whole input is gone; called when a file is missing.
    """

    def __init__(
        self,
        window: int = 200,
        least: int = 10,
        missing: int = 50,
        pause_seconds: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._recent: deque[type[BaseException] | None] = deque(maxlen=window)
        self._least = least
        self._missing = missing
        self._pause_seconds = pause_seconds
        self._sleep = sleep
        self._is_gone = is_gone

    def watch(self, pool: Executor, read: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R | BaseException]:
        """The results of ``read(task)``, in order; an exception is returned as a value.

        Raises:
            InterruptedRunError: most of the latest reads failed, and failed again after the pause.
        """
        results = self._attempt(pool, read, tasks)
        if self._tripped() or self._input_is_gone(results):
            self._sleep(self._pause_seconds)
            failed = [i for i, result in enumerate(results) if isinstance(result, BaseException)]
            again = self._attempt(pool, read, [tasks[i] for i in failed])
            for i, result in zip(failed, again, strict=True):
                results[i] = result
            still = [result for result in again if isinstance(result, BaseException)]
            if len(still) > len(failed) / 2 or self._input_is_gone(again):
                raise InterruptedRunError(
                    f"Most of the last {len(self._recent)} reads failed, and again after {self._pause_seconds:g} s: "
                    f"{type(still[0]).__name__}: {still[0]}. Nothing was written for them; when the store answers, "
                    "or the disk is back, run the same command again."
                )
            self._recent.clear()
        return iter(results)

    def _attempt(self, pool: Executor, read: Callable[[T], R], tasks: Sequence[T]) -> list[R | BaseException]:
        def guarded(task: T) -> R | BaseException:
            try:
                return read(task)
            except (OSError, VBPError) as error:
                return error

        results = list(pool.map(guarded, tasks))
        self._recent.extend(type(result) if isinstance(result, BaseException) else None for result in results)
        return results

    def _tripped(self) -> bool:
        failures = [kind for kind in self._recent if kind is not None]
        in_store = [kind for kind in failures if issubclass(kind, (StorageError, PermissionError))]
        mostly = len(in_store) >= self._least and len(in_store) > len(self._recent) / 2
        lost = [kind for kind in failures if issubclass(kind, FileNotFoundError)]
        mostly_lost = len(lost) > (self._recent.maxlen or 0) / 2
        return mostly or mostly_lost or len(failures) == len(self._recent) >= self._missing

    def _input_is_gone(self, results: Sequence[object]) -> bool:
        return any(isinstance(result, FileNotFoundError) for result in results) and self._is_gone()
