"""VisualBackProp with the calling conventions of other saliency libraries, so that it fits into their users' code.

None of these libraries is imported. Without a target a mask is class-agnostic in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import product
from types import TracebackType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vbp.errors import UsageError
from vbp.saliency.target import Target
from vbp.saliency.visualbackprop import VisualBackProp

Method = TypeVar("Method", bound=Callable[..., Any])


def _with_inner(method: Method) -> Method:
    """The method with itself as ``__wrapped__``, which ``NoiseTunnel`` calls; captum's own methods log other calls."""

    @wraps(method)
    def outer(*args: Any, **settings: Any) -> Any:
        return method(*args, **settings)

    return cast("Method", outer)


class CaptumAttribution:
    """Captum's convention: ``attribute(inputs, target)`` gives a tensor of the inputs' shape.

    Examples:
        >>> attribution = CaptumAttribution(VisualBackProp(model)).attribute(images_BCHW, target=281)

    Args:
        vbp: computes the masks.
    """

    def __init__(self, vbp: VisualBackProp):
        self.vbp = vbp
        self.forward_func = vbp.model

        self.multiplies_by_inputs = vbp.method.multiply_input

    @staticmethod
    def has_convergence_delta() -> bool:
        """False, for ``NoiseTunnel``: there is no sum that a mask should reach."""
        return False

    @_with_inner
    def attribute(
        self, inputs: Tensor | tuple[Tensor, ...], target: Target | None = None, **further: Any
    ) -> Tensor | tuple[Tensor, ...]:
        """The masks, the same for every channel, float32 of the inputs' shape; a tuple if the inputs are one.

        Args:
            inputs: as the network takes them.
            target: see `VisualBackProp.explain`.
            **further: arguments of other methods of captum, such as `baselines`; only None or False is accepted.

        Raises:
            UsageError: there are several inputs, or a further argument has another value.
        """
        if asked := [name for name, value in further.items() if value is not None and value is not False]:
            raise UsageError(f"VisualBackProp has no use for {asked[0]}: leave it out.")
        if isinstance(inputs, tuple):
            if len(inputs) != 1:
                raise UsageError(f"VisualBackProp explains one input, not {len(inputs)}.")
            return (self._attribute(inputs[0], target),)
        return self._attribute(inputs, target)

    def _attribute(self, images_BCHW: Tensor, target: Target | None) -> Tensor:
        return self.vbp(images_BCHW, target=target).expand(images_BCHW.shape).contiguous()


class GradCamStyle:
    """The convention of pytorch-grad-cam: a context manager, called with a batch and its targets.

    Examples:
        >>> with GradCamStyle(VisualBackProp(model)) as cam:
        ...     grayscale_cam = cam(input_tensor=images_BCHW, targets=[ClassifierOutputTarget(281)])

    Args:
        vbp: computes the masks.

    Attributes:
        outputs: the network's output for the last batch.
    """

    def __init__(self, vbp: VisualBackProp):
        self.vbp = vbp
        self.outputs: Any = None

    def __enter__(self) -> GradCamStyle:
        """Nothing is set on the network, so there is nothing to prepare."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is cleaned up, and exceptions pass."""

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[Callable[[Tensor], Tensor]] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> NDArray[np.float32]:
        """The masks (B, H, W) in [0, 1].

        Args:
            input_tensor: as the network takes it.
            targets: one function for each image, which gets its row of the output. None: class-agnostic masks, where
                pytorch-grad-cam would take the class of the highest score.
            aug_smooth: average the masks of the image and its mirror image at 0.9, 1 and 1.1 times its values.
            eigen_smooth: must be False; it needs the principal component of maps that are not kept.

        Raises:
            UsageError: there are more or fewer targets than images, or `eigen_smooth` is true.
        """
        if eigen_smooth:
            raise UsageError(
                "VisualBackProp keeps no maps that eigen_smooth could smooth: leave it out, or aug_smooth."
            )
        if not aug_smooth:
            return self._masks(input_tensor, targets)
        masks = []
        for mirrored, factor in product((False, True), (0.9, 1, 1.1)):
            images_BCHW = (input_tensor.flip(3) if mirrored else input_tensor) * factor
            masks_BHW = self._masks(images_BCHW, targets)
            masks.append(masks_BHW[..., ::-1] if mirrored else masks_BHW)
        mean_BHW: NDArray[np.float32] = np.mean(masks, 0, dtype=np.float32)
        return mean_BHW

    def _masks(self, input_tensor: Tensor, targets: Sequence[Callable[[Tensor], Tensor]] | None) -> NDArray[np.float32]:
        if targets is not None and len(targets) != len(input_tensor):
            raise UsageError(f"there are {len(targets)} targets for {len(input_tensor)} images; give one for each.")

        def score(output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise UsageError(
                    f"targets need an output of one row an image, not {type(output).__name__}: wrap the network in a "
                    "module that gives the tensor meant."
                )
            return torch.stack([one(row) for one, row in zip(targets or (), output, strict=True)])

        explanation = self.vbp.explain(input_tensor, target=None if targets is None else score)
        self.outputs = explanation.output
        masks_BHW: NDArray[np.float32] = explanation.mask[:, 0].cpu().numpy()
        return masks_BHW


def explain_func(
    model: nn.Module,
    inputs: NDArray[Any] | Tensor,
    targets: NDArray[Any] | Tensor | None,
    *,
    class_weighted: bool = False,
    device: str | torch.device | None = None,
    **settings: Any,
) -> NDArray[np.float32]:
    """The convention of Quantus: masks (B, 1, H, W) in [0, 1] of a model that its metrics may have changed.

    Args:
        model: the network.
        inputs: (B, C, H, W), as the network takes them.
        targets: the class of each image.
        class_weighted: weight the deepest map by `targets`; else they have no effect.
        device: where to move the inputs; default: where the network is.
        **settings: settings of `VisualBackProp`.
    """
    parameter = next(model.parameters(), torch.empty(0))
    images_BCHW = torch.as_tensor(inputs, dtype=parameter.dtype).to(device or parameter.device)
    target = torch.as_tensor(targets) if class_weighted and targets is not None else None
    masks_B1HW: NDArray[np.float32] = VisualBackProp(model, **settings)(images_BCHW, target=target).cpu().numpy()
    return masks_B1HW
