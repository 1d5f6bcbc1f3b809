"""Finishing: the arithmetic of Explain and Encode on the device, so that only what is stored comes back from it.

Shapes: B images, H rows, W columns, C = 3 colours (RGB), K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vbp.choices import MaskFormat, OverlayStyle
from vbp.networks.preprocessing import IMAGENET, Preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vbp.saliency.visualbackprop import Explanation

MASK_FACTS = ("mask_mean", "mask_area", "peak_x", "peak_y")
"""Columns of the index that Explain makes of what is computed here; else Encode makes them."""


@dataclass(frozen=True, kw_only=True)
class Finishing:
    """What a run stores of its masks; as `finish` of an `Explainer` it computes that."""

    mask_format: MaskFormat = "png8"
    overlay_style: OverlayStyle | None = None
    """None: no overlay is drawn."""
    preprocessing: Preprocessing = IMAGENET
    """The network's; the style ``reference`` needs it."""
    keep_pixels: bool = False
    """Whether Encode needs the pixels too, for the output ``input``."""

    def blanks(self) -> dict[str, NDArray[Any]]:
        """What stands for the mask and the overlay of an image that has none."""
        levels = {"png8": np.uint8, "png16": np.uint16, "npy": np.float32}[self.mask_format]
        mask = {"mask": np.zeros((1, 1), levels)}
        return mask if self.overlay_style is None else mask | {"overlay": np.zeros((1, 1, 3), np.uint8)}

    def __call__(self, pixels_BHWC: Tensor, found: Explanation) -> dict[str, Tensor]:
        """The results of a batch.

        Returns:
            ``mask``, in the values of its format; ``total``, ``above`` and ``peak`` of `vbp.images.on_device.sums`;
            ``overlay``, uint8 (B, H, W, C); with a classifier ``prediction``, int64, and ``probability``, float64.
        """
        from vbp.images.on_device import overlays, stored, sums

        mask_BHW = found.mask[:, 0]
        results = {"mask": stored(mask_BHW, self.mask_format)}
        if self.overlay_style is not None:
            # Next to the mask, so that both come back side by side and are sent on as one.
            results["overlay"] = overlays(self.overlay_style, pixels_BHWC, mask_BHW, self.preprocessing)
        return results | sums(mask_BHW) | ({} if found.output is None else _predicted(found.output))


def _predicted(logits_BK: Tensor) -> dict[str, Tensor]:
    """The first class with the greatest output, and its softmax."""
    wide_BK = logits_BK.float().double()
    shifted_BK = (wide_BK - wide_BK.amax(1, keepdim=True)).exp()
    return {"prediction": logits_BK.float().argmax(1), "probability": shifted_BK.sum(1).reciprocal()}
