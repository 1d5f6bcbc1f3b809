"""Gradients of a class's score with respect to the pixels, by captum.

A pixel's value is the largest of its colours' absolute gradients, as Simonyan et al. and Smilkov et al. show them; all
three methods are reduced alike, so that they differ in their gradients alone.

Shapes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F
from typing_extensions import override

from vbp.errors import ModelError
from vbp.evaluation.opened import opened
from vbp.evaluation.subject import Batch, Saliency, Subject
from vbp.saliency.operations import module_of, operation_of
from vbp.saliency.smoothing import noisy_copies
from vbp.saliency.trace import Trace

SAMPLES = 20
"""Noisy copies of each image for `smooth_grad`; its authors see little change beyond 50."""
NOISE = 0.15
"""The noise's standard deviation as a share of the range of the image's values; its authors advise 0.1 to 0.2."""


def input_gradient(subject: Subject) -> Saliency:
    """The gradient itself."""
    gradient = _Gradient(subject)
    return lambda batch: _strongest(gradient(batch.images_BCHW, batch.classes))


def smooth_grad(subject: Subject) -> Saliency:
    """SmoothGrad: the mean gradient of `SAMPLES` noisy copies.

    Captum's ``NoiseTunnel`` is not used: it draws the noise of an image by its place in the batch, from the global
    generator.
    """
    gradient = _Gradient(subject)

    def saliency(batch: Batch) -> Tensor:
        copies = noisy_copies(batch.images_BCHW, SAMPLES, NOISE, subject.seed)
        return _strongest(sum((gradient(copy_BCHW, batch.classes) for copy_BCHW in copies), torch.zeros(())) / SAMPLES)

    return saliency


def guided_backprop(subject: Subject) -> Saliency:
    """Guided backpropagation: at each ReLU negative gradients become 0.

    ReLUs that are functions are ReLUs, too, and so is the lower end of ReLU6. Other activations keep their gradient.
    """
    from captum.attr import GuidedBackprop

    def network_of(found: Trace) -> nn.Module:
        network = opened(subject.network, found.graph, layer=_relu)
        if not any(isinstance(module, nn.ReLU) for module in network.modules()):
            raise ModelError("it has no ReLU, and without one guided backpropagation is the input gradient")
        return network

    network_at = subject.at_size(network_of)

    def saliency(batch: Batch) -> Tensor:
        with warnings.catch_warnings():  # it announces its hooks on every call
            warnings.filterwarnings("ignore", "Setting backward hooks on ReLU activations", UserWarning)
            method = GuidedBackprop(network_at(batch.images_BCHW))
            return _strongest(method.attribute(_leaf(batch.images_BCHW), target=batch.classes))

    return saliency


class _Gradient:
    """The gradient (B, C, H, W) of each image's class."""

    def __init__(self, subject: Subject):
        self._network_at = subject.at_size(lambda found: opened(subject.network, found.graph))

    def __call__(self, images_BCHW: Tensor, classes_B: Tensor) -> Tensor:
        from captum.attr import Saliency as Gradient

        method = Gradient(self._network_at(images_BCHW))
        gradient_BCHW: Tensor = method.attribute(_leaf(images_BCHW), target=classes_B, abs=False)
        return gradient_BCHW


def _leaf(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.clone().requires_grad_()


def _strongest(gradient_BCHW: Tensor) -> Tensor:
    return gradient_BCHW.abs().amax(1)


class _Ceiling(nn.Module):
    """What ReLU6 does besides ReLU."""

    def __init__(self, highest: float):
        super().__init__()
        self._highest = highest

    @override
    def forward(self, map_BCHW: Tensor) -> Tensor:
        return map_BCHW.clamp(max=self._highest)


_RELUS: Mapping[Any, float | None] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), None),
    **dict.fromkeys((nn.ReLU6, F.relu6), 6.0),
}
"""ReLUs that captum does not find, and their upper ends."""


def _relu(node: Node, network: nn.Module) -> nn.Module | None:
    """The node as a ReLU that captum finds."""
    operation = operation_of(node, network)
    if operation is nn.Hardtanh:
        lowest, highest = (float(vars(module_of(node, network))[end]) for end in ("min_val", "max_val"))
        return nn.Sequential(nn.ReLU(), _Ceiling(highest)) if lowest == 0 else None
    if operation not in _RELUS:
        return None
    ceiling = _RELUS[operation]
    return nn.ReLU() if ceiling is None else nn.Sequential(nn.ReLU(), _Ceiling(ceiling))
