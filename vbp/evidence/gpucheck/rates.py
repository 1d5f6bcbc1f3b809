"""Section ``rates``: VGG16 step by step, from the bare forward pass to masks as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vbp.evidence.engine import IMAGES, LEAST
from vbp.evidence.gpucheck.scope import PRECISION, Scope, attempted
from vbp.evidence.launches import OFF, steps
from vbp.evidence.rivals import bare_forward
from vbp.evidence.timing import Figure
from vbp.explainer import Explainer
from vbp.saliency.prepared.captured import CudaRecorder
from vbp.saliency.prepared.switches import Switches
from vbp.saliency.visualbackprop import VisualBackProp

BATCHES = (32, 64, 256, 512)
"""Beside the usual size."""
BARE, ON_DEVICE, WHOLE = "bare forward pass", "masks on the device", "pixels as NumPy to masks as NumPy"


def rates(scope: Scope) -> Iterator[Figure | str]:
    """Bare; masks on the device, by each optimisation alone and by all; with copies, and in float32; as a graph."""
    network, images_BCHW = scope.placed(scope.vgg16), scope.images()
    with torch.inference_mode():
        bare = scope.rates(partial(bare_forward(network.get_submodule("features")), images_BCHW))
        yield _figure(BARE, bare)
        expected = scope.prepared(network, OFF)(images_BCHW)
        for title, switches in steps():
            vbp = scope.prepared(network, switches)
            most = float((vbp(images_BCHW) - expected).abs().max())
            ours = scope.rates(partial(vbp, images_BCHW))
            yield _figure(f"{ON_DEVICE}, optimised: {title}", ours, detail=f"greatest difference {most:.1e}")
        over = [one / other for one, other in zip(ours, bare, strict=True)]
        yield Figure("rates", f"{ON_DEVICE} over {BARE}", over, target=LEAST["cuda"])
    for graph in (True, False):
        yield from attempted(WHOLE, _whole(scope, PRECISION, scope.batch_size, Switches(graph=graph)))
    for batch_size in () if scope.is_dry else BATCHES:
        yield from attempted(WHOLE, _whole(scope, PRECISION, batch_size, Switches()))
    yield from attempted(WHOLE, _whole(scope, "float32", scope.batch_size, Switches()))
    if scope.device == "cuda":
        with torch.inference_mode():
            yield from attempted("peak memory", _memory(partial(vbp, images_BCHW)))
            yield from attempted(f"{ON_DEVICE}, as a CUDA graph", _as_graph(scope, vbp, images_BCHW))


def _figure(name: str, values: list[float], **more: Any) -> Figure:
    return Figure("rates", name, values, "images/s", **more)


def _memory(explain: Callable[[], Any]) -> Iterator[Figure]:
    torch.cuda.reset_peak_memory_stats()
    explain()
    peak = torch.cuda.max_memory_allocated() / 2**30
    yield Figure("rates", "peak memory of a batch, with the network", [peak], "GiB")


def _as_graph(scope: Scope, vbp: VisualBackProp, images_BCHW: Tensor) -> Iterator[Figure]:
    """The same kernels, launched all at once."""
    expected, results = vbp(images_BCHW), []
    replay = CudaRecorder().record(lambda: results.append(vbp(images_BCHW)))
    replay()
    unequal = int((results[0] != expected).sum())
    yield _figure(f"{ON_DEVICE}, as a CUDA graph", scope.rates(replay), detail=f"{unequal} values differ")


def _whole(scope: Scope, precision: str, batch_size: int, switches: Switches) -> Iterator[Figure]:
    pixels_BHWC = scope.pixels(batch_size)
    explainer = Explainer(
        scope.vgg16, device=scope.device, precision=precision, batch_size=batch_size, classify=False, switches=switches
    )
    values = scope.rates(partial(explainer, pixels_BHWC), batch_size)
    is_usual = (precision, batch_size, switches) == (PRECISION, scope.batch_size, Switches())
    name = f"{WHOLE}, {precision}, batches of {batch_size}{'' if switches.graph else ', without a graph'}"
    yield _figure(name, values, target=IMAGES if is_usual else None)
