"""VisualBackProp and its variants as methods of the evaluation.

Their values are masks, which end, by the method itself, between 0 and 1; a flat mask is all 0.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from vbp.evaluation.subject import Batch, Saliency, Subject
from vbp.evaluation.twin import random_twin
from vbp.saliency.method import Method
from vbp.saliency.visualbackprop import VisualBackProp


def as_run(subject: Subject) -> Saliency:
    """With the settings of the run."""
    return _masks(subject.network, subject.method)


def reference(subject: Subject) -> Saliency:
    """With the preset `reference`, which leads the mask through pooling in its own way."""
    return _masks(subject.network, replace(subject.method, preset="reference", pooling="exact"))


def last_stages(subject: Subject) -> Saliency:
    """Of the last stage of each resolution."""
    return _masks(subject.network, replace(subject.method, stages="last"))


def weighted(subject: Subject) -> Saliency:
    """With the deepest map weighted for the class."""
    return _masks(subject.network, replace(subject.method, target="predicted"))


def of_random_twin(subject: Subject) -> Saliency:
    """Of the same network with random weights, and class-agnostic, since its classes mean nothing."""
    return _masks(random_twin(subject.network, subject.seed), replace(subject.method, target=None))


def _masks(network: nn.Module, method: Method) -> Saliency:
    vbp = VisualBackProp(network, method=method)

    def masks(batch: Batch) -> Tensor:
        return vbp(batch.images_BCHW, target=None if method.target is None else batch.classes)[:, 0]

    return masks
