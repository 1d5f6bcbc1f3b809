"""Class weighting: the part of the deepest map that supports a class, by Grad-CAM (Selvaraju et al., arXiv:1610.02391).

Shapes: B images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from vbp.errors import UsageError
from vbp.saliency.forward import channel_mean, channels_first

Target = int | Sequence[int] | Tensor | Literal["predicted"] | Callable[[Any], Tensor]
"""One class for all images, one for each, the class that the network predicts for each, or a function of the
network's output that gives one score (B,) an image: for regression, and for outputs other than (B, K)."""


def score_of(output: Any, target: Target) -> Tensor:
    """The score (B,) of the target in the network's output.

    Raises:
        UsageError: the output has no such target, or the network lets no gradient through.
    """
    score_B = target(output) if callable(target) else _score_of_class(output, target)
    if not (isinstance(score_B, Tensor) and score_B.ndim == 1 and score_B.requires_grad):
        raise UsageError(
            f"the score of a target must be a tensor (B,) that depends on the network's maps, not {_kind(score_B)}."
        )
    return score_B


def weighted_mean(map_BCHW: Tensor, score_B: Tensor, layout: tuple[int, int, int] | None = None) -> Tensor:
    """The mean over channels, weighted by how much each raises the image's score; negative results become 0.

    The weight is the score's gradient, averaged over the map's pixels. If global average pooling and one linear layer
    follow, it is, up to a factor, that layer's weight for the class (CAM, Zhou et al., arXiv:1512.04150).

    Args:
        map_BCHW: the map on which the score depends.
        score_B: the score of each image.
        layout: the axes of images, rows and columns of a map that is not (B, C, H, W).

    Returns:
        float32 (B, 1, H, W), values >= 0.
    """
    (gradient_BCHW,) = torch.autograd.grad(score_B.sum(), map_BCHW)
    if layout is not None:
        map_BCHW, gradient_BCHW = (channels_first(one, *layout) for one in (map_BCHW, gradient_BCHW))
    weight_BC11 = gradient_BCHW.mean((2, 3), keepdim=True, dtype=torch.float32)
    return channel_mean(map_BCHW.detach().float() * weight_BC11).clamp(min=0)


def _score_of_class(output: Any, target: int | Sequence[int] | Tensor | str) -> Tensor:
    if not (isinstance(output, Tensor) and output.ndim == 2):
        raise UsageError(
            f"target {target!r} needs an output of shape (B, K), not {_kind(output)}: give a function of the output "
            "that returns one score an image."
        )
    images, classes = output.shape
    if isinstance(target, str):
        if target != "predicted":
            raise UsageError(f"target {target!r} is neither 'predicted' nor a class.")
        return output.amax(1)
    index = torch.as_tensor(target, device=output.device)
    if index.shape not in ((), (images,)) or index.is_floating_point():
        raise UsageError(f"target must be one class, or one for each of {images} images, not {_kind(index)}.")
    if not ((index >= 0) & (index < classes)).all():
        raise UsageError(f"target {target!r} is outside the network's classes 0 to {classes - 1}.")
    return _at(output, index.expand(images))


def predicted_now(output_BK: Tensor) -> Callable[[Any], Tensor]:
    """A target for later passes: the classes that this output predicts. It does not wait for the device."""
    with torch.inference_mode(False):  # autograd will need the index
        return partial(_at, index_B=output_BK.argmax(1))


def _at(output_BK: Tensor, index_B: Tensor) -> Tensor:
    return output_BK.gather(1, index_B[:, None])[:, 0]


def _kind(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
