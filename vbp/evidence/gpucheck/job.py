"""Section ``job``: the main job through Ray on generated photographs, with one, two and three workers on the GPU."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from vbp.evidence.gpucheck.scope import PRECISION, Found, Scope
from vbp.evidence.inputs import write_photos, write_weights
from vbp.evidence.pipeline import IMAGES as TARGET
from vbp.evidence.pipeline import stretch
from vbp.evidence.timing import Figure
from vbp.evidence.watch import Look, Watched, gpu_use
from vbp.pipeline import RunConfig
from vbp.words import counted

WORKERS, DRY_WORKERS = (1, 2, 3), (1,)
IMAGES, DRY_IMAGES = 24_000, 32
SHARD_SIZE, DRY_SHARD_SIZE = 500, 4
MAIN_JOB = "main job through Ray"
LOOK_SECONDS = 0.5


def job(scope: Scope) -> Iterator[Found]:
    """Rate in the middle of a run, cores and GPU busy then, and a worker's time an image by stage."""
    with tempfile.TemporaryDirectory(prefix="vbp-check-") as name:
        folder = Path(name)
        weights = scope.weights or ("demo" if scope.is_dry else str(folder / "features.safetensors"))
        if weights not in (scope.weights, "demo"):
            write_weights(Path(weights))
        write_photos(folder / "photos", DRY_IMAGES if scope.is_dry else IMAGES)
        (folder / "out").mkdir()
        for workers in DRY_WORKERS if scope.is_dry else WORKERS:
            config = RunConfig(
                input=str(folder / "photos"), output=str(folder / "out"), weights=weights, size=scope.size,
                device=scope.device, precision=PRECISION, batch_size=scope.batch_size, runner="ray", workers=workers,
                shard_size=DRY_SHARD_SIZE if scope.is_dry else SHARD_SIZE,
            )  # fmt: skip
            yield from scope.attempted(_workers(workers), _run(config, workers))


def _run(config: RunConfig, workers: int) -> Iterator[Figure]:
    with _looking() as looks:
        found = stretch(config)
    used = Watched(found, 0, 0, 0, looks)

    def figure(name: str, value: float, unit: str, target: float | None = None) -> Figure:
        return Figure("job", f"{name}, {_workers(workers)}", [value], unit, target)

    yield figure(MAIN_JOB, found.images / found.seconds, "images/s", TARGET)
    yield figure(f"busy of {len(os.sched_getaffinity(0))} cores", used.cores(found.start, found.end), "cores")
    gpu = used.gpu(found.start, found.end)
    if gpu is not None:
        yield figure("GPU busy", gpu, "%")
    for stage, spent in found.stage_milliseconds.items():
        yield figure(f"{stage}, worker's time", spent, "ms/image")


def _workers(count: int) -> str:
    return counted(count, "worker")


@contextmanager
def _looking() -> Iterator[list[Look]]:
    """Look at the machine's cores and GPUs again and again; the looks so far."""
    looks: list[Look] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            times = psutil.cpu_times()
            looks.append(Look(time.monotonic(), sum(times) - times.idle - times.iowait, gpu_use()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        done.set()
        thread.join()
        looks.append(looks[-1] if looks else Look(time.monotonic(), 0, None))
