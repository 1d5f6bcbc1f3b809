"""What an H100 and an H200 are expected to do: estimates, to hold the first real figures against.

``python -m vbp.evidence.expected PAGE.md`` writes the page; ``--measured gpu-check.json`` adds what ``vbp gpu-check``
has measured, and the ratio. Bytes and operations are counted from the network; the rates at which a chip does them are
assumptions, all of them in this file.

Units: TFLOP/s, TB/s, and microseconds for a batch of VGG16 at 224x224 in bfloat16, in channels last.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vbp.evidence.gpucheck.check import BATCH, SIZE
from vbp.evidence.gpucheck.codecs import DECODE, DRAW, ENCODE_JPEG, ENCODE_PNG, TOGETHER
from vbp.evidence.gpucheck.job import MAIN_JOB
from vbp.evidence.gpucheck.machine import COPY, PRODUCT
from vbp.evidence.gpucheck.rates import BARE, ON_DEVICE, WHOLE
from vbp.evidence.gpucheck.worker import WORKER
from vbp.evidence.launches import HEAD as LAUNCHES_HEAD
from vbp.evidence.launches import counts
from vbp.evidence.page import number, table
from vbp.evidence.roofline import Work, forward_work
from vbp.light_torchvision import torchvision

WIDTH, INDEX = 2, 8
"""Bytes of a bfloat16 value, and of an index that max pooling writes."""
NETWORKS = ("vgg16", "resnet152", "densenet201")
"""Whose launches are counted."""
CORES, CODEC_CORES = 16, 14
"""Of the node, and those that are left to codecs beside the worker and Ray."""


@dataclass(frozen=True)
class Chip:
    """The rates that a chip is assumed to reach."""

    name: str
    product: float
    """TFLOP/s of a large bfloat16 product; the vendor's data sheet has 990 for both."""
    float32: float
    """TFLOP/s of convolutions in float32 without TF32; data sheet: 67."""
    memory: float
    """TB/s of kernels that read and write once; data sheets: 3.35 and 4.8."""
    wide_mean: float
    """TB/s of torch's average over 64 channels."""
    mean: float
    """TB/s of torch's average over more channels."""
    pooling: float
    """TB/s of torch's max pooling in channels last, which writes indices."""
    convolutions: float
    """Times that convolutions are as fast as `tflops` says."""


CHIPS = (
    Chip("H100", product=790, float32=45, memory=2.85, wide_mean=1.3, mean=2.4, pooling=1.5, convolutions=1.0),
    Chip("H200", product=790, float32=45, memory=4.05, wide_mean=1.5, mean=3.2, pooling=1.9, convolutions=1.03),
)


@cache
def layers(width: int) -> list[tuple[nn.Module, Work]]:
    """VGG16's layers below its classifier, and their work; `width` is a value's bytes."""
    with torch.device("meta"):
        features: nn.Sequential = torchvision.models.vgg16(weights=None, init_weights=False).features
    return list(zip(features, forward_work(features, SIZE, width, BATCH), strict=True))


FIRST = 800
"""Microseconds of the first convolution, whose 3 channels cuDNN pads to 8."""
SLOWER = {(64, 64): 400, (64, 128): 450, (128, 128): 560, (128, 256): 580, (256, 256): 620, (256, 512): 600}
"""TFLOP/s of cuDNN's convolutions, by channels in and out; 620 for more, 560 where maps are smaller than 28x28."""
WAY_DOWN, IN_FEW = (2.32, 231), (1.20, 120)
"""GB and kernels of the way down and the last scaling, as torch does them and in few kernels: `vbp.evidence.launches`
without and with `descent`, less the layers."""
LAUNCH = 1.9
"""Microseconds that a small kernel takes at least."""
NORMALISE_GB = 0.67
"""Of five passes over the pixels, the first of which reads bytes, the last of which writes bfloat16."""
MILLISECONDS = {DECODE: 1.86, DRAW: 0.36, ENCODE_JPEG: 0.41, ENCODE_PNG: 0.35}
"""Of one core, for an image of 500x375 that becomes 224x224: two cores of an AMD EPYC, one process."""
OTHER_MILLISECONDS = 0.4
"""Of reading, writing and Ray."""


