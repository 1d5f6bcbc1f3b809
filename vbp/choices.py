"""All lists of choices for users, in one place; imports nothing of vbp.

A list is a type, so a type checker finds wrong names. `choices_of` returns its values, for flags, checks and
messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

NAMED_WEIGHTS = ("imagenet", "demo", "random", "own")
"""Names of weights that are no file."""
Source = Literal["torchvision", "timm", "code", "onnx", "exported"]
"""Where a network comes from; also the name of its module in ``vbp.networks.sources``."""
WEIGHTS_OF: Mapping[Source, tuple[str, ...]] = {
    "torchvision": ("imagenet", "demo", "random"),
    "timm": ("imagenet", "random"),
    "code": ("own",),
    "onnx": ("own",),
    "exported": ("own",),
}
"""Named weights that each source has; the first is the default. The demo's are of one network, `DEMO_NETWORK`."""
DEMO_NETWORK = "vgg16"

Interpolation = Literal["bilinear", "bicubic"]
Channels = Literal["rgb", "bgr", "grey"]
Decode = Literal["cpu", "gpu"]
Fit = Literal["crop", "pad", "stretch", "original", "trained"]

Preset = Literal["paper", "reference"]
Pooling = Literal["exact", "merged", "unpool"]
TargetChoice = Literal["none", "predicted"]

Select = Literal["all", "misclassified", "correct"]
Output = Literal["mask", "overlay", "input", "maps"]
"""Kinds of result files."""
Frame = Literal["network", "image"]
MaskFormat = Literal["png8", "png16", "npy"]
OverlayStyle = Literal["heat", "reference", "red"]
Layout = Literal["files", "webdataset", "none"]

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "float32", "bfloat16", "int8"]
Runner = Literal["auto", "ray", "local"]
ResumeMode = Literal["resume", "overwrite", "fail"]

METHOD_NAMES = (
    "vbp", "vbp-reference", "vbp-last", "vbp-target", "random-twin",
    "eigencam", "gradcam", "layercam", "hirescam", "refinecam",
    "input-gradient", "guided-backprop", "smoothgrad", "lrp", "centre", "edge", "uniform",
)  # fmt: skip
"""What `vbp.evaluation` compares, in the order of its tables."""
METRIC_NAMES = (
    "pointing-game", "energy-inside", "rank-accuracy", "mass-accuracy",
    "insertion", "deletion", "road", "road-most", "road-least",
    "pixel-flipping", "pixel-flipping-least", "irof", "irof-least",
    "mprt-ssim", "mprt-spearman", "mprt-last-ssim", "mprt-last-spearman",
    "smooth-mprt-ssim", "smooth-mprt-spearman", "efficient-mprt",
    "noise-ssim", "avg-sensitivity", "max-sensitivity", "shift", "sparseness", "complexity",
)  # fmt: skip
"""What `vbp.evaluation` measures, in the order of its tables."""


class StoredMask(NamedTuple):
    """How a mask format stores a mask."""

    suffix: str
    """Suffix of its files."""
    levels: int | None
    """Number of grey steps from 0 to 1; None: float32."""

    @property
    def half_a_level(self) -> float:
        """Largest difference between a stored value and the mask's."""
        return 0.5 / self.levels if self.levels else 0.0


MASK_FORMATS: Mapping[str, StoredMask] = {
    "png8": StoredMask(".png", levels=255),
    "png16": StoredMask(".png", levels=65_535),
    "npy": StoredMask(".npy", levels=None),
}


def choices_of(choice: Any) -> tuple[str, ...]:
    """The values of a list above, or of one that may be None; empty for other types."""
    kinds = get_args(choice) if isinstance(choice, UnionType) or get_origin(choice) is Union else (choice,)
    literals = [kind for kind in kinds if get_origin(kind) is Literal]
    return get_args(literals[0]) if literals else ()
