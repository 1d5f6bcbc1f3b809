"""Section ``kernels``: which kernels a batch's time goes to, and what each fused convolution takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from vbp.evidence.gpucheck.layers import layers
from vbp.evidence.gpucheck.scope import Found, Scope
from vbp.evidence.launches import OFF
from vbp.evidence.timing import Figure
from vbp.networks.model import Model
from vbp.networks.models import load_model

OTHER = "resnet50"
SHOWN, DRY_SHOWN = 30, 3
NAME = 90
"""Letters of a kernel's name that are shown."""


def kernels(scope: Scope) -> Iterator[Found]:
    """A profile of a batch; the convolutions of VGG16, and of a network with other kernels and with additions."""
    yield from scope.attempted("profile", _profile(scope))
    yield from scope.attempted("vgg16", _layers(scope, lambda: scope.vgg16))
    if not scope.is_dry:
        yield from scope.attempted(OTHER, _layers(scope, partial(load_model, OTHER, "random")))


def _layers(scope: Scope, load: Callable[[], Model]) -> Iterator[Figure | str]:
    model = load()
    yield from layers(scope, model.name, scope.prepared(scope.placed(model), replace(OFF, fused=True)))


def _profile(scope: Scope) -> Iterator[Figure]:
    """The time in kernels beside the time that passes, and the longest of them; launches by name."""
    vbp, images_BCHW = scope.prepared(scope.placed(scope.vgg16)), scope.images()
    on_gpu = scope.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.inference_mode():
        passes = scope.milliseconds(lambda: vbp(images_BCHW))
        with profile(activities=activities, acc_events=True) as profiled:
            vbp(images_BCHW)
            scope.synchronise()

    def microseconds(row: Any) -> float:
        return float(row.self_device_time_total if on_gpu else row.self_cpu_time_total)

    # an operation of torch has a row of its own, with the time of the kernels that it launched
    kind = "CUDA" if on_gpu else "CPU"
    rows = [row for row in profiled.key_averages() if row.device_type.name == kind and microseconds(row) > 0]
    rows.sort(key=microseconds, reverse=True)
    yield Figure("kernels", "a batch", passes, "ms")
    yield Figure("kernels", "in kernels", [sum(map(microseconds, rows)) / 1e3], "ms")
    yield Figure("kernels", "launches", [sum(row.count for row in rows)])
    for row in rows[: DRY_SHOWN if scope.is_dry else SHOWN]:
        yield Figure("kernels", row.key[:NAME], [microseconds(row)], "us", detail=f"{row.count} launches")
