"""Generated scenes: one labelled object each, on a natural-looking background, with the true pixels of the object.

A scene is painted in three layers, each from its own random stream, so that leaving one out changes nothing in
the others: a background (gradient, 1/f noise, soft blobs, rocks and hills with hard edges), at times distractors,
and the object. Distractors are painted by the very function that paints objects - same sizes, textures, colours,
shading - and differ in one thing only: their outline belongs to no class. Texture and colour say nothing about
the class either.

Shapes: H, W the scene's height and width (equal here), 2 for (x, y) points, 3 for RGB. Painting is done in
float32, 0 to 1; a Scene holds uint8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from vbp.demo.outlines import CLASSES, DISTRACTORS, Loops

Floats = NDArray[np.float32]
OBJECT_RADIUS = (0.1, 0.24)
"""Least and greatest radius of an object or distractor, as a share of the scene's side."""

_SUPERSAMPLING = 4
_BACKGROUND, _OBJECT, _DISTRACTORS, _LABELS = range(4)  # the random streams of a scene


@dataclass(frozen=True)
class Scene:
    """One generated image and what is known about it.

    Attributes:
        name: file name stem, unique within one seed.
        label: the object's class, one of ``CLASSES``.
        pixels_HWC: uint8 RGB.
        object_HW: bool, true where the object covers at least half of the pixel.
        distractors: whether the scene holds distractors.
    """

    name: str
    label: str
    pixels_HWC: NDArray[np.uint8]
    object_HW: NDArray[np.bool_]
    distractors: bool


def generate(count: int, seed: int, size: int = 224, distractor_share: float = 0.3) -> Iterator[Scene]:
    """Yield ``count`` scenes; scene number i depends on the seed and i, never on the count.

    Every run of ``len(CLASSES)`` scenes holds each class once, and every leading part of the sequence holds the
    stated share of scenes with distractors, to within one scene.

    Args:
        count: number of scenes.
        seed: any non-negative integer; equal seeds give equal scenes.
        size: side in pixels.
        distractor_share: share of scenes with distractors, 0 to 1.

    Raises:
        ValueError: a share outside 0 to 1.
    """
    if not 0 <= distractor_share <= 1:
        raise ValueError(f"distractor_share={distractor_share} must lie between 0 and 1.")
    for index in range(count):
        distractors = int((index + 1) * distractor_share) > int(index * distractor_share)
        yield draw(seed, index, size=size, distractors=distractors)


