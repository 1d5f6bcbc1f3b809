"""``--precision int8``: the driver calibrates once, on images of the collection, and the run keeps the scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vbp.pipeline.recipe import Recipe
from vbp.pipeline.source import batch_of
from vbp.pipeline.steps import good_rows
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.manifest.rows import table_of, with_positions

if TYPE_CHECKING:
    from vbp.networks.model import Model

TRIED = 160
"""The most images that are tried, if some of them cannot be read."""
TOGETHER = 16
"""Images that are read together."""
ENOUGH_PIXELS = 80 * 512 * 512
"""Calibration stops at this many pixels, after at least `FEW` images; those of ``--fit original`` may be large."""
FEW = 10


def calibrated(recipe: Recipe, model: Model, rows: Sequence[ManifestRow]) -> dict[str, Any]:
    """The scales of a run, as JSON values.

    Args:
        recipe: the run's recipe, which says how to read and decode.
        model: the network.
        rows: the images to try, in order.

    Raises:
        UsageError: too few images can be read.
        ModelError: the network cannot be computed with integers.
        InterruptedRunError: the store refuses or does not answer most of the time.
    """
    from vbp.explainer import Explainer
    from vbp.saliency.prepared.calibration import IMAGES

    pixels = _pixels(recipe, rows, IMAGES)
    engine = recipe.explain_arguments()["engine"] | {"model": model, "side_by_side": False, "calibration": pixels}
    scales = Explainer(**engine, classify=False).scales
    assert scales is not None
    return scales.as_json()


def _pixels(recipe: Recipe, rows: Sequence[ManifestRow], count: int) -> list[np.ndarray]:
    """Pixels, uint8 (H, W, 3), of the first `count` images that can be read; of fewer if they are large."""
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
