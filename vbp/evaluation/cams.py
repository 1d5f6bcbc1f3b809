"""Class activation maps by pytorch-grad-cam.

Of which layer: the map of VisualBackProp's last stage, after which only pooling and the classifier follow. The
library hooks modules, and in many networks no module gives exactly this map: so they run on the network `opened`.

The library sets negative values to 0, stretches each map to [0, 1] and enlarges it, bilinearly, to the image. Its
values therefore compare pixels of one image, not images.

Shapes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from vbp.evaluation.opened import opened, tap_of
from vbp.evaluation.subject import Batch, Saliency, Subject
from vbp.saliency.forward import channels_first
from vbp.saliency.trace import Trace

RESOLUTIONS = 4
"""Of how many resolutions RefineCAM gets the last map, the deepest ones; its authors take four of ResNet."""


def grad_cam(subject: Subject) -> Saliency:
    """Grad-CAM: each channel weighted by its gradient's mean over the pixels."""
    from pytorch_grad_cam import GradCAM

    return _cams(subject, GradCAM)


def layer_cam(subject: Subject) -> Saliency:
    """LayerCAM: each value of the map weighted by its own gradient where that is positive."""
    from pytorch_grad_cam import LayerCAM

    return _cams(subject, LayerCAM)


def hires_cam(subject: Subject) -> Saliency:
    """HiResCAM: each value of the map weighted by its own gradient."""
    from pytorch_grad_cam import HiResCAM

    return _cams(subject, HiResCAM)


def refine_cam(subject: Subject) -> Saliency:
    """RefineCAM: the product of the Grad-CAM++ of the last map of each resolution, of the `RESOLUTIONS` deepest."""
    from pytorch_grad_cam import GradCAMPlusPlus, RefineCAM

    def of_layers(at: _Tapped) -> tuple[Any, list[Any]]:
        def of_layer(network: nn.Module, layers: list[nn.Module], reshape: Any) -> Any:
            return GradCAMPlusPlus(network, layers, at.reshape_of(layers[0]))

        cam = RefineCAM(at.network, at.layers, base_method=of_layer)
        return cam, cam.base_cam_per_layer

    at_size = subject.at_size(lambda found: _Tapped(subject.network, found, found.chosen("last").taps[-RESOLUTIONS:]))
    return lambda batch: _applied(*of_layers(at_size(batch.images_BCHW)), batch)


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
    """The opened network, with a layer for the map of each of some stages."""

    def __init__(self, network: nn.Module, found: Trace, taps: Sequence[str], *, whole: bool = True):
        self.network = opened(network, found.graph, taps, whole=whole)
        self.layers = [self.network.get_submodule(tap_of(tap)) for tap in taps]
        self._layouts = {
            layer: found.layouts[tap] for layer, tap in zip(self.layers, taps, strict=True) if tap in found.layouts
        }

    def reshape_of(self, layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
        """What makes a layer's map (B, C, H, W); None if it is so already."""
        if layer not in self._layouts:
            return None
        return lambda map_: channels_first(map_, *self._layouts[layer])


def _cams(subject: Subject, kind: Callable[..., Any], *, whole: bool = True) -> Saliency:
    """The saliencies of a class of pytorch-grad-cam on the last stage's map."""
    at_size = subject.at_size(lambda found: _Tapped(subject.network, found, found.taps[-1:], whole=whole))

    def saliency(batch: Batch) -> NDArray[np.float32]:
        at = at_size(batch.images_BCHW)
        cam = kind(at.network, at.layers, at.reshape_of(at.layers[0]))
        return _applied(cam, [cam], batch)

    return saliency


def _applied(cam: Any, hooked: Sequence[Any], batch: Batch) -> NDArray[np.float32]:
    """The saliencies of a batch by an object of the library, which is spent; `hooked` are those that hold hooks."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    classes = [] if batch.classes_B is None else batch.classes_B.tolist()
    try:  # not `with`: it would hide IndexErrors
        found_BHW: NDArray[np.float32] = cam(batch.images_BCHW, [ClassifierOutputTarget(one) for one in classes])
    finally:
        for one in hooked:
            one.activations_and_grads.release()
    return found_BHW
