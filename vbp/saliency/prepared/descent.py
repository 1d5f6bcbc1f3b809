"""The way down in few kernels, for devices on which each one costs more than its arithmetic.

`Window.deconvolve` adds shifted copies, one operation each. Here a window is one operation where it can be: an average
pooling that does not divide, or a copy of every value to all places of its window. Any other is two products with
matrices of ones. Values differ from those of `Window.deconvolve` by rounding.

Shapes: N images, 1 channel; H rows and W columns below, h and w above; a size is (rows, columns).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vbp.saliency.geometry import Geometry, Merged, Pooling, Size, Stage, Window, rewritten, spread

LARGEST_BOX = 81
"""Values in a window that are added one by one; matrices are faster for more."""
KEPT = 512
"""Matrices of one length each that are kept for the next batch."""


def in_few_kernels(stages: Iterable[Stage], switched: Iterable[str] = ()) -> tuple[Stage, ...]:
    """The stages with their windows led down in few kernels.

    Args:
        stages: the stages.
        switched: nodes of poolings that stay as they are, because they are replaced for each batch.
    """
    stays = frozenset(switched)

    def quicken(steps: tuple[Geometry, ...]) -> Iterator[Geometry]:
        for step in steps:
            if isinstance(step, Merged) or (type(step) is Window) or (type(step) is Pooling and step.node not in stays):
                step = FewKernels(step)
            yield step

    return tuple(rewritten(stage, quicken) for stage in stages)


@dataclass(frozen=True)
class FewKernels:
    """A window, or several merged into one, whose deconvolution is one or two operations."""

    of: Window | Merged

    def output_size(self, size: Size) -> Size:
        """As for the window."""
        return self.of.output_size(size)

    def deconvolve(self, map_N1HW: Tensor, size: Size) -> Tensor:
        """See `Window.deconvolve`."""
        if isinstance(self.of, Window):
            if _is_dense(self.of) and self.of.stride == (1, 1) and self.of.kernel[0] * self.of.kernel[1] <= LARGEST_BOX:
                return _box(map_N1HW, self.of, size)
            if _is_dense(self.of) and self.of.stride == self.of.kernel and self.of.before == (0, 0):
                return _copies(map_N1HW, self.of.kernel, size)
        rows_Hh, columns_Ww = (_ones(self.of, axis, map_N1HW.shape[axis + 2], size[axis], map_N1HW) for axis in (0, 1))
        # A user's autocast would round the products to 16 bits.
        with torch.autocast(map_N1HW.device.type, enabled=False):
            return rows_Hh @ map_N1HW @ columns_Ww.T


def _is_dense(window: Window) -> bool:
    """Whether a window has no holes."""
    return all(spread == 1 or length == 1 for spread, length in zip(window.dilation, window.kernel, strict=True))


def _box(map_N1HW: Tensor, window: Window, size: Size) -> Tensor:
    """A window of stride 1: every pixel below gets the sum of the values whose windows cover it."""
    if window.kernel == (1, 1) and window.before == (0, 0) and map_N1HW.shape[2:] == size:
        return map_N1HW
    firsts = [length - 1 - before for length, before in zip(window.kernel, window.before, strict=True)]
    lasts = [size[axis] - map_N1HW.shape[axis + 2] + window.before[axis] for axis in (0, 1)]
    if firsts == lasts and all(0 <= first <= length // 2 for first, length in zip(firsts, window.kernel, strict=True)):
        return F.avg_pool2d(map_N1HW, window.kernel, 1, (firsts[0], firsts[1]), divisor_override=1)
    padded_N1HW = F.pad(map_N1HW, (firsts[1], lasts[1], firsts[0], lasts[0]))
    return padded_N1HW if window.kernel == (1, 1) else F.avg_pool2d(padded_N1HW, window.kernel, 1, divisor_override=1)


def _copies(map_N1HW: Tensor, kernel: Size, size: Size) -> Tensor:
    """Windows side by side: every value goes to all places of its window."""
    images, _, rows, columns = map_N1HW.shape
    spread = map_N1HW.view(images, 1, rows, 1, columns, 1).expand(-1, -1, -1, kernel[0], -1, kernel[1])
    map_N1HW = spread.reshape(images, 1, rows * kernel[0], columns * kernel[1])
    missing = [length - found for length, found in zip(size, map_N1HW.shape[2:], strict=True)]
    return F.pad(map_N1HW, (0, missing[1], 0, missing[0])) if any(missing) else map_N1HW


def _ones(geometry: Window | Merged, axis: int, above: int, below: int, like: Tensor) -> Tensor:
    return _matrix(geometry, axis, above, below, like.dtype, like.device)


@lru_cache(maxsize=KEPT)
def _matrix(
    geometry: Window | Merged, axis: int, above: int, below: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """How often each position below lies in the window of each one above, along one axis: (below, above)."""
    with torch.inference_mode(False):
        unit = torch.eye(above, dtype=dtype).view(above, 1, above, 1)
        return spread(unit, 0, *geometry.taps(axis), below)[:, 0, :, 0].T.contiguous().to(device)
