"""Calibration for int8, from images alone: the range of each map, and the layers that must stay in float32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from typing_extensions import override

from vbp.errors import ModelError, UsageError
from vbp.saliency.forward import ForwardPass, evaluating
from vbp.saliency.prepared.byte_layers import FromBytes, QuantisedConvolution, Step, ToBytes, can_add
from vbp.saliency.prepared.chains import modules_of
from vbp.saliency.prepared.int8 import Scales, quantised
from vbp.saliency.prepared.quantisable import of_equal_shapes, quantisable_additions, quantisable_chains

IMAGES = 80
"""The most images that are used."""
LEAST_IMAGES = 5
HELD_OUT = 5
"""One image of so many is held out: it is not used for ranges, but to test masks."""
LEAST_CORRELATION = 0.999
"""Least Pearson correlation of every held-out mask with its float32 mask."""
RANKED_BY = 8
"""Number of images on which the loss of each layer is measured."""

MaskOf = Callable[[ForwardPass, Tensor], Tensor]
Watcher = Callable[[list[Node], Tensor, Tensor], None]
"""Called with a chain, its input and its output."""


def calibrate(
    forward: ForwardPass, images: Sequence[Callable[[], Tensor]], mask_of: MaskOf, least: float | None = None
) -> Scales:
    """Find ranges on most of the images; then put layers back to float32 until the masks of the others are right.

    The layer that loses most goes first, then the next, and at most half of them. If that is not enough, the additions
    of residual blocks go back, too.

    Args:
        forward: a float32 pass on the CPU.
        images: functions that return an image as the network takes it: float32 (1, C, H, W).
        mask_of: computes the mask of an image by a pass.
        least: least correlation of every held-out mask; None: `LEAST_CORRELATION`.

    Raises:
        UsageError: there are too few images.
        ModelError: this network cannot be computed with integers.
    """
    if len(images) < LEAST_IMAGES:
        raise UsageError(
            f"calibration: {len(images)} images are too few; give at least {LEAST_IMAGES}, better {IMAGES}."
        )
    least = LEAST_CORRELATION if least is None else least
    images = images[:IMAGES]
    held_out, seen = images[::HELD_OUT], [image for i, image in enumerate(images) if i % HELD_OUT]
    with torch.inference_mode(), evaluating(forward.model):
        scales = Scales(_ranges(forward, seen), additions=_additions(forward, images[0]()))
        expected = [mask_of(forward, image()) for image in held_out]

        worst_first = cache(lambda: _worst_first(forward, scales, seen[:RANKED_BY]))
        for tried in _choices(scales, worst_first):
            integers = quantised(forward, tried)
            found = (mask_of(integers, image()) for image in held_out)
            reached = min(_correlation(mask, other) for mask, other in zip(expected, found, strict=True))
            if reached >= least:
                return tried
    raise ModelError(
        f"precision 'int8' does not suit this network: with {len(tried.floats)} of {len(worst_first())} convolutions "
        f"in float32, a mask still correlates by no more than {reached:.4f} with that in float32, and {least} is "
        "wanted; use float32 or bfloat16."
    )


def _choices(scales: Scales, worst_first: Callable[[], list[str]]) -> Iterator[Scales]:
    """What is tried, in order: more and more convolutions in float32; then again, with all additions in float32."""
    yield scales
    for count in _counts(len(worst_first())):
        yield scales.leaving(worst_first()[:count])
    if scales.additions:
        yield from _choices(replace(scales, additions=()), worst_first)


def _counts(layers: int) -> Iterator[int]:
    """Numbers of layers to leave in float32, to be tried in order: first in steps of one, then in larger steps."""
    count = 1
    while count <= layers // 2:
        yield count
        count += max(1, count // 3)


def _ranges(forward: ForwardPass, images: Sequence[Callable[[], Tensor]]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every map that may be stored in bytes."""
    ends: dict[str, list[float]] = defaultdict(list)

    def watch(chain: list[Node], map_NCHW: Tensor, output_NCHW: Tensor) -> None:
        ends[chain[0].all_input_nodes[0].name] += map(float, map_NCHW.aminmax())
        ends[chain[-1].name] += map(float, output_NCHW.aminmax())

    _watched(forward, images, watch)
    if not all(value - value == 0 for values in ends.values() for value in values):
        raise ModelError("precision 'int8': the network gives infinity or NaN for an image of the calibration.")
    return {name: (min(values), max(values)) for name, values in ends.items()}


def _additions(forward: ForwardPass, image_1CHW: Tensor) -> tuple[str, ...]:
    """The names of the additions that can be computed in integers; none where torch cannot."""
    if not can_add():
        return ()
    shape = torch.Size(image_1CHW.shape)
    found = of_equal_shapes(quantisable_additions(forward), forward.model, (shape[0], shape[1], shape[2], shape[3]))
    return tuple(node.name for node in found)


def _worst_first(forward: ForwardPass, scales: Scales, images: Sequence[Callable[[], Tensor]]) -> list[str]:
    """The convolutions, sorted by the loss in each one's output when it alone uses integers, the worst first."""
    lost: dict[str, float] = defaultdict(float)
    layers: dict[str, QuantisedConvolution] = {}

    def watch(chain: list[Node], map_NCHW: Tensor, output_NCHW: Tensor) -> None:
        name, source = chain[0].name, Step.over(*scales.ranges[chain[0].all_input_nodes[0].name])
        if name not in layers:
            layers[name] = QuantisedConvolution(*modules_of(chain, forward.model), source, None)
        found_NCHW = layers[name](ToBytes(source)(map_NCHW))
        step = Step.over(*scales.ranges[chain[-1].name])
        if step.zero == 0:
            found_NCHW = FromBytes(step)(ToBytes(step)(found_NCHW))
        lost[name] += float((found_NCHW - output_NCHW).norm() / output_NCHW.norm().clamp(min=1e-30))

    _watched(forward, images, watch)
    return sorted(lost, key=lambda name: (-lost[name], name))


def _watched(forward: ForwardPass, images: Sequence[Callable[[], Tensor]], watch: Watcher) -> None:
    module = GraphModule(forward.model, deepcopy(forward.graph))
    for image in images:
        _Watching(module, watch).run(image())


class _Watching(Interpreter):
    """Runs a pass node by node, and calls `watch` with the input and output of each chain."""

    def __init__(self, module: GraphModule, watch: Watcher):
        super().__init__(module)
        chains = quantisable_chains(ForwardPass(module, module.graph))
        self._by_first, self._by_last = {chain[0]: chain for chain in chains}, {chain[-1]: chain for chain in chains}
        self._inputs: dict[Node, Tensor] = {}
        self._watch = watch

    @override
    def run_node(self, n: Node) -> Any:
        if n in self._by_first:
            self._inputs[n] = self.env[n.all_input_nodes[0]]
        result = super().run_node(n)
        if n in self._by_last:
            chain = self._by_last[n]
            self._watch(chain, self._inputs.pop(chain[0]), result)
        return result


def _correlation(first_1HW: Tensor, second_1HW: Tensor) -> float:
    """Pearson correlation of two masks; 1 if both are flat, 0 if one is."""
    first, second = (mask.double().flatten() - mask.double().mean() for mask in (first_1HW, second_1HW))
    norms = float(first.norm()), float(second.norm())
    if 0 in norms:
        return float(norms[0] == norms[1])
    return float(first @ second) / (norms[0] * norms[1])
