"""Section ``machine``: how fast this GPU multiplies and copies, alone; every other figure is held against these."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vbp.evidence.gpucheck.scope import Found, Scope
from vbp.evidence.timing import Figure

PRODUCT, COPY = "matrix product", "copy in the device's memory, read and written"
SIDE, DRY_SIDE = 8192, 128
"""Of the square matrices."""
COPIED, DRY_COPIED = 2**31, 2**20
"""Bytes, more than any cache holds."""


def machine(scope: Scope) -> Iterator[Found]:
    """Products, a copy in the device's memory, and a batch of pixels there and masks back."""
    yield from scope.attempted("products", _products(scope))
    yield from scope.attempted("a copy", _copy(scope))
    yield from scope.attempted("batches", _batches(scope))
    if scope.device == "cuda":
        yield from scope.attempted("batches in pinned memory", _pinned_batches(scope))


def _figure(name: str, values: list[float], unit: str) -> Figure:
    return Figure("machine", name, values, unit)


def _products(scope: Scope) -> Iterator[Figure]:
    side = DRY_SIDE if scope.is_dry else SIDE
    for dtype in (torch.bfloat16, torch.float32):
        factor = torch.randn(side, side, device=scope.device, dtype=dtype)
        rates = scope.rates(lambda factor=factor: factor @ factor, 2e-12 * side**3)  # type: ignore[misc]
        yield _figure(f"{PRODUCT}, {str(dtype).removeprefix('torch.')}", rates, "TFLOP/s")


def _copy(scope: Scope) -> Iterator[Figure]:
    count = DRY_COPIED if scope.is_dry else COPIED
    source = torch.zeros(count, dtype=torch.uint8, device=scope.device)
    target = torch.empty_like(source)
    yield _figure(COPY, scope.rates(lambda: target.copy_(source), 2e-9 * count), "GB/s")


def _batches(scope: Scope) -> Iterator[Figure]:
    pixels = torch.from_numpy(scope.pixels())
    masks = torch.zeros(scope.batch_size, scope.size, scope.size, device=scope.device)
    yield _figure("a batch of pixels to the device", scope.milliseconds(lambda: pixels.to(scope.device)), "ms")
    yield _figure("a batch of float32 masks to NumPy", scope.milliseconds(lambda: masks.cpu().numpy()), "ms")


def _pinned_batches(scope: Scope) -> Iterator[Figure]:
    pinned = torch.from_numpy(scope.pixels()).pin_memory()
    masks = torch.zeros(scope.batch_size, scope.size, scope.size, device=scope.device)
    back = torch.empty_like(masks, device="cpu", pin_memory=True)
    there = scope.milliseconds(lambda: pinned.to(scope.device, non_blocking=True))
    yield _figure("a batch of pixels to the device, from pinned memory", there, "ms")
    here = scope.milliseconds(lambda: back.copy_(masks, non_blocking=True))
    yield _figure("a batch of float32 masks into pinned memory", here, "ms")