def draw(
    seed: int,
    index: int,
    *,
    size: int = 224,
    unit: int | None = None,
    distractors: bool = False,
    with_object: bool = True,
) -> Scene:
    """Paint scene number ``index`` of a seed.

    Args:
        seed: names the sequence of scenes.
        index: position in the sequence.
        size: side in pixels.
        unit: the side, in pixels, that object radii are a share of; ``size`` if None. A greater unit shows
            objects at the scale of a greater scene in a smaller field of view.
        distractors: paint one to three distractors.
        with_object: False leaves the object out, and everything else as it is; the label is then the label of
            the object left out.
    """
    label = _label(seed, index)
    canvas_HW3 = _paint_background(_rng(seed, index, _BACKGROUND), size)
    rng = _rng(seed, index, _OBJECT)
    thing = _place(rng, size, unit or size)
    if distractors:
        _paint_distractors(_rng(seed, index, _DISTRACTORS), canvas_HW3, thing, unit or size)
    coverage_HW = np.zeros((size, size), np.float32)
    if with_object:
        coverage_HW = _paint(rng, canvas_HW3, thing, CLASSES[label]())
    pixels_HWC = (np.clip(canvas_HW3, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(f"scene-{seed}-{index:05d}", label, pixels_HWC, coverage_HW >= 0.5, distractors)


def write_tree(
    images: Path, truths: Path, count: int, seed: int, size: int = 224, distractor_share: float = 0.3
) -> list[Scene]:
    """Write scenes as ``images/<label>/<name>.png`` and their objects as ``truths/<label>/<name>.png``.

    ``images`` is a tree as torchvision's ImageFolder reads it; the truths, white where the object is, lie outside it.

    Args:
        images: folder of the image tree; made where missing.
        truths: folder of the truths; may not lie inside ``images``.
        count: as for `generate`, like the arguments after it.
        seed: see `generate`.
        size: see `generate`.
        distractor_share: see `generate`.

    Returns:
        The scenes, in order.

    Raises:
        ValueError: truths inside the image tree, where they would be taken for images.
    """
    if truths.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"truths={truths} lies inside images={images}; choose a folder beside it.")
    scenes = list(generate(count, seed, size, distractor_share))
    for scene in scenes:
        for root, pixels in ((images, scene.pixels_HWC), (truths, scene.object_HW.astype(np.uint8) * 255)):
            path = root / scene.label / f"{scene.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return scenes


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _label(seed: int, index: int) -> str:
    turn, place = divmod(index, len(CLASSES))
    order = _rng(seed, turn, _LABELS).permutation(len(CLASSES))
    return sorted(CLASSES)[int(order[place])]


# --- backgrounds ------------------------------------------------------------------------------------------------


def _paint_background(rng: np.random.Generator, size: int) -> Floats:
    """Gradient, noise, blobs; then, at times, rocks and hills, whose edges are as hard as an object's."""
    y_HW, x_HW = np.mgrid[0:size, 0:size].astype(np.float32) / size
    canvas_HW3 = _mix(_colour(rng), _colour(rng), y_HW)
    canvas_HW3 += rng.uniform(0.04, 0.16) * _noise(rng, size)[..., None]
    for _ in range(rng.integers(0, 5)):
        x, y, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.3)
        glow_HW = np.exp(-((x_HW - x) ** 2 + (y_HW - y) ** 2) / (2 * radius**2))
        _blend(canvas_HW3, _colour(rng), 0.6 * glow_HW)
    if rng.random() < 0.3:
        rocks_HW = _noise(rng, size, falloff=1.4) > rng.uniform(0.8, 1.8)
        _blend(canvas_HW3, _colour(rng), rocks_HW * rng.uniform(0.3, 0.9))
    for _ in range(rng.integers(0, 4)):
        ridge_W = rng.uniform(0.2, 1) + rng.uniform(0.03, 0.12) * _noise(rng, size, falloff=1.6)[0]
        ground_HW3 = _colour(rng) + rng.uniform(0.03, 0.16) * _noise(rng, size)[..., None]
        _blend(canvas_HW3, ground_HW3, np.clip((y_HW - ridge_W) * size, 0, 1))
    np.clip(canvas_HW3, 0, 1, out=canvas_HW3)
    return canvas_HW3


