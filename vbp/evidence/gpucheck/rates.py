"""Section ``rates``: VGG16 step by step, from the bare forward pass to masks as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vbp.evidence.gpucheck.scope import PRECISION, Scope
from vbp.evidence.rivals import bare_forward
from vbp.evidence.timing import Figure
from vbp.explainer import Explainer
from vbp.saliency.visualbackprop import VisualBackProp

BATCHES = (32, 64, 256, 512)
"""Beside the usual size."""
LEAST_OF_BARE = 0.90
IMAGES = 10_000
"""NumPy to NumPy, on an H100 or H200."""
BARE, ON_DEVICE, WHOLE = "bare forward pass", "masks on the device", "pixels as NumPy to masks as NumPy"


def rates(scope: Scope) -> Iterator[Figure]:
    """Bare, on the device, as a CUDA graph, memory, then with copies, and the same in float32."""
    model, images_BCHW = scope.vgg16, scope.images()
    network = scope.placed(model)
    vbp = VisualBackProp(network)
    explain: Callable[[], Any] = partial(vbp, images_BCHW)
    with torch.inference_mode():
        bare = scope.rates(partial(bare_forward(network.get_submodule("features")), images_BCHW))
        yield _figure(BARE, bare)
        ours = scope.rates(explain)
        yield _figure(ON_DEVICE, ours)
        over = [one / other for one, other in zip(ours, bare, strict=True)]
        yield Figure("rates", f"{ON_DEVICE} over {BARE}", over, target=LEAST_OF_BARE)
        if scope.device == "cuda":
            yield from _memory(explain)
            yield from _as_graph(scope, vbp, images_BCHW)
    yield from _whole(scope, PRECISION, scope.batch_size, target=IMAGES)
    for batch_size in () if scope.is_dry else BATCHES:
        yield from _whole(scope, PRECISION, batch_size)
    yield from _whole(scope, "float32", scope.batch_size)


def _figure(name: str, values: list[float], **more: Any) -> Figure:
    return Figure("rates", name, values, "images/s", **more)


def _memory(explain: Callable[[], Any]) -> Iterator[Figure]:
    torch.cuda.reset_peak_memory_stats()
    explain()
    peak = torch.cuda.max_memory_allocated() / 2**30
    yield Figure("rates", "peak memory of a batch, with the network", [peak], "GiB")


def _as_graph(scope: Scope, vbp: VisualBackProp, images_BCHW: Tensor) -> Iterator[Figure]:
    """The same kernels, launched all at once."""
    expected = vbp(images_BCHW)
    replay, mask = captured(partial(vbp, images_BCHW))
    replay()
    unequal = int((mask != expected).sum())
    yield _figure(f"{ON_DEVICE}, as a CUDA graph", scope.rates(replay), detail=f"{unequal} values differ")


def captured(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """The kernels of `work` as a CUDA graph, to be replayed, and the tensor that each replay writes."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


def _whole(scope: Scope, precision: str, batch_size: int, target: float | None = None) -> Iterator[Figure]:
    pixels_BHWC = scope.pixels(batch_size)
    explainer = Explainer(scope.vgg16, device=scope.device, precision=precision, batch_size=batch_size, classify=False)
    values = scope.rates(partial(explainer, pixels_BHWC), batch_size)
    yield _figure(f"{WHOLE}, {precision}, batches of {batch_size}", values, target=target)
