"""Weights in oneDNN's layout for maps of one size; without it oneDNN would rearrange them in every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Size

LAYOUTS = 2
"""Number of map sizes for which a convolution keeps its weights in oneDNN's layout."""


class BySize:
    """A cache of values for the last few sizes.

    Args:
        make: computes the value for a size.
    """

    def __init__(self, make: Callable[[Size], Any]):
        self._make = make
        self._made: dict[Size, Any] = {}

    def __call__(self, size: Size) -> Any:
        """The value for this size."""
        found = self._made.get(size)
        if found is None:
            found = self._make(size)
            # assigned in one step, since batches run in parallel threads
            kept = self._made if len(self._made) < LAYOUTS else {}
            self._made = {**kept, size: found}
        return found