def _noise(rng: np.random.Generator, size: int, falloff: float | None = None) -> Floats:
    """Noise of mean 0 and deviation 1 whose amplitude falls as 1 / frequency**falloff, as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    white = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
    noise_HW = np.fft.irfft2(white / frequency ** (falloff or rng.uniform(0.8, 1.3)), s=(size, size))
    standard_HW: Floats = ((noise_HW - noise_HW.mean()) / noise_HW.std()).astype(np.float32)
    return standard_HW


def _colour(rng: np.random.Generator) -> Floats:
    """A random RGB colour: a brightness, tinted."""
    colour_3: Floats = np.clip(rng.uniform(0.15, 0.9) + rng.uniform(-0.3, 0.3, 3), 0, 1).astype(np.float32)
    return colour_3


def _mix(low_3: Floats, high_3: Floats, share_HW: Floats) -> Floats:
    mixed_HW3: Floats = low_3 + (high_3 - low_3) * share_HW[..., None]
    return mixed_HW3


def _blend(canvas_HW3: Floats, paint: Floats, coverage_HW: Floats) -> None:
    canvas_HW3 += (paint - canvas_HW3) * coverage_HW[..., None]


# --- objects and distractors ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Placement:
    """Centre and radius in pixels, rotation in radians, and the width over the height before the rotation."""

    x: float
    y: float
    radius: float
    angle: float
    aspect: float


def _place(rng: np.random.Generator, size: int, unit: int) -> _Placement:
    """Anywhere in the scene, as long as the whole outline stays inside."""
    radius = rng.uniform(*OBJECT_RADIUS) * unit
    margin = min(radius + 1, size / 2)
    x, y = rng.uniform(margin, size - margin, 2)
    return _Placement(x, y, radius, rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1))


def _paint_distractors(rng: np.random.Generator, canvas_HW3: Floats, thing: _Placement, unit: int) -> None:
    """Paint one to three distractors, clear of the object wherever a few tries find room."""
    size = len(canvas_HW3)
    for _ in range(rng.integers(1, 4)):
        tries = [_place(rng, size, unit) for _ in range(30)]
        gaps = [np.hypot(t.x - thing.x, t.y - thing.y) - t.radius - thing.radius for t in tries]
        clear = [t for t, gap in zip(tries, gaps, strict=True) if gap > 2]
        placement = clear[0] if clear else tries[int(np.argmax(gaps))]
        outline = DISTRACTORS[rng.integers(len(DISTRACTORS))](rng)
        _paint(rng, canvas_HW3, placement, outline)


def _paint(rng: np.random.Generator, canvas_HW3: Floats, thing: _Placement, loops: Loops) -> Floats:
    """Paint a textured, shaded outline onto the canvas in place; return how much of each pixel it covers."""
    size = len(canvas_HW3)
    y_HW, x_HW = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    u_HW = ((x_HW - thing.x) * cos + (y_HW - thing.y) * sin) / thing.radius
    v_HW = ((y_HW - thing.y) * cos - (x_HW - thing.x) * sin) / thing.radius
    coverage_HW = _fill(loops, thing, size)
    paint_HW3 = _mix(_colour(rng), _colour(rng), _texture(rng, u_HW, v_HW))
    paint_HW3 *= 1 + rng.uniform(0.1, 0.5) * _relief(rng, coverage_HW, thing.radius)[..., None]
    _blend(canvas_HW3, np.clip(paint_HW3, 0, 1), coverage_HW)
    return coverage_HW


def _fill(loops: Loops, thing: _Placement, size: int) -> Floats:
    """Coverage of each pixel by the outline once scaled, turned and moved into place."""
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    fine = size * _SUPERSAMPLING
    filled = Image.new("1", (fine, fine))
    for loop in loops:
        points = ((loop * (thing.aspect, 1)) @ turn * thing.radius + (thing.x, thing.y)) * _SUPERSAMPLING
        layer = Image.new("1", (fine, fine))
        ImageDraw.Draw(layer).polygon([(float(x), float(y)) for x, y in points], fill=1)
        filled = ImageChops.logical_xor(filled, layer)
    return np.asarray(filled.convert("L").reduce(_SUPERSAMPLING)).astype(np.float32) / np.float32(255)


def _texture(rng: np.random.Generator, u_HW: Floats, v_HW: Floats) -> Floats:
    """Stripes, checks, dots, grain or a gradient, 0 to 1, in the object's own coordinates."""
    period = rng.uniform(0.15, 0.5)
    wave_u_HW, wave_v_HW = np.cos(2 * np.pi * u_HW / period), np.cos(2 * np.pi * v_HW / period)
    kind = rng.integers(5)
    if kind == 0:
        share_HW = 0.5 + wave_u_HW
    elif kind == 1:
        share_HW = 0.5 + 2 * wave_u_HW * wave_v_HW
    elif kind == 2:
        share_HW = wave_u_HW + wave_v_HW
    elif kind == 3:
        share_HW = 0.5 + 0.35 * _noise(rng, len(u_HW), falloff=0.8)
    else:
        share_HW = 0.5 + 0.5 * u_HW
    clipped_HW: Floats = np.clip(share_HW, 0, 1)
    return clipped_HW


def _relief(rng: np.random.Generator, coverage_HW: Floats, radius: float) -> Floats:
    """Light from one side on a rounded rim, about -1 to 1."""
    layer = Image.fromarray((coverage_HW * 255).astype(np.uint8))
    height_HW = np.asarray(layer.filter(ImageFilter.GaussianBlur(0.12 * radius)), np.float32) / 255
    slope_y_HW, slope_x_HW = np.gradient(height_HW)
    angle = rng.uniform(0, 2 * np.pi)
    light_HW: Floats = (slope_x_HW * np.cos(angle) + slope_y_HW * np.sin(angle)) * (0.3 * radius)
    return light_HW
