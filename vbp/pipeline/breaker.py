"""Breaker: notices that a store, not the images, is at fault, before a million error rows are written."""

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
    """Lets single failures through as results, pauses on mass failure, then stops the run.

    A failure lies in the store when there is no answer after retries (``StorageError``) or a refusal
    (``PermissionError``).  A missing file is an image's own failure, unless most of a full window is missing, nothing
    at all is found any more, or the whole input is gone: then a disk was lost, or the input has moved.

    Args:
        window: how many of the last reads are looked at.
        least: fewer failures in the store than this never trip.
        missing: so many reads without a single success trip, whatever their failures: the input has moved.
        pause_seconds: the wait before the failed reads are tried once more.
        sleep: the waiting itself; tests pass their own.
        is_gone: whether the input as a whole is gone; asked where a file is missing.
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
        """The results of ``read(task)``, in order, exceptions as values.

        Raises:
            InterruptedRunError: most of the last reads failed, and did so again after a pause.
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
