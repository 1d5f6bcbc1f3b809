"""Weights as oneDNN wants them for maps of one size; told no size, it would lay them out again in every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Size

LAYOUTS = 2
"""For so many sizes of its map a convolution keeps its weights laid out."""


class BySize:
    """Remembers what was made for the last few sizes.

    Args:
        make: makes it.
    """

    def __init__(self, make: Callable[[Size], Any]):
        self._make = make
        self._made: dict[Size, Any] = {}

    def __call__(self, size: Size) -> Any:
        """What is made for this size."""
        found = self._made.get(size)
        if found is None:
            found = self._make(size)
            # in one step, since batches run side by side
            kept = self._made if len(self._made) < LAYOUTS else {}
            self._made = {**kept, size: found}
        return found
