"""Where images and pixels are after a view, which gives the same values in the same order another shape.

Shapes are those of the tensor below the view and above it.
"""

from __future__ import annotations

from math import prod

from vbp.saliency.geometry import Resampling, Window
from vbp.saliency.values import Map

Shape = tuple[int, ...]


def images_in(above: Shape, below: Shape, one: Map, count: int) -> tuple[int, bool] | None:
    """The axis of the images above, and whether it has other values of each image side by side; None: they are mixed.

    Args:
        above: the shape above.
        below: the shape below.
        one: the map below.
        count: how many images there are.
    """
    fitting = (
        (axis, above[axis] != count) for axis in range(len(above))
        if above[axis] % count == 0 and prod(above[:axis]) == prod(below[: one.images])
    )  # fmt: skip
    return next(fitting, None)


def rows_in(above: Shape, below: Shape, one: Map) -> int | None:
    """The axis of the rows above, which the columns follow; None: pixels are elsewhere."""
    if one.columns != one.rows + 1:
        return None
    return _found(above, below, one, below[one.rows : one.rows + 2])


def cut_in(above: Shape, below: Shape, one: Map) -> tuple[int, Window] | None:
    """A map that is cut into squares, its rows as (rows, rows of a square), its columns likewise.

    The place within a square is one more channel then, so each pixel above stands for a square below.

    Returns:
        The axis of the rows above, two before that of the columns; and the squares.
    """
    if one.columns != one.rows + 1:
        return None
    for axis in range(len(above) - 3):
        square = above[axis + 1], above[axis + 3]
        lengths = above[axis] * square[0], above[axis + 2] * square[1]
        fits = lengths == below[one.rows : one.rows + 2] and prod(above[:axis]) == prod(below[: one.rows])
        if fits and min(square) > 1:
            return axis, Window(square, square)
    return None


def laid_in(above: Shape, below: Shape, one: Map) -> tuple[int, Resampling] | None:
    """Squares of pixels out of channels: the axes behind rows and columns are the places within a square.

    Returns:
        The axis of the rows above, which the columns follow; and the squares.
    """
    if one.columns != one.rows + 2 or one.columns + 1 >= one.rank or one.is_cut:
        return None
    square = below[one.rows + 1], below[one.columns + 1]
    axis = _found(above, below, one, (below[one.rows] * square[0], below[one.columns] * square[1]))
    return None if axis is None else (axis, Resampling("nearest", scale=(float(square[0]), float(square[1]))))


def _found(above: Shape, below: Shape, one: Map, size: Shape) -> int | None:
    """The last axis above of which the size begins there, with as many values before it as before the rows below."""
    fitting = [
        axis for axis in range(len(above) - 1)
        if above[axis : axis + 2] == size and prod(above[:axis]) == prod(below[: one.rows])
    ]  # fmt: skip
    return fitting[-1] if fitting else None
