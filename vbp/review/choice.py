"""Choose a few rows of many, independent of their order."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from typing import Any


class Choice:
    """Keeps the rows whose keys have the smallest digests under a seed.

    Args:
        most: number of rows to keep.
        seed: another seed chooses other rows.
    """

    def __init__(self, most: int, seed: int) -> None:
        self._most, self._seed = most, seed
        self._heap: list[tuple[int, str, dict[str, Any]]] = []

    def offer(self, rows: Iterable[dict[str, Any]]) -> None:
        """Consider these rows, which have different ``key``s."""
        for row in rows:
            digest = hashlib.sha256(f"{self._seed} {row['key']}".encode()).digest()
            item = (-int.from_bytes(digest[:8], "big"), row["key"], row)
            if len(self._heap) < self._most:
                heapq.heappush(self._heap, item)
            elif self._heap and item[:2] > self._heap[0][:2]:
                heapq.heapreplace(self._heap, item)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that are chosen so far, sorted by key."""
        return [row for _, _, row in sorted(self._heap, key=lambda item: item[1])]
