"""A sample of a collection: chosen by the images' names, in one pass over the listing."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappush, heappushpop

from vbp.storage.collections.tree import ManifestRow
from vbp.storage.manifest.rows import order_of


class Choice:
    """Chooses some images of a stream: those whose keys have the smallest SHA-256.

    The choice is as good as random, the same in every run, and independent of the order of the stream.

    Args:
        most: how many at most.
        limit: only the first `limit` images of the stream are considered; None: all.
    """

    def __init__(self, most: int, limit: int | None = None) -> None:
        self._most, self._limit = most, limit
        self._ranks: list[int] = []
        """A heap of the negated hashes, so that the largest hash comes first."""
        self._rows: dict[int, ManifestRow] = {}

    def watch(self, rows: Iterable[ManifestRow]) -> Iterator[ManifestRow]:
        """Yield the rows unchanged, and consider each of them."""
        for number, row in enumerate(rows):
            if self._limit is None or number < self._limit:
                self._look_at(row)
            yield row

    @property
    def rows(self) -> list[ManifestRow]:
        """The images that are chosen so far, the smallest hash first."""
        return [self._rows[rank] for rank in sorted(self._rows)]

    def _look_at(self, row: ManifestRow) -> None:
        rank = int.from_bytes(hashlib.sha256(row.key.encode()).digest())
        if rank in self._rows:  # a manifest file may name an image twice
            return
        self._rows[rank] = row
        if len(self._rows) <= self._most:
            heappush(self._ranks, -rank)
        else:
            del self._rows[-heappushpop(self._ranks, -rank)]


def sampled(rows: Iterable[ManifestRow], most: int) -> Iterator[ManifestRow]:
    """At most `most` of the rows, as `Choice` chooses them, in the order of a listing."""
    choice = Choice(most)
    deque(choice.watch(rows), maxlen=0)
    yield from sorted(choice.rows, key=order_of)
