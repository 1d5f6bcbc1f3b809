"""Section ``correctness``: masks of the device against those of the CPU in float32, and whether bytes repeat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbp.evidence.gpucheck.scope import PRECISION, Scope, attempted
from vbp.evidence.timing import Figure
from vbp.explainer import Explainer
from vbp.networks.model import Model
from vbp.networks.models import load_model

NETWORKS = ("resnet50", "densenet121", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x2_0")
DRY_NETWORKS = ("shufflenet_v2_x0_5",)
METHODS: tuple[Mapping[str, Any], ...] = (
    {"preset": "reference"}, {"pooling": "unpool"}, {"target": "predicted"}, {"smooth": 2}
)  # fmt: skip
IMAGES, DRY_IMAGES = 8, 2
MOST = {"float32": 100, "bfloat16": 20_000}
"""Millionths by which the Pearson correlation of the least alike masks may be below 1. In bfloat16 random weights and
noise for pixels bring more than networks and photographs do."""


def correctness(scope: Scope) -> Iterator[Figure | str]:
    """VGG16 and other families, then VGG16's settings, then what must be equal to the last bit."""
    pixels_BHWC = scope.pixels(DRY_IMAGES if scope.is_dry else IMAGES)
    both = ("float32", PRECISION)
    yield from attempted("vgg16", _against_the_cpu(scope, scope.vgg16, pixels_BHWC, both))
    for settings in METHODS:
        found = _against_the_cpu(scope, scope.vgg16, pixels_BHWC[:2], ("float32",), settings)
        yield from attempted(f"vgg16 with {settings}", found)
    yield from attempted("equal bytes", _repeated(scope))
    for name in DRY_NETWORKS if scope.is_dry else NETWORKS:
        yield from attempted(name, _against_the_cpu(scope, load_model(name, "random"), pixels_BHWC, both))


def _against_the_cpu(
    scope: Scope,
    model: Model,
    pixels_BHWC: NDArray[np.uint8],
    precisions: tuple[str, ...],
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Figure]:
    settings = settings or {}
    told = "".join(f", {name} {value}" for name, value in settings.items())
    expected_BHW = Explainer(model, device="cpu", precision="float32", **settings)(pixels_BHWC).mask_BHW
    for precision in precisions:
        explainer = Explainer(model, device=scope.device, precision=precision, batch_size=len(pixels_BHWC), **settings)
        mask_BHW = explainer(pixels_BHWC).mask_BHW
        pairs = zip(expected_BHW, mask_BHW, strict=True)
        alike = [float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) for one, other in pairs]
        yield Figure(
            "correctness", f"{model.name}{told}, {precision}: 1 - Pearson with the CPU in float32",
            [1e6 * (1 - min(alike))], "millionths", MOST[precision], at_most=True,
            detail=f"greatest difference {np.abs(expected_BHW - mask_BHW).max():.1e}",
        )  # fmt: skip


def _repeated(scope: Scope) -> Iterator[Figure]:
    """Bytes promised equal: a batch twice, an image alone and among others, first and last."""
    pixels_BHWC = scope.pixels()
    explainer = Explainer(
        scope.vgg16, device=scope.device, precision=PRECISION, batch_size=scope.batch_size, classify=False
    )
    mask_BHW = explainer(pixels_BHWC).mask_BHW
    others = {
        "a batch twice": (mask_BHW, explainer(pixels_BHWC).mask_BHW),
        "an image alone and in a batch": (mask_BHW[:1], explainer(pixels_BHWC[:1]).mask_BHW),
        "an image first and last in a batch": (mask_BHW[:1], explainer(np.roll(pixels_BHWC, -1, 0)).mask_BHW[-1:]),
    }
    for name, (one, other) in others.items():
        unequal = float((one != other).sum())
        yield Figure("correctness", f"{name}: values that differ", [unequal], target=0, at_most=True)
