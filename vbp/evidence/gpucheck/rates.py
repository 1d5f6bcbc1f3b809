"""Section ``rates``: VGG16 step by step, from the bare forward pass to masks as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from vbp.evidence.engine import IMAGES, LEAST
from vbp.evidence.gpucheck.scope import PRECISION, Found, Scope
from vbp.evidence.launches import OFF, steps
from vbp.evidence.rivals import bare_forward
from vbp.evidence.timing import Figure
from vbp.explainer import Explainer
from vbp.pipeline.resources import CALLS_ON_A_GPU
from vbp.saliency.prepared.captured import CudaRecorder
from vbp.saliency.prepared.switches import Switches

BATCHES = (32, 64, 256, 512)
"""Beside the usual size."""
TOGETHER = 2 * CALLS_ON_A_GPU
"""Batches that several threads explain in a call that is timed."""
BARE, ON_DEVICE, WHOLE = "bare forward pass", "masks on the device", "pixels as NumPy to masks as NumPy"
OVER = f"{ON_DEVICE} over {BARE}"
OPTIMISED = f"{ON_DEVICE}, optimised"
GRAPH = f"{ON_DEVICE}, as a CUDA graph"


def rates(scope: Scope) -> Iterator[Found]:
    """Bare; masks on the device, by each optimisation alone and by all; with copies, and in float32; as a graph."""
    vgg16 = _OnDevice(scope)
    yield from scope.attempted(BARE, vgg16.bare())
    for title, switches in steps():
        yield from scope.attempted(f"{OPTIMISED}: {title}", vgg16.optimised(title, switches))
    yield from scope.attempted(OVER, vgg16.over())
    for whole in _wholes(scope):
        yield from scope.attempted(whole.name, whole.figures(scope))
    if scope.device == "cuda":
        yield from scope.attempted("peak memory", vgg16.memory())
        yield from scope.attempted(GRAPH, vgg16.as_graph())


def _figure(name: str, values: list[float], **more: Any) -> Figure:
    return Figure("rates", name, values, "images/s", **more)


class _OnDevice:
    """VGG16 and one batch for it on the device."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._found: dict[str, list[float]] = {}

    @cached_property
    def _network(self) -> Any:
        return self._scope.placed(self._scope.vgg16)

    @cached_property
    def _images_BCHW(self) -> Tensor:
        return self._scope.images()

    @cached_property
    def _expected(self) -> Tensor:
        """The masks without any optimisation."""
        return self._explain(OFF)(self._images_BCHW)

    def _explain(self, switches: Switches | None = None) -> Callable[[Tensor], Tensor]:
        vbp = self._scope.prepared(self._network, switches)

        def explain(images_BCHW: Tensor) -> Tensor:
            with torch.inference_mode():
                return vbp(images_BCHW)

        return explain

    def bare(self) -> Iterator[Figure]:
        forward = bare_forward(self._network.get_submodule("features"))
        self._found[BARE] = self._scope.rates(partial(forward, self._images_BCHW))
        yield _figure(BARE, self._found[BARE])

    def optimised(self, title: str, switches: Switches) -> Iterator[Figure]:
        explain = self._explain(switches)
        most = float((explain(self._images_BCHW) - self._expected).abs().max())
        self._found[title] = self._scope.rates(partial(explain, self._images_BCHW))
        yield _figure(f"{OPTIMISED}: {title}", self._found[title], detail=f"greatest difference {most:.1e}")

    def over(self) -> Iterator[Figure]:
        for name, figures in ((BARE, self.bare()), ("all", self.optimised("all", Switches()))):
            if name not in self._found:
                list(figures)
        pairs = zip(self._found["all"], self._found[BARE], strict=True)
        yield Figure("rates", OVER, [one / other for one, other in pairs], target=LEAST["cuda"])

    def memory(self) -> Iterator[Figure]:
        explain = self._explain()
        explain(self._images_BCHW)
        torch.cuda.reset_peak_memory_stats()
        explain(self._images_BCHW)
        peak = torch.cuda.max_memory_allocated() / 2**30
        yield Figure("rates", "peak memory of a batch, with the network", [peak], "GiB")

    def as_graph(self) -> Iterator[Figure]:
        """The same kernels, launched all at once."""
        explain, results = self._explain(), list[Tensor]()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected = explain(self._images_BCHW)
            replay = CudaRecorder().record(lambda: results.append(explain(self._images_BCHW)))
            replay()
            unequal = int((results[0] != expected).sum())
            found = self._scope.rates(replay)
        yield _figure(GRAPH, found, detail=f"{unequal} values differ")


@dataclass(frozen=True)
class _Whole:
    """A way from pixels as NumPy to masks as NumPy."""

    batch_size: int
    precision: str = PRECISION
    switches: Switches = Switches()
    threads: int = 1
    target: float | None = None

    @property
    def name(self) -> str:
        graph = "" if self.switches.graph else ", without a graph"
        threads = f", {self.threads} at a time" if self.threads > 1 else ""
        return f"{WHOLE}, {self.precision}, batches of {self.batch_size}{graph}{threads}"

    def figures(self, scope: Scope) -> Iterator[Figure]:
        pixels_BHWC = scope.pixels(self.batch_size)
        settings: Mapping[str, Any] = {"batch_size": self.batch_size, "classify": False, "switches": self.switches}
        explainer = Explainer(scope.vgg16, device=scope.device, precision=self.precision, **settings)
        work, count = partial(explainer, pixels_BHWC), self.batch_size
        if self.threads == 1:
            yield _figure(self.name, scope.rates(work, count), target=self.target)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            found = scope.rates(lambda: list(pool.map(explainer, [pixels_BHWC] * TOGETHER)), TOGETHER * count)
        yield _figure(self.name, found, target=self.target)


def _wholes(scope: Scope) -> Iterator[_Whole]:
    """One batch after another, with and without a graph; as a worker of Ray does it; other sizes; float32."""
    usual = scope.batch_size
    yield _Whole(usual, target=IMAGES)
    yield _Whole(usual, switches=Switches(graph=False))
    yield _Whole(usual, threads=CALLS_ON_A_GPU)
    for batch_size in () if scope.is_dry else BATCHES:
        yield _Whole(batch_size)
    yield _Whole(usual, precision="float32")
