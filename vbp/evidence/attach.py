"""CNNs of torchvision as ONNX with their masks attached: are they the library's masks, and what do they cost?

``python -m vbp.evidence.attach docs/attach.md`` writes the table. Exporting takes long, so lines that the file has
already are kept, and the command can be stopped and repeated. ``--again`` measures them anew. The smallest networks
come first, so that a table that was stopped early has most of its lines.
"""

from __future__ import annotations

import argparse
import gc
import platform
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from vbp.attach.files import attach_file
from vbp.errors import VBPError
from vbp.light_torchvision import torchvision
from vbp.networks.models import load_model
from vbp.networks.sources.torchvision import model_names
from vbp.saliency.visualbackprop import VisualBackProp

SIDE = 224
REPEATS, MOST_REPEATS, SECONDS = 5, 60, 2.0
"""Least and most timings, and after how many seconds those that may come are left out."""
TOLERANCE = 1e-5
"""Of the mask in the graph to that of the library."""
EXPORTERS = ("torchscript", "dynamo")
HEAD = (
    "| network | exporter | opset | stages | mask, largest difference | old outputs | time before | mask adds |",
    "|---|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Row:
    """One network, exported by one of torch's exporters."""

    model: str
    exporter: str
    opset: int
    stages: int
    difference: float
    """The largest of the graph's mask to the library's, whose values are from 0 to 1."""
    is_equal: bool
    """Whether the old outputs are equal, bit for bit, before and after."""
    seconds: float
    """Of one image before; with the mask `added` more."""
    added: float
    problem: str = ""

    @property
    def line(self) -> str:
        """For the table."""
        if self.problem:
            return f"| {self.model} | {self.exporter} | {self.problem} | | | | | |"
        told = "" if self.difference <= TOLERANCE else " (too much)"
        return (
            f"| {self.model} | {self.exporter} | {self.opset} | {self.stages} | {self.difference:.1e}{told} | "
            f"{'equal bits' if self.is_equal else 'differ'} | {1000 * self.seconds:.1f} ms | "
            f"{1000 * self.added:.1f} ms, {self.added / self.seconds:.0%} |"
        )


def measure(name: str, exporter: str, side: int = SIDE) -> Row:
    """Export a network with random weights, attach its mask, and hold both graphs against each other and torch."""
    network = lively(load_model(name, "random").network)
    try:
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
            export(network, exporter, before, side)
            attached = attach_file(str(before), str(after))
            return _compared(
                Row(name, exporter, attached.opset, len(attached.stages), 0, False, 0, 0),
                VisualBackProp(network),
                _session(before),
                _session(after),
                side,
            )
    except (VBPError, RuntimeError) as error:
        return Row(name, exporter, 0, 0, 0, False, 0, 0, " ".join(str(error).split())[:200])


def lively(network: nn.Module) -> nn.Module:
    """Batch statistics as varied as a trained network's."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None and module.running_mean is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.2, 0.2, generator=generator)
            nn.init.uniform_(module.running_mean, -0.2, 0.2, generator=generator)
    return network.eval()


def export(network: nn.Module, exporter: str, path: Path, side: int) -> None:
    """Write a network as ONNX for any number of images."""
    settings: dict[str, Any] = {"input_names": ["images"], "output_names": ["output"], "verbose": False}
    if exporter == "dynamo":
        settings |= {"dynamo": True, "external_data": True, "dynamic_shapes": ({0: torch.export.Dim("n")},)}
    else:
        settings |= {"dynamo": False, "dynamic_axes": {"images": {0: "n"}, "output": {0: "n"}}, "opset_version": 17}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        torch.onnx.export(network, (_noise(2, side),), path, **settings)


def _noise(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _compared(row: Row, vbp: VisualBackProp, before: Any, after: Any, side: int) -> Row:
    images = _noise(2, side)
    old, new = (session.run(None, {"images": images.numpy()}) for session in (before, after))
    difference = float(np.abs(new[-1] - vbp(images).numpy()).max())
    is_equal = all(np.array_equal(one, other) for one, other in zip(old, new, strict=False))
    seconds, more = _times([before, after], {"images": _noise(1, side).numpy()})
    return Row(row.model, row.exporter, row.opset, row.stages, difference, is_equal, seconds, more - seconds)


def _times(sessions: Iterable[Any], feed: dict[str, Any]) -> list[float]:
    """The least processor time of each session, taken in turns after one warm-up: other work can but add to it."""
    sessions = list(sessions)
    spent: list[list[float]] = [[] for _ in sessions]
    begun = time.perf_counter()
    for repeat in range(MOST_REPEATS + 1):
        if repeat > REPEATS and time.perf_counter() - begun > SECONDS:
            break
        for session, seconds in zip(sessions, spent, strict=True):
            start = time.thread_time()  # the sessions compute on the thread that calls them
            session.run(None, feed)
            seconds.append(time.thread_time() - start)
    return [min(seconds[1:]) for seconds in spent]


def introduction(count: int) -> str:
    """What was measured, and on what.

    Args:
        count: lines of the table.
    """
    return (
        "# CNNs of torchvision, as ONNX with their masks\n\n"
        "Made by `python -m vbp.evidence.attach docs/attach.md`: exported by torch's two exporters, with random\n"
        "weights and for any number of images; the mask attached by `vbp attach`; run in onnxruntime beside the graph\n"
        f"before, and beside the library. Noise of {SIDE}x{SIDE} pixels, float32, two images. Both graphs have the\n"
        "same session options: all of onnxruntime's optimisations, which is its default, and one thread of the CPU.\n"
        f"Times are processor time for one image, the least of {REPEATS} to {MOST_REPEATS} taken in turns. The\n"
        "machine was shared with other work, which slows them down as well.\n\n"
        f"{count} of {len(model_names()) * len(EXPORTERS)} lines are done; the same command does the missing ones.\n\n"
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"{platform.machine()} CPU.\n\n"
    )


def kept_lines(file: Path) -> dict[tuple[str, str], str]:
    """The lines that the table has already, by network and exporter."""
    lines = file.read_text().splitlines() if file.exists() else []
    cells = [(line, line.strip("| ").split(" | ")) for line in lines if line.startswith("| ")]
    return {(found[0], found[1]): line for line, found in cells if len(found) > 1 and found[1] in EXPORTERS}


def table(lines: dict[tuple[str, str], str]) -> str:
    """The table, in the order of names."""
    return "\n".join([*HEAD, *(lines[key] for key in sorted(lines))]) + "\n"


def smallest_first(names: Iterable[str]) -> list[str]:
    """Torchvision's networks in the order of their parameters, which torchvision tells without building them."""
    parameters = {name: torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] for name in names}
    return sorted(parameters, key=lambda name: (parameters[name], name))


def main() -> None:
    """Measure the networks and write the table, after each of them."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.attach", description=__doc__)
    parser.add_argument("file", type=Path, help="the table to write")
    parser.add_argument("--models", nargs="+", default=model_names(), help="default: every CNN of torchvision")
    parser.add_argument("--exporters", nargs="+", default=EXPORTERS, choices=EXPORTERS)
    parser.add_argument("--again", action="store_true", help="measure also what the table has")
    options = parser.parse_args()
    lines = {} if options.again else kept_lines(options.file)
    for name in smallest_first(options.models):
        for exporter in options.exporters:
            if (name, exporter) not in lines:
                lines[name, exporter] = measure(name, exporter).line
                options.file.write_text(introduction(len(lines)) + table(lines))
                gc.collect()


if __name__ == "__main__":
    main()
