"""The part ``engine``: masks a second, compared with the bare forward pass, other methods and the roofline.

All on the same pixels. Rivals are measured twice: on our terms (precision and memory format; float32, which all of
them compute), and as users run them, with the network as torchvision gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vbp.evidence.rivals import (
    RIVALS,
    bare_forward,
    out_of_place,
    reference_algorithm,
    side_by_side,
)
from vbp.evidence.roofline import forward_work, images_per_second, mean_work
from vbp.evidence.timing import Case, Figure, Findings, Rate, Setup, clocked, measure, named_gpu, over, ratio
from vbp.explainer import PRECISIONS, Explainer, true_float32
from vbp.networks.model import Model
from vbp.networks.models import load_model

LEAST = {"cpu": 0.95, "cuda": 0.90}
"""Of the bare forward pass, in masks a second."""
OVER_REFERENCE = {"float32": 1.4, "bfloat16": 2.6}
"""On a CPU; the bare forward pass reaches 1.5 and 2.9 there."""
REFERENCE, ITS_BATCH = "reference algorithm, float32", 10
REFERENCE_AS_RUN = f"reference algorithm with its batches of {ITS_BATCH}, float32"
"""The reference project's default batch size, as its users run it; without it, of ours."""
SHARE = 0.95
"""Of the lead that the bare forward pass has over a rival."""
AS_USERS_RUN = {"Grad-CAM": 4.0, "guided backprop": 4.0, "LRP": 12.0}
IMAGES = 10_000
"""A second, on each of `NAMED`."""
FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
OURS = "channels last"
PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices that are multiplied to learn the machine's arithmetic."""
COPIED_BYTES = 256 * 2**20
"""More than any cache holds."""


def engine(setup: Setup, model: Model | None = None, size: int = 224) -> Findings:
    """Measure it.

    Args:
        setup: how.
        model: a VGG with its classifier; None: VGG16 with random weights.
        size: side of the square input.
    """
    bench = _Bench(setup, model or load_model("vgg16", "random"), size)
    cases = [*bench.our_cases(), *bench.rival_cases(), *bench.machine_cases()]
    rates = measure(cases, setup.rounds, setup.report)
    return Findings([*rates.values()], [*bench.figures(rates)], bench.notes)


