"""Prefetch listings: one stream of their files in order, while threads read the next listings ahead.

Pages that were read ahead wait on the disk.  A queue in memory would have to be short, and a full queue blocks its
thread: long listings would take as long as without threads.  Memory holds a page of ``PAGE`` files for each of the
``AHEAD`` threads; the disk holds at most ``PAGES`` pages for each thread, together about 2 GB.
"""

import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from queue import SimpleQueue
from threading import Semaphore
from typing import TypeAlias

from vbp.storage.stores.store import File

AHEAD = 16
PAGE = 1000
PAGES = 1000

Listing: TypeAlias = Callable[[], Iterator[File]]
"""A function that starts a listing."""


def one_after_the_other(listings: Iterable[Listing]) -> Iterator[File]:
    """The files of the first listing, then those of the second, and so on.

    If the caller stops early, it waits for running requests; no thread and no file stays behind.

    Raises:
        Exception: an error of a listing, raised when its turn comes.
    """
    waiting: deque[_Pages] = deque()
    with tempfile.TemporaryDirectory(prefix="vbp-") as folder, ThreadPoolExecutor(AHEAD, "vbp-list") as pool:
        try:
            for number, listing in enumerate(listings):
                waiting.append(_Pages(Path(folder), number))
                pool.submit(waiting[-1].put_all, listing)
                if len(waiting) == AHEAD:
                    yield from waiting[0].take_all()
                    waiting.popleft()
            while waiting:
                yield from waiting[0].take_all()
                waiting.popleft()
        finally:
            for pages in waiting:
                pages.leave()


class _Pages:
    """The pages of one listing, between the thread that lists and the reader."""

    def __init__(self, folder: Path, number: int):
        self._folder, self._number = folder, number
        self._ready: SimpleQueue[Path | Exception | None] = SimpleQueue()
        self._room = Semaphore(PAGES)
        self._is_left = False

    def put_all(self, listing: Listing) -> None:
        try:
            files = listing()
            for number in count():
                self._room.acquire()
                page = [] if self._is_left else list(islice(files, PAGE))
                if not page:
                    break
                path = self._folder / f"{self._number}-{number}"
                path.write_text(json.dumps(page))
                self._ready.put(path)
            self._ready.put(None)
        except Exception as error:
            self._ready.put(error)

    def take_all(self) -> Iterator[File]:
        while path := self._ready.get():
            if isinstance(path, Exception):
                try:
                    raise path
                finally:
                    del path  # else this frame holds the error, whose traceback holds the frame
            page = json.loads(path.read_text())
            path.unlink()
            self._room.release()
            yield from (File(*fields) for fields in page)

    def leave(self) -> None:
        self._is_left = True
        self._room.release()
