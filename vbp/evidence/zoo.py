"""Every CNN of torchvision at several input sizes: is it explained, how, and for how much time?

``python -m vbp.evidence.zoo docs/zoo.md`` writes the table.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vbp.errors import VBPError
from vbp.light_torchvision import torchvision
from vbp.networks.models import load_model
from vbp.networks.sources.torchvision import model_names
from vbp.saliency.geometry import Size
from vbp.saliency.visualbackprop import VisualBackProp

SIZES: tuple[Size, ...] = ((224, 224), (225, 225), (231, 231), (160, 320))
REPEATS = 3


@dataclass(frozen=True)
class Row:
    """One network at one input size."""

    model: str
    size: Size
    stages: int
    problem: str
    """What is wrong, in words; empty: the mask is of input size, finite, in [0, 1] and not flat."""
    forward_seconds: float
    explain_seconds: float


def measure(name: str, sizes: Iterable[Size] = SIZES) -> Iterator[Row]:
    """Build a network with seeded random weights, explain one image of noise at every size, and time it."""
    try:
        network = load_model(name, "random").network
        vbp = VisualBackProp(network)
    except VBPError as error:
        yield Row(name, (0, 0), 0, str(error), 0, 0)
        return
    for size in sizes:
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        yield _row(name, network, vbp, image)


def _row(name: str, network: nn.Module, vbp: VisualBackProp, image: Tensor) -> Row:
    size = (image.shape[2], image.shape[3])
    stages = len(vbp.stages)
    try:
        with torch.inference_mode():
            problem = _problem(vbp, image)
            forward, explain = _times(lambda: network(image), lambda: vbp.explain(image))
    except VBPError as error:
        return Row(name, size, stages, str(error), 0, 0)
    return Row(name, size, stages, problem, forward, explain)


def _problem(vbp: VisualBackProp, image: Tensor) -> str:
    result = vbp.explain(image)
    mask = result.mask
    findings = {
        f"mask of shape {tuple(mask.shape)}": mask.shape[2:] != image.shape[2:],
        "not finite": not (result.finite.all() and mask.isfinite().all()),
        "outside [0, 1]": not (mask.min() >= 0 and mask.max() <= 1),
        "flat": bool(result.flat.any()),
    }
    return ", ".join(finding for finding, found in findings.items() if found)


def _times(*calls: Callable[[], object]) -> list[float]:
    """The median seconds of each call, taken in turns after one warm-up, so that a busy machine slows all alike."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(REPEATS + 1):
        for call, spent in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if repeat:
                spent.append(time.perf_counter() - start)
    return [statistics.median(spent) for spent in seconds]


def markdown(rows: Iterable[Row], sizes: Iterable[Size] = SIZES) -> str:
    """The table, one line a network."""
    sizes = tuple(sizes)
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    heads = [f"{height}x{width}" for height, width in sizes]
    lines = [
        f"| network | stages | {' | '.join(heads)} | forward at {heads[0]} |",
        f"|---|---|{'---|' * len(heads)}---|",
    ]
    for name, found in by_model.items():
        cells = [row.problem or f"{row.explain_seconds / row.forward_seconds:.2f}" for row in found]
        cells += [""] * (len(sizes) - len(cells))
        milliseconds = f"{1000 * found[0].forward_seconds:.0f} ms" if found[0].forward_seconds else ""
        lines.append(f"| {name} | {found[0].stages or ''} | {' | '.join(cells)} | {milliseconds} |")
    return "\n".join(lines) + "\n"


def introduction() -> str:
    """What was measured, and on what."""
    return (
        "# Every CNN of torchvision\n\n"
        "Made by `python -m vbp.evidence.zoo docs/zoo.md`. Random weights, one image of noise, float32. A number says\n"
        "that the mask has the input's size, is finite, lies in [0, 1] and is not flat; it is the time of the output\n"
        "and the mask over the time of the bare forward pass "
        f"(median of {REPEATS}, taken in turns). Anything else is said in words.\n"
        "The transformers (maxvit, swin, vit) are refused.\n\n"
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {platform.machine()} CPU, "
        f"{torch.get_num_threads()} thread(s). The machine was shared with other work: times\n"
        "are indicative, and a ratio below 1 is noise.\n\n"
    )


def main() -> None:
    """Measure the networks and write the table."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.zoo", description=__doc__)
    parser.add_argument("file", type=Path, help="the table to write")
    parser.add_argument("--models", nargs="+", default=model_names(), help="default: every CNN of torchvision")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.models:
        rows += measure(name)
        options.file.parent.mkdir(parents=True, exist_ok=True)
        options.file.write_text(introduction() + markdown(rows))
        gc.collect()


if __name__ == "__main__":
    main()
