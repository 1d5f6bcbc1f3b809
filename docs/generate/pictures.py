"""Draws the pictures of README and the site: ``python -m docs.generate.pictures`` writes them to ``docs/pictures``.

All of them show scenes of ``vbp demo``, explained with the weights that the package carries. Nothing is downloaded.

Shapes: H, W = height and width in pixels, h, w = those of a feature map, 3 = RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vbp.demo.scenes import Scene, draw
from vbp.demo.show import SEED
from vbp.explainer import ExplainedBatch
from vbp.images.overlay import heat
from vbp.saliency import Explainer

FOLDER = Path(__file__).parents[1] / "pictures"
SHOWN = (10, 9, 13, 23, 6)
"""Numbers of the demo's scenes on the overview; in the last one the network looks at a distractor."""
EXPLAINED = 9
"""Number of the scene whose way from the maps to the mask is drawn."""
CELL = 176
"""Side of one picture, in pixels."""
GAP, LABEL = 6, 24
STEPS = (0, 3, 6, 9, 12)
"""One stage of VGG16 for each size of its maps: conv1_1, conv2_2, conv3_3, conv4_3, conv5_3."""
NAMES = ("conv1_1", "conv2_2", "conv3_3", "conv4_3", "conv5_3")

Picture = NDArray[np.uint8]


def main() -> None:
    """Draw all pictures."""
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    scenes = [scene_of(number) for number in SHOWN]
    explained = explain(scenes)
    rows = [
        (scene.pixels_HWC, grey(mask), heat(scene.pixels_HWC, mask))
        for scene, mask in zip(scenes, explained.mask_BHW, strict=True)
    ]
    columns = [[row[kind] for row in rows] for kind in range(3)]
    save("overview.jpg", grid(columns, left=("image", "mask", "overlay")))

    scene = scene_of(EXPLAINED)
    one = explain([scene])
    assert one.maps is not None
    assert one.masks is not None
    maps = [root(one.maps[step][0]) for step in STEPS]
    masks = [root(one.masks[step][0]) for step in STEPS]
    sizes = [
        f"{name}  {one.maps[step].shape[1]}x{one.maps[step].shape[2]}" for name, step in zip(NAMES, STEPS, strict=True)
    ]
    save("maps.jpg", grid([maps], above=sizes))
    save("way-down.jpg", grid([masks[::-1]], above=sizes[::-1]))
    mask_HW = one.mask_BHW[0]
    last = [scene.pixels_HWC, grey(mask_HW), root(mask_HW), heat(scene.pixels_HWC, mask_HW)]
    save("mask.jpg", grid([last], above=("image", "mask", "its square root", "overlay")))


def scene_of(number: int) -> Scene:
    """A scene of ``vbp demo``, by its number."""
    return draw(SEED, number, distractors=int((number + 1) * 0.3) > int(number * 0.3))


def explain(scenes: Sequence[Scene]) -> ExplainedBatch:
    """Masks, maps and intermediate masks of scenes by the demo's network."""
    explainer = Explainer(model="vgg16", weights="demo", device="cpu", precision="float32", keep_maps=True)
    return explainer(np.stack([scene.pixels_HWC for scene in scenes]))


def grey(mask_HW: NDArray[np.float32]) -> Picture:
    """A mask as its PNG shows it."""
    return np.repeat((255 * mask_HW + 0.5).astype(np.uint8)[..., None], 3, axis=2)


def root(map_hw: NDArray[np.float32]) -> Picture:
    """The square root of a map, stretched to its maximum: faint parts show."""
    return grey(np.sqrt(map_hw / max(float(map_hw.max()), 1e-30)))


def grid(rows: Sequence[Sequence[Picture]], above: Sequence[str] = (), left: Sequence[str] = ()) -> Image.Image:
    """Pictures in rows and columns on white, with names above the columns and left of the rows."""
    top, side = LABEL * bool(above), LABEL * bool(left)
    width = side + len(rows[0]) * (CELL + GAP) - GAP
    height = top + len(rows) * (CELL + GAP) - GAP
    sheet = Image.new("RGB", (width, height), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            how = Image.Resampling.NEAREST if picture.shape[0] < CELL else Image.Resampling.LANCZOS
            cell = Image.fromarray(picture).resize((CELL, CELL), how)
            sheet.paste(cell, (side + column * (CELL + GAP), top + row * (CELL + GAP)))
    for column, name in enumerate(above):
        sheet.paste(label(name), (side + column * (CELL + GAP), 0))
    for row, name in enumerate(left):
        sheet.paste(label(name).rotate(90, expand=True), (0, top + row * (CELL + GAP)))
    return sheet


def label(text: str) -> Image.Image:
    """A line of text, centred over a picture."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 14)  # comes with matplotlib
    strip = Image.new("RGB", (CELL, LABEL), "white")
    ImageDraw.Draw(strip).text((CELL / 2, LABEL / 2), text, "black", font, anchor="mm")
    return strip


def save(name: str, sheet: Image.Image, quality: int = 82) -> None:
    """Write one picture."""
    sheet.save(FOLDER / name, quality=quality, optimize=True)


if __name__ == "__main__":
    main()
