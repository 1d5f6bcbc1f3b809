"""Variants of VisualBackProp that are worth a try, for the evaluation alone: none of them is offered to users.

All start from the averaged maps of the run's stages, class-agnostic, and lead masks down through pooling exactly.

Shapes: B images, 1 channel, H rows, W columns; h, w the size of a stage's map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from vbp.evaluation.subject import Batch, Saliency, Subject
from vbp.evaluation.twin import random_twin
from vbp.saliency.geometry import Size, Stage
from vbp.saliency.method import Method
from vbp.saliency.visualbackprop import VisualBackProp, visual_backprop


def without_floor(subject: Subject) -> Saliency:
    """Each averaged map without its least value: what is active everywhere multiplies nothing."""

    def masks(maps: Sequence[Tensor], stages: Sequence[Stage], size: Size) -> Tensor:
        lifted = [map_B1hw - map_B1hw.amin((1, 2, 3), keepdim=True) for map_B1hw in maps]
        return visual_backprop(lifted, stages, size).mask_N1HW

    return _of_maps(subject, masks)


def geometric_mean(subject: Subject) -> Saliency:
    """The geometric mean of the maps instead of their product: as many stages, but no greater contrast.

    On the way down the mask is the mean of the maps so far; the next map counts as one of them.
    """

    def masks(maps: Sequence[Tensor], stages: Sequence[Stage], size: Size) -> Tensor:
        mask_B1hw = _scaled(maps[-1])
        for count, (stage, below_B1hw) in enumerate(zip(stages[:0:-1], maps[-2::-1], strict=True), 1):
            rows, columns = below_B1hw.shape[-2:]
            led_B1hw = _scaled(stage.deconvolve(mask_B1hw, (rows, columns)))
            mask_B1hw = (led_B1hw**count * _scaled(below_B1hw)) ** (1 / (count + 1))
        return _scaled(stages[0].deconvolve(mask_B1hw, size))

    return _of_maps(subject, masks)


def minus_twin(subject: Subject) -> Saliency:
    """The mask minus that of the random twin, each with a sum of 1; where the twin has more, 0."""
    method = _agnostic(subject.method)
    trained, random = (
        VisualBackProp(network, method=method)
        for network in (subject.network, random_twin(subject.network, subject.seed))
    )

    def saliency(batch: Batch) -> Tensor:
        # copies, because a network may change its input in place
        shares = [_share(vbp(batch.images_BCHW.clone())) for vbp in (trained, random)]
        return (shares[0] - shares[1]).clamp(min=0)[:, 0]

    return saliency


VARIANTS: Mapping[str, Callable[[Subject], Saliency]] = MappingProxyType(
    {"without-floor": without_floor, "geometric-mean": geometric_mean, "minus-twin": minus_twin}
)


def _of_maps(subject: Subject, masks: Callable[[Sequence[Tensor], Sequence[Stage], Size], Tensor]) -> Saliency:
    method = _agnostic(subject.method)
    vbp = VisualBackProp(subject.network, method=method)
    stages_at = subject.at_size(lambda found: found.chosen(method.stages).stages)

    def saliency(batch: Batch) -> Tensor:
        stages = stages_at(batch.images_BCHW)
        rows, columns = batch.images_BCHW.shape[-2:]
        maps = vbp.explain(batch.images_BCHW.clone(), classify=False).maps
        with torch.no_grad():
            return masks(maps, stages, (rows, columns))[:, 0]

    return saliency


def _agnostic(method: Method) -> Method:
    return replace(method, preset="paper", pooling="exact", target=None, smooth=0, multiply_input=False)


def _scaled(map_B1hw: Tensor) -> Tensor:
    """Each map divided by its maximum; a map of zeros stays."""
    largest_B111 = map_B1hw.amax((1, 2, 3), keepdim=True)
    return map_B1hw / largest_B111.where(largest_B111 > 0, 1)


def _share(mask_B1HW: Tensor) -> Tensor:
    """Each mask divided by its sum; a mask of zeros stays."""
    sum_B111 = mask_B1HW.sum((1, 2, 3), keepdim=True)
    return mask_B1HW / sum_B111.where(sum_B111 > 0, 1)
