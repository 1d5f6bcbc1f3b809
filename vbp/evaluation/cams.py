"""Class activation maps by pytorch-grad-cam.

Of which layer: the map of VisualBackProp's last stage, after which only pooling and the classifier follow. The
library hooks modules, and in many networks no module gives exactly this map: so they run on the network `opened`.

The library sets negative values to 0, stretches each map to [0, 1] and enlarges it, bilinearly, to the image. Its
values therefore compare pixels of one image, not images.

Shapes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from vbp.evaluation.opened import opened, tap_of
from vbp.evaluation.subject import Batch, Saliency, Subject
from vbp.saliency.forward import channels_first
from vbp.saliency.trace import Trace


def grad_cam(subject: Subject) -> Saliency:
    """Grad-CAM: each channel weighted by its gradient's mean over the pixels."""
    from pytorch_grad_cam import GradCAM

    return _cams(subject, GradCAM)


def eigen_cam(subject: Subject) -> Saliency:
    """EigenCAM: the map's first principal component over pixels.

    A component has no sign, and the library leaves it to chance. Here it is the one by which the greatest value
    is positive, as the authors of Seg-Eigen-CAM propose.
    """
    from pytorch_grad_cam import EigenCAM

    class SignedEigenCAM(EigenCAM):  # type: ignore[misc]
        def get_cam_image(self, *args: Any, **settings: Any) -> NDArray[np.float32]:
            component_BHW: NDArray[np.float32] = super().get_cam_image(*args, **settings)
            least_B11, most_B11 = component_BHW.min((1, 2), keepdims=True), component_BHW.max((1, 2), keepdims=True)
            return np.where(-least_B11 > most_B11, -component_BHW, component_BHW)

    return _cams(subject, SignedEigenCAM, whole=False)


class _Tapped:
    """The opened network with a layer that gives the last stage's map."""

    def __init__(self, network: nn.Module, found: Trace, whole: bool):
        self.network = opened(network, found.graph, found.taps[-1:], whole=whole)
        self.layer = self.network.get_submodule(tap_of(found.taps[-1]))
        self._layout = found.layouts.get(found.taps[-1])

    def channels_first(self, map_: Tensor) -> Tensor:
        """The map as (B, C, H, W)."""
        return map_ if self._layout is None else channels_first(map_, *self._layout)


def _cams(subject: Subject, kind: Callable[..., Any], *, whole: bool = True) -> Saliency:
    """The saliencies of a class of pytorch-grad-cam on the last stage's map."""
    at_size = subject.at_size(lambda found: _Tapped(subject.network, found, whole))

    def saliency(batch: Batch) -> NDArray[np.float32]:
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        at = at_size(batch.images_BCHW)
        classes = [] if batch.classes_B is None else batch.classes_B.tolist()
        cam = kind(at.network, [at.layer], at.channels_first)
        try:  # not `with`: it would hide IndexErrors
            found_BHW: NDArray[np.float32] = cam(batch.images_BCHW, [ClassifierOutputTarget(one) for one in classes])
        finally:
            cam.activations_and_grads.release()
        return found_BHW

    return saliency
