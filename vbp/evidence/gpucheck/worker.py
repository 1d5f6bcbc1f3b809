"""Section ``worker``: one GPU worker under Ray that gets ready pixels, so that no codec holds it up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vbp.evidence.gpucheck.scope import PRECISION, Scope
from vbp.evidence.timing import Figure
from vbp.evidence.worker import GPU_SECONDS, IMAGES, PretendedSteps, Taken, Watched, class_map, through_ray
from vbp.pipeline.finishing import Finishing
from vbp.pipeline.steps import Batch, Explain

SHARDS, DRY_SHARDS = 32, 2
STORE_BYTES = 5 * 2**30
"""Of Ray's store: enough for tasks on 16 cores, and in use after a few shards."""
DRY_SECONDS = 0.001
"""That the stand-in for the device takes for a batch in a dry check, where there is no device."""
WORKER = "one GPU worker through Ray, given ready pixels"
TARGET = 6_000
"""Images a second."""


@dataclass(frozen=True)
class GpuSteps(PretendedSteps):
    """Steps of which only Explain is real: VGG16 on the device, with all that the main job computes there."""

    weights: str = "random"
    device: str = "cuda"

    def explain(self) -> Callable[[Batch], Batch]:
        """The step of the main job."""
        network = {"model": "vgg16", "weights": self.weights, "device": self.device}
        settings = {"precision": PRECISION, "batch_size": IMAGES}
        finishing = Finishing(overlay_style="heat")
        classes = class_map() if self.weights == "random" else None
        return Watched(Explain({**network, **settings}, classes=classes, finishing=finishing))


def worker(scope: Scope) -> Iterator[Figure | str]:
    """Its rate, and what its process takes of a core; in a dry check on a stand-in for the device."""
    if scope.is_dry:
        yield from figures(through_ray(DRY_SHARDS, DRY_SECONDS))
    else:
        steps = GpuSteps(GPU_SECONDS, weights=scope.weights or "random")
        yield from figures(through_ray(SHARDS, steps=steps, gpus=1, store_bytes=STORE_BYTES))


def figures(found: Taken) -> Iterator[Figure | str]:
    """Of what went through, and what the worker warned of."""
    yield from found.warned
    yield Figure("worker", WORKER, [found.images / found.seconds], "images/s", TARGET)
    yield Figure("worker", "a core's time for a batch", [1e3 * found.cpu / found.batches], "ms")
