"""Section ``networks``: masks of other families on the device, beside their bare forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from vbp.evidence.engine import LEAST
from vbp.evidence.gpucheck.scope import Found, Scope
from vbp.evidence.timing import Figure
from vbp.networks.models import load_model

NETWORKS = ("resnet50", "resnet152", "densenet201", "mobilenet_v3_large")
DRY_NETWORKS = ("mobilenet_v3_small",)


def networks(scope: Scope) -> Iterator[Found]:
    """Each with its classifier, launched kernel by kernel, without a graph."""
    for name in DRY_NETWORKS if scope.is_dry else NETWORKS:
        yield from scope.attempted(name, _network(scope, name))


def _network(scope: Scope, name: str) -> Iterator[Figure]:
    network, images_BCHW = scope.placed(load_model(name, "random")), scope.images()
    vbp = scope.prepared(network)
    with torch.inference_mode():
        bare = scope.rates(partial(network, images_BCHW))
        ours = scope.rates(partial(vbp.explain, images_BCHW))
    yield Figure("networks", f"{name}: bare forward pass", bare, "images/s")
    yield Figure("networks", f"{name}: masks on the device", ours, "images/s")
    over = [one / other for one, other in zip(ours, bare, strict=True)]
    yield Figure("networks", f"{name}: masks over bare forward pass", over, target=LEAST["cuda"])
