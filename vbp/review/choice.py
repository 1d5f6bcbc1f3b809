"""A few rows of many, the same ones whatever the order they come in."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from typing import Any


class Choice:
    """Keeps the rows whose keys have the smallest digests under a seed.

    Args:
        most: how many.
        seed: another one chooses others.
    """

    def __init__(self, most: int, seed: int) -> None:
        self._most, self._seed = most, seed
        self._heap: list[tuple[int, str, dict[str, Any]]] = []

    def offer(self, rows: Iterable[dict[str, Any]]) -> None:
        """Consider these; each has a ``key`` of its own."""
        for row in rows:
            digest = hashlib.sha256(f"{self._seed} {row['key']}".encode()).digest()
            item = (-int.from_bytes(digest[:8], "big"), row["key"], row)
            if len(self._heap) < self._most:
                heapq.heappush(self._heap, item)
            elif self._heap and item[:2] > self._heap[0][:2]:
                heapq.heapreplace(self._heap, item)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Those chosen so far, by key."""
        return [row for _, _, row in sorted(self._heap, key=lambda item: item[1])]
