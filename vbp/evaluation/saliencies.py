"""Saliencies of one network by any method of `METHODS`.

Shapes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vbp.errors import UsageError
from vbp.evaluation import baselines, cams, gradients, own, relevance
from vbp.evaluation.methods import METHODS, Entry
from vbp.evaluation.subject import Batch, Saliency, Subject
from vbp.saliency.method import Method


def _per_image(baseline: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> Saliency:
    return lambda batch: np.stack([baseline(pixels_HWC) for pixels_HWC in batch.pixels_BHWC])


MAKERS: Mapping[str, Callable[[Subject], Saliency]] = MappingProxyType(
    {
        "vbp": own.as_run,
        "vbp-reference": own.reference,
        "vbp-last": own.last_stages,
        "vbp-target": own.weighted,
        "random-twin": own.of_random_twin,
        "eigencam": cams.eigen_cam,
        "gradcam": cams.grad_cam,
        "layercam": cams.layer_cam,
        "hirescam": cams.hires_cam,
        "refinecam": cams.refine_cam,
        "input-gradient": gradients.input_gradient,
        "guided-backprop": gradients.guided_backprop,
        "smoothgrad": gradients.smooth_grad,
        "lrp": relevance.lrp,
        "centre": lambda subject: _per_image(lambda pixels_HWC: baselines.centre(*pixels_HWC.shape[:2])),
        "edge": lambda subject: _per_image(baselines.edge),
        "uniform": lambda subject: _per_image(lambda pixels_HWC: baselines.uniform(pixels_HWC, subject.seed)),
    }
)
"""For each method a function that prepares it for a network, once."""


class Saliencies:
    """Saliencies of one network: of any method, for any batch.

    An image's saliency depends on the image alone: not on those beside it, nor on earlier batches; random numbers come
    from `seed`. The network is not changed: no hooks are added, no gradients are left, no mode is switched. Libraries
    work on copies that share its tensors.

    Examples:
        >>> saliencies = Saliencies(network, Method())
        >>> saliency_BHW = saliencies("gradcam", images_BCHW, pixels_BHWC, classes_B)

    Args:
        network: in float32, on any device. VisualBackProp must be able to explain it.
        method: the settings of VisualBackProp for `vbp`, which `vbp-reference`, `vbp-last`, `vbp-target` and
            `random-twin` change in the one point that their names say.
        seed: of random weights and noise.
        has_classifier: whether the network's output is (B, K), scores of K classes.
    """

    def __init__(self, network: nn.Module, method: Method, *, seed: int = 500, has_classifier: bool = True):
        self._subject = Subject(network, method, seed)
        self._has_classifier = has_classifier
        self._made: dict[str, Saliency] = {}

    def refusal(self, name: str, shape: tuple[int, int, int, int] = (2, 3, 224, 224)) -> str | None:
        """Why a method cannot be applied to this network, as a sentence that says what to do; None if it can.

        It is tried on noise, once. That takes as long as explaining two images.

        Args:
            name: of a method.
            shape: (B, C, H, W) of the noise.

        Raises:
            UsageError: there is no such method.
        """
        entry = _entry(name)
        if entry.needs_classifier and not self._has_classifier:
            return (
                f"method {name!r} explains a class, and this network has no classifier: leave it out, or give a "
                "checkpoint with one."
            )
        if entry.library is not None and find_spec(entry.library) is None:
            return f"method {name!r} needs the package {entry.package}: pip install 'visualbackprop[eval]'."
        generator = torch.Generator().manual_seed(self._subject.seed)
        images_BCHW = torch.randn(shape, generator=generator).to(self._device)
        pixels_BHWC = np.zeros((shape[0], *shape[2:], 3), np.uint8)
        classes_B = torch.zeros(shape[0], dtype=torch.int64) if self._has_classifier else None
        try:
            saliency_BHW = self(name, images_BCHW, pixels_BHWC, classes_B)
        except Exception as error:  # libraries may raise anything
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        else:
            if np.isfinite(saliency_BHW).all():
                return None
            reason = "its values are not finite"
        network = type(self._subject.network).__name__
        return f"method {name!r} cannot be applied to {network}: {reason}. Leave this method out."

    def __call__(
        self,
        name: str,
        images_BCHW: Tensor,
        pixels_BHWC: NDArray[np.uint8],
        classes_B: Tensor | NDArray[np.integer] | None = None,
    ) -> NDArray[np.float32]:
        """Saliencies, float32 (B, H, W), values >= 0; NaN where the method's own computation is not finite.

        What a value means is for each method to say; only values of one image may be compared.

        Args:
            name: of a method for which there is no `refusal`.
            images_BCHW: float32, normalised as the network takes them, on its device.
            pixels_BHWC: the same images as RGB, uint8.
            classes_B: the class to explain for each; None without a classifier.

        Raises:
            UsageError: there is no such method.
            ImageError: the images are too small for the network.
        """
        _entry(name)
        with torch.inference_mode(False), torch.enable_grad():
            if name not in self._made:
                self._made[name] = MAKERS[name](self._subject)
            classes = None if classes_B is None else torch.as_tensor(classes_B).to(self._device, torch.int64)
            # A copy, because the network may change its input in place.
            batch = Batch(images_BCHW.detach().clone(), pixels_BHWC, classes)
            values_BHW = self._made[name](batch)
        if isinstance(values_BHW, Tensor):
            values_BHW = values_BHW.detach().cpu().numpy()
        return np.ascontiguousarray(values_BHW, np.float32)

    @property
    def _device(self) -> torch.device:
        return next(self._subject.network.parameters()).device


def _entry(name: str) -> Entry:
    if name not in METHODS:
        raise UsageError(f"method {name!r} is none of {', '.join(METHODS)}.")
    return METHODS[name]