class _Bench:
    def __init__(self, setup: Setup, model: Model, size: int) -> None:
        self.notes: list[str] = []
        self._setup, self._model, self._size = setup, model, size
        self._job = setup.recipe
        # as many as the main job gives to the engine at once; all others get one batch
        self._pixels_BHWC = np.random.default_rng(0).integers(0, 256, (self._job.rows, size, size, 3), dtype=np.uint8)
        batch_BHWC = torch.from_numpy(self._pixels_BHWC[: setup.batch_size])
        self._images_BCHW = batch_BHWC.permute(0, 3, 1, 2).float().div(255).to(setup.device)

    def our_cases(self) -> Iterator[Case]:
        """The bare forward pass (the limit), vbp, and the algorithm of the reference project."""
        for precision in self._setup.precisions:
            for layout in FORMATS:
                work = bare_forward(self._features(precision, layout))
                images_BCHW = self._images(precision, layout)
                yield self._case(f"bare forward, {precision}, {layout}", work, images_BCHW)
            if self._job.side_by_side:
                each_BCHW = [self._images(precision, OURS)] * (len(self._pixels_BHWC) // self._setup.batch_size)
                forwards = side_by_side(bare_forward(self._features(precision, OURS)))
                yield self._case(_on_each_core(precision), forwards, each_BCHW, len(self._pixels_BHWC))
            explainer = Explainer(
                self._model, device=self._setup.device, precision=precision, classify=False,
                batch_size=self._setup.batch_size, side_by_side=self._job.side_by_side,
            )  # fmt: skip
            yield self._case(f"vbp, {precision}", explainer, self._pixels_BHWC, len(self._pixels_BHWC))
        rival = reference_algorithm(self._features("float32", "contiguous"))
        yield self._case(REFERENCE, rival, self._images_BCHW, tf32=True)
        ten_BCHW = self._images_BCHW[:1].repeat(ITS_BATCH, 1, 1, 1)
        yield self._case(REFERENCE_AS_RUN, rival, ten_BCHW, ITS_BATCH, tf32=True)

    def rival_cases(self) -> Iterator[Case]:
        """The methods of other libraries that are installed."""
        for layout in FORMATS:
            network = out_of_place(self._copied(self._model.network, "float32", layout)).requires_grad_()
            images_BCHW = self._images("float32", layout)
            for name, method in RIVALS.items():
                try:
                    work = method(network)
                    yield self._case(f"{name}, float32, {layout}", work, images_BCHW, tf32=layout != OURS)
                except ImportError as error:
                    if layout == OURS:
                        self.notes.append(
                            f"{name} is left out: {error}. pip install 'visualbackprop[bench]' brings it."
                        )

    def machine_cases(self) -> Iterator[Case]:
        """The two limits of the roofline."""
        device = self._setup.device
        side = PRODUCT[device]
        for precision in self._setup.precisions:
            factor = torch.ones(side, side, device=device, dtype=PRECISIONS[precision])
            product = partial(torch.mm, factor)
            yield self._case(f"matrix product, {precision}", product, factor, 2e-9 * side**3, "GFLOP/s")
        source = torch.ones(COPIED_BYTES // 4, device=device)
        target = torch.empty_like(source)
        # read once and written once
        yield self._case("copy in memory", target.copy_, source, 2e-9 * COPIED_BYTES, "GB/s")

    def figures(self, rates: Mapping[str, Rate]) -> Iterator[Figure]:
        """Ratios with their targets, then the figures of the roofline."""
        device, precisions = self._setup.device, self._setup.precisions
        for precision in precisions:
            ours, forward = rates[f"vbp, {precision}"], rates[f"bare forward, {precision}, {OURS}"]
            yield ratio(f"engine over bare forward, {precision}", ours, forward, LEAST[device])
            if self._job.side_by_side:
                yield ratio(f"engine over {_on_each_core(precision)}", ours, rates[_on_each_core(precision)])
            target = OVER_REFERENCE[precision] if device == "cpu" else None
            for reference in (REFERENCE, REFERENCE_AS_RUN):
                name = f"engine over {reference.replace('float32', precision)}"
                yield ratio(name, ours, rates[reference], target)
        auto = rates[f"vbp, {precisions[-1]}"]
        gpu = named_gpu(device)
        if gpu is not None:
            yield Figure("engine", f"engine on one {gpu}", auto.rates, "images/s", IMAGES)
        yield from self._against_rivals(rates, auto)
        for precision in precisions:
            yield from self._limits(rates, precision)

    def _against_rivals(self, rates: Mapping[str, Rate], auto: Rate) -> Iterator[Figure]:
        ours, forward = rates["vbp, float32"], rates[f"bare forward, float32, {OURS}"]
        for name in RIVALS:
            rival = rates.get(f"{name}, float32, {OURS}")
            if rival is not None:
                lead = Rate("engine", "lead", rates=over(forward, rival)).median
                yield ratio(f"engine over {name}, same terms", ours, rival, SHARE * lead)
        for name, target in AS_USERS_RUN.items():
            rival = rates.get(f"{name}, float32, contiguous")
            if rival is not None:
                yield ratio(f"engine over {name}, as users run them", auto, rival, target)

    def _limits(self, rates: Mapping[str, Rate], precision: str) -> Iterator[Figure]:
        features = self._model.network.get_submodule("features")
        assert isinstance(features, nn.Sequential)
        width = PRECISIONS[precision].itemsize
        forward = forward_work(features, self._size, width, self._setup.batch_size)
        means = mean_work(features, self._size, width)
        # a limit is the most that was seen
        arithmetic, memory = (
            1e9 * max(rates[name].rates) for name in (f"matrix product, {precision}", "copy in memory")
        )
        flop = sum(layer.flop for layer in forward)
        roof = images_per_second(forward, arithmetic, memory)
        measured = rates[f"bare forward, {precision}, {OURS}"].rates

        def figure(name: str, values: list[float], unit: str = "") -> Figure:
            return Figure("engine", f"{name}, {precision}", values, unit)

        yield figure("arithmetic of an image", [1e-9 * flop], "GFLOP")
        yield figure("memory traffic of an image", [1e-6 * sum(layer.bytes for layer in forward)], "MB")
        yield figure("traffic that unfused averaging adds", [1e-6 * sum(layer.bytes for layer in means)], "MB")
        yield figure("most by arithmetic alone", [arithmetic / flop], "images/s")
        yield figure("most by the roofline of each layer", [roof], "images/s")
        yield figure("bare forward over the roofline", [rate / roof for rate in measured])

    def _case(
        self,
        name: str,
        work: Callable[[Any], Any],
        argument: Any,
        count: float | None = None,
        unit: str = "images/s",
        *,
        tf32: bool = False,
    ) -> Case:
        """A case. `tf32` lets a GPU round float32 as torch does by default; vbp does not allow it."""

        def whole() -> None:
            with nullcontext() if tf32 else true_float32(torch.device(self._setup.device)):
                work(argument)
            if self._setup.device == "cuda":
                torch.cuda.synchronize()

        return Case("engine", name, clocked(whole, self._setup.batch_size if count is None else count), unit)

    def _features(self, precision: str, layout: str) -> Any:
        return self._copied(self._model.network.get_submodule("features"), precision, layout)

    def _copied(self, network: nn.Module, precision: str, layout: str) -> nn.Module:
        copy: nn.Module = deepcopy(network).to(self._setup.device, PRECISIONS[precision])
        return copy.to(memory_format=FORMATS[layout])

    def _images(self, precision: str, layout: str) -> Tensor:
        return self._images_BCHW.to(PRECISIONS[precision]).contiguous(memory_format=FORMATS[layout])


def _on_each_core(precision: str) -> str:
    return f"bare forward, {precision}, a batch on each core"