def convolution(layer: Work, inputs: int, outputs: int, side: int, chip: Chip) -> float:
    """Microseconds: the arithmetic or the traffic, whichever takes longer."""
    if inputs == 3:
        return FIRST / chip.convolutions
    tflops = SLOWER.get((inputs, outputs), 620 if side >= 28 else 560) * chip.convolutions
    return max(BATCH * layer.flop / tflops / 1e6, BATCH * layer.bytes / chip.memory / 1e6)


@dataclass(frozen=True)
class Batch:
    """Microseconds of the kernels of a batch, by what they do."""

    convolutions: float
    bias: float
    relu: float
    mean: float
    pooling: float
    way_down: float
    few: float
    """The way down in few kernels."""
    normalise: float
    fused_mean: float
    """As a product, or in a kernel that reads the map once."""
    plain_pooling: float
    """Without indices."""

    @classmethod
    def on(cls, chip: Chip) -> Batch:
        """Count VGG16's layers, and divide by the chip's rates."""
        sums = dict.fromkeys(("convolutions", "bias", "relu", "mean", "pooling", "fused_mean", "plain_pooling"), 0.0)
        channels, side = 3, SIZE
        for layer, work in layers(WIDTH):
            traffic = BATCH * work.bytes / 1e6
            if isinstance(layer, nn.Conv2d):
                channels = layer.out_channels
                sums["convolutions"] += convolution(work, layer.in_channels, channels, side, chip)
                map_mb = BATCH * channels * side * side * WIDTH / 1e6
                sums["bias"] += 2 * map_mb / (0.93 * chip.memory)
                sums["relu"] += 2 * map_mb / chip.memory
                averaged = map_mb + BATCH * side * side * 4 / 1e6
                sums["mean"] += averaged / (chip.wide_mean if side == SIZE else chip.mean)
                sums["fused_mean"] += averaged / chip.memory
            elif isinstance(layer, nn.MaxPool2d):
                side //= 2
                indices = BATCH * channels * side * side * INDEX / 1e6
                sums["pooling"] += (traffic + indices) / chip.pooling
                sums["plain_pooling"] += traffic / chip.memory
        way_down, few = (
            1e3 * gigabytes / (0.8 * chip.memory) + kernels * LAUNCH for gigabytes, kernels in (WAY_DOWN, IN_FEW)
        )
        return cls(**sums, way_down=way_down, few=few, normalise=1e3 * NORMALISE_GB / (0.85 * chip.memory))

    @property
    def bare(self) -> float:
        """The forward pass of the features as torch computes it."""
        return self.convolutions + self.bias + self.relu + self.pooling

    @property
    def plain(self) -> float:
        """Masks as torch computes them."""
        return self.bare + self.mean + self.way_down

    def saved(self) -> dict[str, float]:
        """What each optimisation alone saves."""
        return {
            "fused": self.bias + self.relu,
            "pools": self.pooling - self.plain_pooling,
            "means": self.mean - self.fused_mean,
            "descent": self.way_down - self.few,
        }

    @property
    def best(self) -> float:
        """Masks with all of them."""
        return self.plain - sum(self.saved().values())


@dataclass(frozen=True)
class Expected:
    """A figure of ``vbp gpu-check`` to come."""

    part: str
    name: str
    """The beginning of the figure's name."""
    unit: str
    values: Sequence[float]
    """Of each of `CHIPS`."""
    why: str


