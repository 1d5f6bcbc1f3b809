"""The part ``start``: seconds until the help and until the first mask."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from vbp.evidence.inputs import write_photos, write_weights
from vbp.evidence.timing import Figure, Findings, Setup

HELP_SECONDS = 0.5
IMAGES = (10, 100)
LOOK_SECONDS = 0.02
LONGEST = 600.0
"""Seconds without a mask, after which something is wrong."""
VBP = (sys.executable, "-m", "vbp.cli")


def start(setup: Setup, weights: Path | None = None) -> Findings:
    """Measure the help, and the first mask of small inputs by both runners; each is ended once its mask is there.

    Args:
        setup: how.
        weights: of a VGG16; None: random ones, without classifier.
    """
    with tempfile.TemporaryDirectory(prefix="vbp-bench-") as name:
        folder = Path(name)
        if weights is None:
            write_weights(weights := folder / "features.safetensors")
        cases: dict[str, Callable[[], float]] = {"vbp --help": _help}
        for images in IMAGES:
            photos = folder / f"photos-{images}"
            write_photos(photos, images)
            for runner in ("local", "ray"):
                arguments = [str(photos), "--weights", str(weights), "--runner", runner]
                cases[f"first mask of {images} images, {runner} runner"] = partial(_first_mask, folder, arguments)
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(setup.rounds):
            for name, work in cases.items():
                seconds[name].append(work())
            setup.report(f"start: round {number + 1} of {setup.rounds}")
    return Findings(figures=_figures(seconds))


def _figures(seconds: Mapping[str, list[float]]) -> list[Figure]:
    targets = {"vbp --help": HELP_SECONDS}
    figures = [Figure("start", name, values, "s", targets.get(name), at_most=True) for name, values in seconds.items()]
    for images in IMAGES:
        local, ray = (seconds[f"first mask of {images} images, {runner} runner"] for runner in ("local", "ray"))
        longer = [one / other for one, other in zip(ray, local, strict=True)]
        figures.append(Figure("start", f"first mask of {images} images, ray over local runner", longer))
    return figures


def _help() -> float:
    started = time.perf_counter()
    subprocess.run([*VBP, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _first_mask(folder: Path, arguments: list[str]) -> float:
    """From the command's start to a whole mask file."""
    with tempfile.TemporaryDirectory(prefix="out-", dir=folder) as output:
        started = time.perf_counter()
        log = Path(output) / "log"
        with log.open("wb") as target:
            command = [*VBP, "explain", arguments[0], f"{output}/out", *arguments[1:]]
            process = subprocess.Popen(command, stdout=target, stderr=target, start_new_session=True)
        try:
            while not any(Path(output, "out", "masks").glob("*/*.png")):
                if process.poll() not in (None, 0) or time.perf_counter() - started > LONGEST:
                    raise RuntimeError(f"no mask came of {' '.join(command)}: {log.read_text()[-1000:]}")
                time.sleep(LOOK_SECONDS)
            return time.perf_counter() - started
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command as Ctrl-C does; nothing happens if it has ended already."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
