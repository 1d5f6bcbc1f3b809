"""Section ``codecs``: everything that the job does with pixels except explaining them, in a process a core."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch

from vbp.evidence.gpucheck.scope import Scope
from vbp.evidence.inputs import DIFFERENT, photographs, saved
from vbp.evidence.timing import Figure
from vbp.images.decode import decode
from vbp.images.encode import encode_jpeg, encode_mask
from vbp.images.overlay import overlay

SECONDS, DRY_SECONDS = 3.0, 0.1
"""How long all processes work at the same time."""
DECODE, DRAW, ENCODE_JPEG, ENCODE_PNG = (
    "decode JPEG 500x375", "draw overlay", "encode overlay JPEG", "encode mask PNG"
)  # fmt: skip
TOGETHER = "decoded, drawn and encoded"


def codecs(scope: Scope) -> Iterator[Figure]:
    """On one core each step; then all steps in as many processes as there are cores."""
    files = [saved(photo, "JPEG") for photo in photographs(2 if scope.is_dry else DIFFERENT)]
    torch.set_num_threads(1)
    for name, seconds in _steps(files, scope.size).items():
        yield Figure("codecs", f"{name}, one core", [1e3 * seconds], "ms/image")
    cores = 1 if scope.is_dry else len(os.sched_getaffinity(0))
    work = files, scope.size, DRY_SECONDS if scope.is_dry else SECONDS
    # forked, so that sixteen processes do not all import torch; nothing here has begun a thread or asked for a GPU
    with ProcessPoolExecutor(cores, multiprocessing.get_context("fork")) as pool:
        list(pool.map(_images_a_second, [(files, scope.size, DRY_SECONDS)] * cores))  # all processes are up
        rates = list(pool.map(_images_a_second, [work] * cores))
    yield Figure("codecs", f"{TOGETHER}, {cores} processes", [sum(rates)], "images/s")


def _steps(files: Sequence[bytes], size: int) -> dict[str, float]:
    """Seconds an image of each step."""
    pixels = [decode(file, size=size).pixels_HWC for file in files]
    mask_HW = _mask(size)
    drawn = [overlay("heat", each, mask_HW) for each in pixels]

    def seconds(work: Callable[[Any], Any], things: Sequence[Any]) -> float:
        started = time.perf_counter()
        for thing in things:
            work(thing)
        return (time.perf_counter() - started) / len(things)

    return {
        DECODE: seconds(lambda file: decode(file, size=size), files),
        DRAW: seconds(lambda each: overlay("heat", each, mask_HW), pixels),
        ENCODE_JPEG: seconds(encode_jpeg, drawn),
        ENCODE_PNG: seconds(lambda each: encode_mask(mask_HW, "png8"), pixels),
    }


def _images_a_second(work: tuple[Sequence[bytes], int, float]) -> float:
    files, size, seconds = work
    torch.set_num_threads(1)
    mask_HW, done, started = _mask(size), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        pixels_HWC = decode(files[done % len(files)], size=size).pixels_HWC
        encode_mask(mask_HW, "png8")
        encode_jpeg(overlay("heat", pixels_HWC, mask_HW))
        done += 1
    return done / (time.perf_counter() - started)


def _mask(size: int) -> Any:
    """A mask with some structure."""
    down, across = np.mgrid[:size, :size].astype(np.float32) / size
    return (0.5 + 0.5 * np.sin(20 * down) * np.cos(14 * across)).astype(np.float32)