def expectations() -> Iterator[Expected]:
    """All figures for which there is an estimate, in the order of the check."""
    batches = [Batch.on(chip) for chip in CHIPS]

    def rate(name: str, times: Sequence[float], why: str) -> Expected:
        return Expected("rates", name, "images/s", [1e6 * BATCH / time for time in times], why)

    yield Expected("machine", f"{PRODUCT}, bfloat16", "TFLOP/s", [chip.product for chip in CHIPS], "assumed")
    yield Expected("machine", COPY, "GB/s", [1e3 * chip.memory for chip in CHIPS], "assumed")
    yield rate(BARE, [batch.bare for batch in batches], "the kernels above, without averages and way down")
    yield rate(f"{ON_DEVICE}, optimised: none", [batch.plain for batch in batches], "all kernels above but normalise")
    for name, why in _OPTIMISATIONS.items():
        times = [batch.plain - batch.saved()[name] for batch in batches]
        yield rate(f"{ON_DEVICE}, optimised: {name}", times, why)
    yield rate(f"{ON_DEVICE}, optimised: all", [batch.best for batch in batches], "all four")
    yield rate(
        f"{ON_DEVICE}, as a CUDA graph", [batch.best for batch in batches], "the same: no kernel waits for the host"
    )
    for graph in (", without a graph", ""):
        name = f"{WHOLE}, bfloat16, batches of {BATCH}{graph}"
        times = [batch.best + batch.normalise for batch in batches]
        yield rate(name, times, "copies run beside the computation; normalise is added")
    float32 = [_float32(batch, chip) for batch, chip in zip(batches, CHIPS, strict=True)]
    yield rate(f"{WHOLE}, float32", float32, "arithmetic at float32's rate, maps of twice the size")
    for name, milliseconds in MILLISECONDS.items():
        yield Expected("codecs", name, "ms/image", [milliseconds] * 2, "measured on another processor")
    codecs = 1e3 * CORES / sum(MILLISECONDS.values())
    yield Expected("codecs", TOGETHER, "images/s", [codecs] * 2, f"{CORES} cores, as the lines above")
    whole = [1e6 * BATCH / (batch.best + batch.normalise) for batch in batches]
    yield Expected("worker", WORKER, "images/s", whole, "the engine's rate: three batches in hand hide all else")
    left = 1e3 * CODEC_CORES / (sum(MILLISECONDS.values()) - MILLISECONDS[DRAW] + OTHER_MILLISECONDS)
    why = f"{CODEC_CORES} cores, which do not draw; {OTHER_MILLISECONDS} ms more an image to read and write"
    yield Expected("job", MAIN_JOB, "images/s", [left] * 2, why)


_OPTIMISATIONS = {
    "fused": "no kernels for bias and ReLU",
    "pools": "max pooling without indices",
    "means": "averages at the memory's rate",
    "descent": "the way down in few kernels",
}


def _float32(batch: Batch, chip: Chip) -> float:
    """Microseconds from pixels to masks in float32."""
    flop = BATCH * sum(work.flop for _, work in layers(2 * WIDTH))
    memory = 2 * (batch.best - batch.convolutions - batch.few)
    return flop / chip.float32 / 1e6 + memory + batch.few + batch.normalise


def page(launches: Sequence[Sequence[str]], measured: Mapping[str, Any] | None = None) -> str:
    """The page: assumptions, kernels, figures to come.

    Args:
        launches: rows of `vbp.evidence.launches.counts`.
        measured: the result of ``vbp gpu-check``, to stand beside what was expected.

    Raises:
        ValueError: it was measured on no chip for which there are estimates.
    """
    chips = [chip.name for chip in CHIPS]
    assumed = [[field.name.replace("_", " "), *_values(field.name)] for field in fields(Chip) if field.name != "name"]
    batches = [Batch.on(chip) for chip in CHIPS]
    kernels = [[title, *_microseconds(batches, *names)] for title, names in KERNELS.items()]
    head, rows = ["section", "figure", *chips, "why"], [_row(each) for each in expectations()]
    if measured is not None:
        chip = _chip_of(measured)
        head[-1:] = ["measured", f"over {chips[chip]}"]
        rows = [[*row[:-1], *_beside(each, measured, chip)] for row, each in zip(rows, expectations(), strict=True)]
    return PAGE.format(
        state=STATE if measured is None else f"Measured on {measured['machine']['gpu']}.",
        assumptions=table(["assumed", *chips], assumed),
        launches=table(LAUNCHES_HEAD, launches),
        kernels=table([f"a batch of {BATCH}", *chips], kernels),
        figures=table(head, rows),
    )


