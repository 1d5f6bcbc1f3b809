"""An attempt that freezes before one of its changes, like a stopped process, and goes on when it is told to."""

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from vbp.storage.ledger.held import Conditional, HeldFolder
from vbp.storage.ledger.lease import TAKE_OVER_AFTER
from vbp.storage.ledger.staged import StagedStore
from vbp.storage.stores.objects import ObjectStore

SILENCE = "0.6"
"""Seconds after which a frozen holder is succeeded in these tests."""


class Freezer:
    """Freezes the first attempt that is about to make a change that fits, in all its threads, its lease with it.

    It stops at the last moment there is: before the rename on a disk, before the request to an object store, after
    all looks.

    Args:
        monkeypatch: puts everything back.
        point: a pattern of ``<operation> <path>``, the operation one of replace, link, remove.
        count: the how manieth such change.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: str, count: int = 1):
        self.reached, self.thawed = threading.Event(), threading.Event()
        self._point, self._left, self._lock = re.compile(point), count, threading.Lock()
        self._frozen: str | None = None
        self._mine = threading.local()
        monkeypatch.setenv(TAKE_OVER_AFTER, SILENCE)
        for name, operation in (("_replace", "replace"), ("_link", "link"), ("_remove", "remove")):
            monkeypatch.setattr(StagedStore, name, self._stopping_on_disk(getattr(StagedStore, name), operation))
        for name in ("write", "delete"):
            monkeypatch.setattr(Conditional, name, self._telling_who(getattr(Conditional, name)))
        monkeypatch.setattr(HeldFolder, "take", self._taking(HeldFolder.take))
        for store in (ObjectStore, *ObjectStore.__subclasses__()):
            monkeypatch.setattr(store, "put_if", self._stopping(store.put_if, "replace"))
            monkeypatch.setattr(store, "delete", self._stopping(store.delete, "remove"))

    def _stopping_on_disk(self, method: Callable[..., Any], operation: str) -> Callable[..., Any]:
        def change(store: StagedStore, *arguments: Any) -> Any:
            path = arguments[0] if operation == "remove" else arguments[1]
            self._stop(store._staging.rpartition("/")[2], f"{operation} {path}")
            return method(store, *arguments)

        return change

    def _telling_who(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def change(store: Conditional, *arguments: Any) -> Any:
            self._mine.attempt = store._look.__self__.attempt
            try:
                return method(store, *arguments)
            finally:
                self._mine.attempt = None

        return change

    def _taking(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def take(folder: HeldFolder, *arguments: Any) -> Any:
            self._mine.attempt = folder.attempt
            try:
                return method(folder, *arguments)
            finally:
                self._mine.attempt = None

        return take

    def _stopping(self, method: Callable[..., Any], operation: str) -> Callable[..., Any]:
        def change(store: ObjectStore, path: str, *arguments: Any) -> Any:
            if attempt := getattr(self._mine, "attempt", None):
                self._stop(attempt, f"{operation} {path}")
            return method(store, path, *arguments)

        return change

    def _stop(self, attempt: str, change: str) -> None:
        with self._lock:
            if self._frozen is None and self._point.search(change):
                self._left -= 1
                if not self._left:
                    self._frozen = attempt
                    self.reached.set()
        if self._frozen == attempt:
            assert self.thawed.wait(120)


class Aside:
    """Work in a thread; its result, or what it raised."""

    def __init__(self, work: Callable[..., Any], *arguments: Any):
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work, arguments), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            self.result = work(*arguments)
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()
