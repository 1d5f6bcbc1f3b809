"""The outlines of things in generated scenes: a closed set of classes, and shapes that belong to none."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Loops = list[NDArray[np.float64]]
"""Closed polygons in the unit circle, each (points, 2) as x, y; a point inside an odd number of them is filled."""


def _polar(angles: NDArray[np.float64], radii: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _circle(points: int = 72) -> NDArray[np.float64]:
    return np.linspace(0, 2 * np.pi, points, endpoint=False)


def _arrow() -> Loops:
    return [np.array([(1, 0), (0.1, 0.85), (0.1, 0.35), (-0.95, 0.35), (-0.95, -0.35), (0.1, -0.35), (0.1, -0.85)])]


def _bolt() -> Loops:
    return [np.array([(0.25, -1), (-0.6, 0.15), (-0.08, 0.15), (-0.25, 1), (0.6, -0.25), (0.08, -0.25), (0.55, -0.85)])]


def _crescent() -> Loops:
    outer = _polar(np.linspace(0.2 * np.pi, 1.8 * np.pi, 60), 1.0)
    inner = _polar(np.linspace(1.75 * np.pi, 0.25 * np.pi, 60), 0.78) + (0.3, 0)
    return [np.concatenate([outer, inner])]


def _cross() -> Loops:
    near, far = 0.32, 0.95
    arm = np.array([(far, -near), (far, near), (near, near)])
    quarter_turn = np.array([(0, 1), (-1, 0)])
    return [np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, turns) for turns in range(4)])]


def _gear() -> Loops:
    angles = _circle(160)
    return [_polar(angles, np.where(np.cos(8 * angles) > 0, 1.0, 0.74)), _polar(_circle(), 0.3)]


def _heart() -> Loops:
    t = _circle()
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([x, -y - 2.5], axis=1) / 17]


def _ring() -> Loops:
    return [_polar(_circle(), 1.0), _polar(_circle(), 0.55)]


def _star() -> Loops:
    return [_polar(_circle(10), np.where(np.arange(10) % 2 == 0, 1.0, 0.45))]


CLASSES: dict[str, Callable[[], Loops]] = {
    "arrow": _arrow,
    "bolt": _bolt,
    "crescent": _crescent,
    "cross": _cross,
    "gear": _gear,
    "heart": _heart,
    "ring": _ring,
    "star": _star,
}
"""The outline of each class, by label, in the order of their folders."""


def _blob(rng: np.random.Generator) -> Loops:
    angles = _circle()
    radii = np.full_like(angles, 0.72)
    for k in (2, 3, 4):
        radii += rng.uniform(0, 0.22 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi))
    return [_polar(angles, radii / radii.max())]


def _polygon(rng: np.random.Generator) -> Loops:
    corners = int(rng.integers(3, 7))
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.25, 0.25, corners)) / corners
    return [_polar(angles, rng.uniform(0.75, 1, corners))]


def _bars(rng: np.random.Generator) -> Loops:
    """Two to four parallel bars."""
    edges = np.linspace(-0.7, 0.7, 2 * int(rng.integers(2, 5)))
    length = rng.uniform(0.5, 0.7)
    return [
        np.array([(low, -length), (high, -length), (high, length), (low, length)])
        for low, high in zip(edges[::2], edges[1::2], strict=True)
    ]


DISTRACTORS: tuple[Callable[[np.random.Generator], Loops], ...] = (_blob, _polygon, _bars)
"""Kinds of outlines that belong to no class, each drawn anew from a random generator."""
