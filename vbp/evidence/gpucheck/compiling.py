"""Section ``compiling``: what torch.compile makes of the same masks: the first call, the rate, the difference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from vbp.evidence.gpucheck.scope import Scope
from vbp.evidence.timing import Figure
from vbp.saliency.visualbackprop import VisualBackProp


def compiling(scope: Scope) -> Iterator[Figure]:
    """A dry check needs no compiler: it only records the graph."""
    vbp, images_BCHW = VisualBackProp(scope.placed(scope.vgg16)), scope.images()
    compiled: Any = torch.compile(vbp, dynamic=False, backend="eager" if scope.is_dry else "inductor")
    with torch.inference_mode():
        expected = vbp(images_BCHW)
        started = time.perf_counter()
        mask = compiled(images_BCHW)
        scope.synchronise()
        yield Figure("compiling", "first call", [time.perf_counter() - started], "s")
        most = float((mask - expected).abs().max())
        rates = scope.rates(partial(compiled, images_BCHW))
        yield Figure("compiling", "masks on the device", rates, "images/s", detail=f"greatest difference {most:.1e}")