STATE = "**Nothing on this page was measured on a GPU: there was none.**"
PAGE = """# What a GPU is expected to do

{state}
All figures are estimates, made by `python -m vbp.evidence.expected`, whose source has every assumption. They are of
VGG16 at 224x224, in bfloat16 and channels last. They are there so that the first real run can be held against them:

```
vbp gpu-check --output FOLDER
python -m vbp.evidence.expected PAGE.md --measured FOLDER/gpu-check.json
```

The second command adds what was measured, and the ratio. Where that is far from 1, an assumption is wrong, or something
else takes the time; the section `kernels` of the check says what.

## How they are made

Operations and bytes are counted from the layers. A convolution takes as long as its arithmetic or its traffic,
whichever is longer, every other kernel as long as its traffic. An earlier form of this estimate, applied to an RTX
4090, gave 2,800 images/s for the eager forward pass and 3,570 for the compiled one, where timm publishes 2,905 and
3,852.

Assumed are the rates that a chip reaches: TFLOP/s of a large product in bfloat16 and of convolutions in float32, TB/s
of kernels that use memory, and a factor on convolutions.

{assumptions}

Convolutions run at 400 TFLOP/s (64 channels) to 620 (256 and more), the first one in 800 us. That gives, in
microseconds:

{kernels}

## What a batch launches

Counted, not estimated: `python -m vbp.evidence.launches`, with tensors that have a CUDA device and no data. The
operations from pixels to masks and classes, without and with each optimisation; bytes as if nothing were cached.

{launches}

## Figures to come

By the names that `vbp gpu-check` gives them.

{figures}

The targets: masks on the device at 0.90 of the bare forward pass or more, 10,000 images/s from NumPy to NumPy, 3,500
for the main job on 16 cores. By these estimates all three are reached, the first only with the optimisations. In the
main job the codecs are the limit, as long as the worker's own thread does not hold them up.
"""
KERNELS: Mapping[str, Sequence[str]] = {
    "normalise": ("normalise",),
    "convolutions": ("convolutions",),
    "bias": ("bias",),
    "ReLU": ("relu",),
    "average over channels": ("mean",),
    "the same as a product": ("fused_mean",),
    "max pooling": ("pooling",),
    "the same without indices": ("plain_pooling",),
    "way down": ("way_down",),
    "the same in few kernels": ("few",),
    "all, as torch does it": ("plain", "normalise"),
    "all, optimised": ("best", "normalise"),
}


def _values(name: str) -> list[str]:
    return [number(getattr(chip, name)) for chip in CHIPS]


def _microseconds(batches: Sequence[Batch], *names: str) -> list[str]:
    return [f"{sum(getattr(batch, name) for name in names):,.0f}" for batch in batches]


def _row(each: Expected) -> list[str]:
    return [each.part, f"{each.name}, {each.unit}", *map(number, each.values), each.why]


def _chip_of(measured: Mapping[str, Any]) -> int:
    gpu = measured["machine"].get("gpu", "no GPU")
    for position, chip in enumerate(CHIPS):
        if chip.name in gpu:
            return position
    raise ValueError(f"there are estimates for {', '.join(chip.name for chip in CHIPS)}, and none for {gpu}.")


def _beside(each: Expected, measured: Mapping[str, Any], chip: int) -> list[str]:
    """What was measured, the best where several figures have such a name, and its ratio to what was expected."""
    found = [
        figure["median"]
        for figure in measured["figures"]
        if figure["part"] == each.part and figure["name"].startswith(each.name) and figure["unit"] == each.unit
    ]
    return [number(max(found)), number(max(found) / each.values[chip])] if found else ["not measured", ""]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.expected", description=__doc__)
    parser.add_argument("page", type=Path, help="Markdown to write")
    parser.add_argument("--measured", type=Path, help="gpu-check.json of vbp gpu-check")
    options = parser.parse_args()
    measured = None if options.measured is None else json.loads(options.measured.read_text())
    launches = [row for name in NETWORKS for row in counts(name)]
    try:
        options.page.write_text(page(launches, measured))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
