"""How much masks change in int8: each photo's mask is compared with that in float32.

``python -m vbp.evidence.int8 PHOTOS docs/int8.md --weights vgg16_features.safetensors`` writes the table. It calibrates
as the main job does: on the photos themselves, chosen by the hashes of their keys; with ``--calibrate-on FOLDER`` on
those of another collection as well, which shows what it costs to calibrate on other images.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vbp.evidence.page import table
from vbp.evidence.timing import machine
from vbp.explainer import Explainer
from vbp.images.decode import decode
from vbp.networks.model import Model
from vbp.networks.models import load_model
from vbp.pipeline.calibrate import TRIED
from vbp.pipeline.sample import Choice
from vbp.saliency.prepared.calibration import IMAGES, LEAST_CORRELATION
from vbp.saliency.prepared.int8 import Scales
from vbp.storage.collections.tree import list_tree
from vbp.storage.files import Folder

BRIGHTEST = 0.05
"""Of a mask's pixels."""
BATCH_SIZE = 2

Mask = NDArray[np.float32]
Photos = dict[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Likeness:
    """How alike a mask in int8 and the one in float32 are."""

    pearson: float
    difference: float
    """The largest, of values from 0 to 1."""
    iou: float
    """Of the brightest twentieth of both: what both have over what one has."""

    @classmethod
    def of(cls, mask_HW: Mask, exact_HW: Mask) -> Likeness:
        """Compare two masks."""
        bright, exact = brightest(mask_HW), brightest(exact_HW)
        return cls(
            pearson=float(np.corrcoef(mask_HW.ravel(), exact_HW.ravel())[0, 1]),
            difference=float(np.abs(mask_HW - exact_HW).max()),
            iou=float((bright & exact).sum() / (bright | exact).sum()),
        )

    @property
    def cells(self) -> tuple[str, str, str]:
        """For the table."""
        return f"{self.pearson:.5f}", f"{self.difference:.3f}", f"{self.iou:.3f}"


def brightest(mask_HW: Mask) -> NDArray[np.bool_]:
    """Where a mask has its brightest twentieth; of equal values the first ones."""
    order = np.argsort(-mask_HW.ravel(), kind="stable")
    found = np.zeros(mask_HW.size, bool)
    found[order[: round(BRIGHTEST * mask_HW.size)]] = True
    return found.reshape(mask_HW.shape)


def photos_of(folder: str) -> Photos:
    """The pixels of a tree's images by key, those with which a job would calibrate first."""
    choice, source = Choice(TRIED), Folder(folder)
    deque(choice.watch(list_tree(source)), maxlen=0)
    return {row.key: decode(source.read(os.fsdecode(row.path or b""))).pixels_HWC for row in choice.rows}


def calibrated(model: Model, photos: Photos) -> Scales:
    """The scales that a job finds with these photos."""
    engine = Explainer(
        model, device="cpu", precision="int8", classify=False, calibration=list(photos.values())[:IMAGES]
    )
    assert engine.scales is not None
    return engine.scales


def masks(model: Model, photos: Photos, scales: Scales | None) -> NDArray[np.float32]:
    """The masks of all photos, in int8 with these scales, or in float32."""
    engine = Explainer(
        model, device="cpu", precision="int8" if scales else "float32", batch_size=BATCH_SIZE, classify=False,
        calibration=scales,
    )  # fmt: skip
    return engine(np.stack(list(photos.values()))).mask_BHW


def section(name: str, model: Model, photos: Photos, others: Photos | None) -> Iterator[str]:
    """The table of one network."""
    exact = masks(model, photos, None)

    def likenesses(scales: Scales) -> list[Likeness]:
        found = masks(model, photos, scales)
        return [Likeness.of(mask_HW, exact_HW) for mask_HW, exact_HW in zip(found, exact, strict=True)]

    own = calibrated(model, photos)
    found = likenesses(own)
    yield f"## {name}\n"
    rows = [(f"calibrated on these, {_floats(own)}", *cells) for cells in _summary(found)]
    if others:
        foreign = calibrated(model, others)
        title = f"calibrated on {min(len(others), IMAGES)} others, {_floats(foreign)}"
        rows += [(title, *cells) for cells in _summary(likenesses(foreign))]
    head = ("Pearson", "largest difference", "IoU of the brightest twentieth")
    yield table(("scales", "of all photos", *head), rows) + "\n"
    each = sorted(zip(photos, found, strict=True))
    yield table(("photo", *head), [(key, *likeness.cells) for key, likeness in each]) + "\n"


def _floats(scales: Scales) -> str:
    return f"{len(scales.floats) or 'no'} convolutions in float32"


def _summary(found: Sequence[Likeness]) -> Iterator[tuple[str, ...]]:
    pearson, difference, iou = (np.array([getattr(each, name) for each in found]) for name in _NAMES)
    worst = Likeness(pearson.min(), difference.max(), iou.min())
    middle = Likeness(*(float(np.median(values)) for values in (pearson, difference, iou)))
    yield "worst", *worst.cells
    yield "median", *middle.cells


_NAMES = ("pearson", "difference", "iou")


def introduction(count: int) -> str:
    """What was measured, and on what."""
    told = ", ".join(f"{name} {value}" for name, value in machine("cpu").items() if name in ("cpu", "torch"))
    return (
        "# What int8 costs in masks\n\n"
        "Made by `python -m vbp.evidence.int8`. Masks of "
        f"{count} photos in int8 beside those in float32, values from 0 to 1, at 224x224.\n"
        f"Calibrated as a job does; each mask that decides had to reach {LEAST_CORRELATION}.\n\n"
        f"{told}.\n"
    )


def main() -> None:
    """Compare the masks and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.int8", description=__doc__)
    parser.add_argument("photos", help="a folder of images")
    parser.add_argument("file", type=Path, help="the page to write")
    parser.add_argument("--model", nargs="+", default=["vgg16"])
    parser.add_argument("--weights", nargs="+", default=["imagenet"], help="of each network")
    parser.add_argument("--calibrate-on", metavar="FOLDER", help="a folder of other images")
    options = parser.parse_args()
    photos = photos_of(options.photos)
    others = photos_of(options.calibrate_on) if options.calibrate_on else None
    parts = [introduction(len(photos))]
    for name, weights in zip(options.model, options.weights, strict=True):
        title = f"{name}, {'random weights' if weights == 'random' else Path(weights).name}"
        parts += section(title, load_model(name, weights), photos, others)
        options.file.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
