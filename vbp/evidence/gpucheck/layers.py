"""Each convolution that cuDNN fuses, beside the same in steps: it may have a slow engine for one geometry alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vbp.evidence.gpucheck.scope import Scope
from vbp.evidence.timing import Figure
from vbp.saliency.prepared.cuda import FusedConvolution
from vbp.saliency.visualbackprop import VisualBackProp

Shape = tuple[int, ...]


def layers(scope: Scope, name: str, vbp: VisualBackProp) -> Iterator[Figure | str]:
    """Microseconds of each geometry of a prepared network, with the time in steps as target; or that it is refused."""
    images_BCHW = scope.images()
    for title, (layer, shapes) in _geometries(vbp, images_BCHW).items():
        if layer.is_refused:
            yield f"cuDNN does not fuse {title}"
            continue
        maps = [_map_like(images_BCHW, shape) for shape in shapes]
        other = maps[1] if len(maps) > 1 else None
        with torch.inference_mode():
            fused, plain = (
                1e6 * scope.briefly(partial(work, maps[0], other)) for work in (layer.at_once, layer.in_steps)
            )
        yield Figure("kernels", f"{name}, fused: {title}", [fused], "us", plain, at_most=True)


def _geometries(vbp: VisualBackProp, images_BCHW: Tensor) -> dict[str, tuple[FusedConvolution, list[Shape]]]:
    """One layer of each geometry, and the shapes that it gets."""
    found: dict[str, tuple[FusedConvolution, list[Shape]]] = {}

    def note(layer: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        size = "x".join(map(str, inputs[0].shape[2:]))
        title = f"{layer.extra_repr()}, on {size}{', and addition' if len(inputs) > 1 else ''}"
        found.setdefault(title, (layer, [tuple(each.shape) for each in inputs]))

    fused = [module for module in vbp._forward.model.modules() if isinstance(module, FusedConvolution)]
    handles = [layer.register_forward_hook(note) for layer in fused]
    try:
        with torch.inference_mode():
            vbp(images_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _map_like(images_BCHW: Tensor, shape: Shape) -> Tensor:
    map_NCHW = torch.randn(shape, device=images_BCHW.device, dtype=images_BCHW.dtype)
    return map_NCHW.contiguous(memory_format=torch.channels_last)
