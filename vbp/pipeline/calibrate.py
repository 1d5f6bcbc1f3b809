"""``--precision int8``: the driver calibrates once, from images of the collection, and the scales stay with the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, Any

import numpy as np

from vbp.pipeline.recipe import Recipe
from vbp.pipeline.source import batch_of
from vbp.pipeline.steps import good_rows
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.manifest.rows import table_of, with_positions

if TYPE_CHECKING:
    from vbp.networks.models import Model

TRIED = 160
"""So many images are tried at most, where some cannot be read."""
TOGETHER = 16
"""Images that are read at a time."""
ENOUGH_PIXELS = 80 * 512 * 512
"""With more than these, few images are enough: those of ``--fit original`` may be large."""
FEW = 10


def calibrated(recipe: Recipe, model: Model, rows: Sequence[ManifestRow]) -> dict[str, Any]:
    """The scales of a run, as JSON values.

    Args:
        recipe: of the run; it says how to read and decode.
        model: the network.
        rows: images, the first ones first.

    Raises:
        UsageError: too few images can be read.
        ModelError: integers do not suit the network.
        InterruptedRunError: the store refuses or does not answer most of the time.
    """
    from vbp.explainer import Explainer
    from vbp.saliency.prepared.calibration import IMAGES

    pixels = _pixels(recipe, rows, IMAGES)
    engine = recipe.explain_arguments()["engine"] | {"model": model, "side_by_side": False, "calibration": pixels}
    scales = Explainer(**engine, classify=False).scales
    assert scales is not None
    return scales.as_json()


class Choice:
    """Up to `TRIED` of all images that pass by: those whose keys have the least hashes.

    That is chance which is the same every time, and in which order they come plays no part.

    Args:
        limit: only so many of them count; None: all.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._ranks: list[int] = []
        """A heap, the greatest first, so negative."""
        self._rows: dict[int, ManifestRow] = {}

    def watch(self, rows: Iterable[ManifestRow]) -> Iterator[ManifestRow]:
        """The rows, unchanged."""
        for number, row in enumerate(rows):
            if self._limit is None or number < self._limit:
                self._look_at(row)
            yield row

    @property
    def rows(self) -> list[ManifestRow]:
        """Those chosen so far, the least hash first."""
        return [self._rows[rank] for rank in sorted(self._rows)]

    def _look_at(self, row: ManifestRow) -> None:
        rank = int.from_bytes(hashlib.sha256(row.key.encode()).digest())
        if rank in self._rows:  # a manifest file may name an image twice
            return
        self._rows[rank] = row
        if len(self._rows) <= TRIED:
            heappush(self._ranks, -rank)
        else:
            del self._rows[-heappushpop(self._ranks, -rank)]


def _pixels(recipe: Recipe, rows: Sequence[ManifestRow], count: int) -> list[np.ndarray]:
    """Of the first so many that can be read, uint8 (H, W, 3) each; fewer where they are large."""
    fetch, decode = recipe.fetch(), recipe.decode()
    found: list[np.ndarray] = []
    for start in range(0, len(rows), TOGETHER):
        batch = decode(fetch(batch_of(with_positions(table_of(rows[start : start + TOGETHER])))))
        for row in good_rows(batch):
            found.append(batch["pixels"][row])
            seen = sum(pixels_HWC.shape[0] * pixels_HWC.shape[1] for pixels_HWC in found)
            if len(found) == count or (seen >= ENOUGH_PIXELS and len(found) >= FEW):
                return found
    return found
