"""What methods explain: the subject, a network with the settings of a run; and what they are given: a batch.

Shapes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from vbp.saliency.geometry import Size
from vbp.saliency.graph import unwrapped
from vbp.saliency.method import Method
from vbp.saliency.trace import Trace, trace

SIZES = 8
"""Number of image sizes for which a network that computes with sizes is kept opened."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class Batch:
    """Images of one size, as a method is given them; no method changes them."""

    images_BCHW: Tensor
    """float32, as the network takes them, on its device."""
    pixels_BHWC: NDArray[np.uint8]
    """The same images as RGB."""
    classes_B: Tensor | None
    """int64, the classes to explain, on the network's device; None without a classifier."""

    @property
    def classes(self) -> Tensor:
        """The classes, for a method that needs them."""
        if self.classes_B is None:
            raise ValueError("this method needs classes_B.")
        return self.classes_B


Saliency = Callable[[Batch], Tensor | NDArray[np.floating]]
"""A method for one network: values >= 0 of shape (B, H, W)."""


class Subject:
    """A network to explain, and the settings of the run.

    Args:
        network: in any mode; it is not changed.
        method: the settings of VisualBackProp.
        seed: of whatever is random.
    """

    def __init__(self, network: nn.Module, method: Method, seed: int):
        self.network = unwrapped(network)
        self.method = method
        self.seed = seed

    @cached_property
    def _trace(self) -> Trace:
        asked = [self.method.stages] if isinstance(self.method.stages, str) else self.method.stages
        return trace(self.network, partial=not {"all", "last"}.issuperset(asked))

    def at_size(self, make: Callable[[Trace], Made]) -> Callable[[Tensor], Made]:
        """What `make` gives for the network's trace at the size of some images (B, C, H, W); made once a size."""
        kept: dict[Size | None, Made] = {}

        def of(images_BCHW: Tensor) -> Made:
            channels, rows, columns = images_BCHW.shape[1:]
            size = (rows, columns) if self._trace.sized else None
            if size not in kept:
                if len(kept) == SIZES:
                    del kept[next(iter(kept))]
                kept[size] = make(self._trace.at(self.network, (2, channels, rows, columns)))
            return kept[size]

        return of
