"""Compare a mask file with its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vbp.choices import MASK_FORMATS
from vbp.errors import ImageError

_NEEDED = ("width", "height", "mask_mean", "mask_area", "peak_x", "peak_y")
_ROUNDING = 2e-6
"""Largest rounding error of a mean in float32."""
_AREA = 2e-3
"""Largest share of pixels at exactly 0.5, which rounding puts above it."""


def fault_of(data: bytes, row: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """A sentence on what is wrong with a mask file; None if it is right.

    Args:
        data: the file's bytes.
        row: its index row: ``width``, ``height``, ``mask_mean``, ``mask_area``, ``peak_x``, ``peak_y``, ``flat``;
            in an older one without ``mask_width`` and ``mask_height``.
        config: the run's ``size``, ``fit``, ``frame``, ``mask_format``.
    """
    import numpy as np

    from vbp.images.encode import decode_mask

    lacking = [name for name in _NEEDED if row[name] is None]
    if lacking:
        return f"its row lacks {lacking[0]}"
    try:
        mask_HW = decode_mask(data)
    except ImageError as error:
        return str(error)
    height, width = mask_HW.shape
    wanted = _size(row, config)
    if (width, height) != wanted:
        return f"{width} x {height} pixels, not {wanted[0]} x {wanted[1]}"
    mean = float(mask_HW.mean(dtype=np.float64))
    if abs(mean - row["mask_mean"]) > MASK_FORMATS[config["mask_format"]].half_a_level + _ROUNDING:
        return f"a mean of {mean:.5f}, not {row['mask_mean']:.5f}"
    area = float((mask_HW > 0.5).mean())
    if abs(area - row["mask_area"]) > _AREA:
        return f"an area above 0.5 of {area:.4f}, not {row['mask_area']:.4f}"
    if not (0 <= row["peak_y"] < height and 0 <= row["peak_x"] < width):
        return f"no pixel at ({row['peak_x']}, {row['peak_y']})"
    if mask_HW[row["peak_y"], row["peak_x"]] != mask_HW.max():
        return f"no maximum at ({row['peak_x']}, {row['peak_y']})"
    size = (row.get("mask_width"), row.get("mask_height"))
    if size not in ((None, None), (width, height)):  # rows of an older vbp have none
        return f"{width} x {height} pixels, but its row says {size[0]} x {size[1]}"
    return None


def _size(row: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, int]:
    if config["frame"] == "image" or config["fit"] == "original":
        return row["width"], row["height"]
    return config["size"], config["size"]
