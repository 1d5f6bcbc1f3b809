"""Fill removed pixels with what their neighbours suggest: ROAD's noisy linear imputation.

Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022 (arXiv 2202.00449): every
removed pixel is the weighted mean of its eight neighbours, removed ones included, which gives a sparse system of linear
equations. So the shape of the removed region tells the classifier little.

pytorch-grad-cam has the authors' code. It gives the same pixels (a test compares them), but it builds the matrix entry
by entry, which takes up to five times as long, and its noise comes from torch's global state.

Shapes: C, H, W channels, height and width of the image; M the removed pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

_BESIDE, _DIAGONAL = 1 / 6, 1 / 12
_NEIGHBOURS = [
    (down, right, _DIAGONAL if down and right else _BESIDE)
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if down or right
]


def impute(pixels_CHW: NDArray[np.float32], removed_HW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The image with its removed pixels filled, without noise.

    Args:
        pixels_CHW: the image.
        removed_HW: what to fill; at least one pixel is kept.

    Raises:
        ValueError: no pixel is kept.
    """
    if removed_HW.all():
        raise ValueError("removed_HW keeps no pixel: there is nothing to fill from.")
    equations_MM, known_MC = _equations(pixels_CHW, removed_HW)
    filled_CHW = pixels_CHW.copy()
    # Symmetric and diagonally dominant: no pivoting is needed, which halves the time.
    solver = splu(equations_MM, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    filled_CHW[:, removed_HW] = solver.solve(known_MC).T
    return filled_CHW


def _equations(
    pixels_CHW: NDArray[np.float32], removed_HW: NDArray[np.bool_]
) -> tuple[csc_matrix, NDArray[np.float64]]:
    """Matrix and right sides: weights times unknown pixels equal weights times known ones."""
    rows, columns = np.nonzero(removed_HW)
    unknowns = len(rows)
    number_HW = np.full(removed_HW.shape, -1)
    number_HW[removed_HW] = np.arange(unknowns)
    number_HW = np.pad(number_HW, 1, constant_values=-2)  # -1: known, -2: outside the image
    padded_CHW = np.pad(pixels_CHW, ((0, 0), (1, 1), (1, 1))).astype(np.float64)
    weights_M, known_MC = np.zeros(unknowns), np.zeros((unknowns, len(pixels_CHW)))
    entries = []
    for down, right, weight in _NEIGHBOURS:
        place = rows + 1 + down, columns + 1 + right
        neighbour_M = number_HW[place]
        weights_M += weight * (neighbour_M != -2)
        known_MC += weight * ((neighbour_M == -1) * padded_CHW[:, *place]).T
        (unknown,) = np.nonzero(neighbour_M >= 0)
        entries.append((np.full(len(unknown), -weight), unknown, neighbour_M[unknown]))
    entries.append((weights_M, np.arange(unknowns), np.arange(unknowns)))
    values, row, column = (np.concatenate(part) for part in zip(*entries, strict=True))
    return csc_matrix((values, (row, column)), shape=(unknowns, unknowns)), known_MC
