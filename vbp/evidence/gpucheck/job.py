"""Section ``job``: the main job through Ray on generated photographs, with one, two and three workers on the GPU.

With one worker also where the GPU decodes the JPEGs, since beside a fast GPU the cores are what is short.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from vbp.choices import Decode
from vbp.evidence.gpucheck.scope import PRECISION, Found, Scope
from vbp.evidence.inputs import write_photos, write_weights
from vbp.evidence.pipeline import IMAGES as TARGET
from vbp.evidence.pipeline import stretch
from vbp.evidence.timing import Figure
from vbp.evidence.watch import Look, Watched, gpu_use
from vbp.pipeline import RunConfig
from vbp.words import counted

RUNS: Sequence[tuple[int, Decode]] = ((1, "cpu"), (2, "cpu"), (1, "gpu"), (3, "cpu"))
"""Workers, and where JPEGs are decoded."""
DRY_RUNS = RUNS[:1]
IMAGES, DRY_IMAGES = 24_000, 32
SHARD_SIZE, DRY_SHARD_SIZE = 500, 4
MAIN_JOB, DECODED_JOB = "main job through Ray", "main job with JPEGs decoded on the GPU"
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
        for workers, decode in DRY_RUNS if scope.is_dry else RUNS:
            config = RunConfig(
                input=str(folder / "photos"), output=str(folder / "out"), weights=weights, size=scope.size,
                device=scope.device, precision=PRECISION, batch_size=scope.batch_size, runner="ray", workers=workers,
                shard_size=DRY_SHARD_SIZE if scope.is_dry else SHARD_SIZE, decode=decode,
            )  # fmt: skip
            title = counted(workers, "worker") + (", decoding on the GPU" if decode == "gpu" else "")
            yield from scope.attempted(title, _run(config, title))


def _run(config: RunConfig, title: str) -> Iterator[Figure]:
    with _looking() as looks:
        found = stretch(config)
    used = Watched(found, 0, 0, 0, looks)

    def figure(name: str, value: float, unit: str, target: float | None = None) -> Figure:
        return Figure("job", f"{name}, {title}", [value], unit, target)

    rate = found.images / found.seconds
    if config.decode == "gpu":
        yield Figure("job", f"{DECODED_JOB}, {counted(config.workers or 1, 'worker')}", [rate], "images/s")
    else:
        yield figure(MAIN_JOB, rate, "images/s", TARGET)
    yield figure(f"busy of {len(os.sched_getaffinity(0))} cores", used.cores(found.start, found.end), "cores")
    gpu = used.gpu(found.start, found.end)
    if gpu is not None:
        yield figure("GPU busy", gpu, "%")
    for stage, spent in found.stage_milliseconds.items():
        yield figure(f"{stage}, worker's time", spent, "ms/image")


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
