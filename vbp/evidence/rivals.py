"""Methods that the engine is compared with; those of a library raise ``ImportError`` if it is not installed.

Each takes a network (or its feature part) and returns a function of a batch of normalised images.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbp.explainer import single_threads

CLASS = 0
"""What the class-specific methods explain; to look up the predicted class would cost them more."""


def bare_forward(features: nn.Module) -> Callable[[Tensor], Tensor]:
    """The feature part of the network and nothing else: the limit of every method that needs a forward pass."""

    def run(images_NCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            output: Tensor = features(images_NCHW)
        return output

    return run


def side_by_side(work: Callable[[Tensor], Tensor]) -> Callable[[Iterable[Tensor]], list[Tensor]]:
    """`work` on many batches at the same time, each on a core of its own, as vbp's engine does on a CPU."""
    pool = single_threads()
    return lambda batches: list(pool.map(work, batches))


def reference_algorithm(features: Iterable[nn.Module]) -> Callable[[Tensor], Tensor]:
    """The algorithm of devansh20la/VisualBackprop as it is written there: float32, eager, one layer after another.

    Every ReLU's map is cloned whole and summed; all-ones transposed convolutions (3x3/1/1 at one size, 4x4/2/1 across
    a pool) lead down; every product is stretched to [0, 1]; the last step to the input is left out.
    """
    same, twice = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 4, 4)

    def run(images_NCHW: Tensor) -> Tensor:
        kept: list[Tensor] = []
        with torch.no_grad():
            value = images_NCHW
            for layer in features:
                value = layer(value)
                if isinstance(layer, nn.ReLU):
                    kept.append(value.clone().detach().sum(1, keepdim=True))
            mask = kept[-1]
            for below in kept[-2::-1]:
                if mask.shape == below.shape:
                    mask = F.conv_transpose2d(mask, same.to(mask), padding=1)
                else:
                    mask = F.conv_transpose2d(mask, twice.to(mask), stride=2, padding=1)
                mask = mask * below
                flat = mask.flatten(1)
                least, most = (each.view(-1, 1, 1, 1) for each in (flat.amin(1), flat.amax(1)))
                mask = (mask - least) / (most - least)
        return mask

    return run


def grad_cam(network: Any) -> Callable[[Tensor], Any]:
    """Grad-CAM of the last feature map by pytorch-grad-cam: masks (N, H, W)."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def run(images_NCHW: Tensor) -> Any:
        with GradCAM(model=network, target_layers=[network.features[-1]]) as cam:
            return cam(images_NCHW, [ClassifierOutputTarget(CLASS)] * len(images_NCHW))

    return run


def eigen_cam(network: Any) -> Callable[[Tensor], Any]:
    """EigenCAM by pytorch-grad-cam, the other method that needs no gradients: masks (N, H, W)."""
    from pytorch_grad_cam import EigenCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def run(images_NCHW: Tensor) -> Any:
        with torch.no_grad(), EigenCAM(model=network, target_layers=[network.features[-1]]) as cam:
            return cam(images_NCHW, [ClassifierOutputTarget(CLASS)] * len(images_NCHW))

    return run


def guided_backprop(network: Any) -> Callable[[Tensor], Tensor]:
    """Guided backpropagation by captum: attributions of the images' shape."""
    from captum.attr import GuidedBackprop

    method = GuidedBackprop(network)

    def run(images_NCHW: Tensor) -> Tensor:
        with warnings.catch_warnings():  # it announces its hooks on every call
            warnings.simplefilter("ignore", UserWarning)
            attributions: Tensor = method.attribute(images_NCHW.detach().clone(), target=CLASS)
        return attributions

    return run


def lrp(network: Any) -> Callable[[Tensor], Tensor]:
    """Layer-wise relevance propagation by zennit, by the rules of its first example: relevance of the images' shape."""
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat

    method = Gradient(network, EpsilonPlusFlat())

    def one_class(output_NK: Tensor) -> Tensor:
        relevance_NK = torch.zeros_like(output_NK)
        relevance_NK[:, CLASS] = output_NK[:, CLASS].detach()
        return relevance_NK

    def run(images_NCHW: Tensor) -> Tensor:
        relevance: Tensor = method(images_NCHW.detach().clone(), one_class)[1]
        return relevance

    return run


RIVALS: dict[str, Callable[[nn.Module], Callable[[Tensor], Any]]] = {
    "EigenCAM": eigen_cam,
    "Grad-CAM": grad_cam,
    "guided backprop": guided_backprop,
    "LRP": lrp,
}


def out_of_place(network: nn.Module) -> nn.Module:
    """The network with ReLUs that are not in-place, as methods with backward hooks need them."""
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return network
