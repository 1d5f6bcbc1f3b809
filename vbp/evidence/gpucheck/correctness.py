"""Section ``correctness``: masks of the device beside those of the CPU, and with and without each optimisation.

It also looks whether bytes repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbp.evidence.gpucheck.scope import PRECISION, WARM_UPS, Found, Scope
from vbp.evidence.launches import OFF
from vbp.evidence.timing import Figure
from vbp.explainer import Explainer
from vbp.networks.model import Model
from vbp.networks.models import load_model
from vbp.saliency.prepared.switches import Switches

NETWORKS = ("resnet50", "densenet121", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x2_0")
DRY_NETWORKS = ("shufflenet_v2_x0_5",)
METHODS: tuple[Mapping[str, Any], ...] = (
    {"preset": "reference"}, {"pooling": "unpool"}, {"target": "predicted"}, {"smooth": 2}
)  # fmt: skip
IMAGES, DRY_IMAGES = 8, 2
MOST = {"float32": 100, "bfloat16": 20_000}
"""Millionths by which the Pearson correlation of the least alike masks may be below 1. In bfloat16 random weights and
noise for pixels bring more than networks and photographs do."""


def correctness(scope: Scope) -> Iterator[Found]:
    """VGG16, and what must be equal to the last bit; each optimisation; other families; VGG16's settings."""
    pixels_BHWC = scope.pixels(DRY_IMAGES if scope.is_dry else IMAGES)
    both, names = ("float32", PRECISION), DRY_NETWORKS if scope.is_dry else NETWORKS
    yield from scope.attempted("vgg16", _against_the_cpu(scope, scope.vgg16, pixels_BHWC, both))
    yield from scope.attempted("equal bytes", _repeated(scope))
    for model in (scope.vgg16, load_model(names[0], "random")):
        yield from _by_optimisation(scope, model, pixels_BHWC)
    for name in names:
        yield from scope.attempted(name, _against_the_cpu(scope, load_model(name, "random"), pixels_BHWC, both))
    for settings in METHODS:
        found = _against_the_cpu(scope, scope.vgg16, pixels_BHWC[:2], ("float32",), settings)
        yield from scope.attempted(f"vgg16 with {settings}", found)


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
        name = f"{model.name}{told}, {precision}: 1 - Pearson with the CPU in float32"
        yield _beside(name, mask_BHW, expected_BHW, MOST[precision])


def _beside(name: str, mask_BHW: NDArray[np.float32], expected_BHW: NDArray[np.float32], most: float) -> Figure:
    """How far the least alike of some masks are from those that are expected."""
    pairs = zip(expected_BHW, mask_BHW, strict=True)
    alike = [float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) for one, other in pairs]
    greatest = f"greatest difference {np.abs(expected_BHW - mask_BHW).max():.1e}"
    return Figure(
        "correctness", name, [1e6 * (1 - min(alike))], "millionths", most, at_most=True, detail=greatest
    )  # fmt: skip


def _by_optimisation(scope: Scope, model: Model, pixels_BHWC: NDArray[np.uint8]) -> Iterator[Found]:
    """Each alone, beside none, so that one that fails or is wrong is named."""

    def explained(switches: Switches) -> NDArray[np.float32]:
        settings: Mapping[str, Any] = {"batch_size": len(pixels_BHWC), "classify": False, "switches": switches}
        explainer = Explainer(model, device=scope.device, precision=PRECISION, **settings)
        return [explainer(pixels_BHWC).mask_BHW for _ in range(WARM_UPS)][-1]  # the last one is a graph's

    @cache
    def expected() -> NDArray[np.float32]:
        return explained(OFF)

    for field in fields(Switches):
        switches = replace(OFF, **{field.name: True})
        found = _optimised(f"{model.name}, {field.name}", partial(explained, switches), expected)
        yield from scope.attempted(f"{model.name}, optimised: {field.name}", found)


def _optimised(
    name: str, explained: Callable[[], NDArray[np.float32]], expected: Callable[[], NDArray[np.float32]]
) -> Iterator[Figure]:
    mask_BHW = explained()
    yield _beside(f"{name}: 1 - Pearson without it, {PRECISION}", mask_BHW, expected(), MOST[PRECISION])


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
