"""The part ``worker``: what one GPU worker's process does besides waiting for the GPU, on a machine without one.

A stand-in for the device takes a fixed time for each batch, as a GPU would, and nothing of this machine's processors.
All else is the main job's own: the step Explain, the staging of its batches, Ray Data, parcels. Launching kernels is
not in it, which a CUDA graph makes cheap.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vbp.errors import UsageError
from vbp.evidence.timing import Figure, Findings, Rate, Setup
from vbp.evidence.watch import watched
from vbp.networks.model import Model
from vbp.networks.models import own_model
from vbp.networks.preprocessing import IMAGENET
from vbp.pipeline.classes import ClassMap
from vbp.pipeline.finishing import Finishing
from vbp.pipeline.recipe import Steps
from vbp.pipeline.resources import CALLS_ON_A_GPU, Resources
from vbp.pipeline.steps import Batch, Explain, objects
from vbp.staging import SLOTS, Staged

IMAGES, SIZE, CLASSES = 128, 224, 1000
"""A batch of the main job on a GPU: images, their side, and the network's classes."""
GPU_SECONDS = 0.015
"""For a batch: what VGG16 takes of an H100 or H200 by estimate, 8,500 images a second."""
BATCHES = 8
"""In a shard of 1,024 images."""
SHARDS = 200
STEADY = (0.4, 0.9)
"""The shares of the batches between which the rate is taken: the store's memory is in use by then, as in a long run."""
SMALL_STORE = 5 * 2**29
"""Bytes of a store that is soon in use. A page of it is new to a process once, and that costs far more than the copy to
it: with a store of 7 GB the process took 90 ms more for each of the first 40 batches, and 1 to 3 ms for later ones."""
CALLS = 50
"""Batches that the step alone gets."""
ALONE_MILLISECONDS, PROCESS_MILLISECONDS, OVER_GPU = 3.0, 8.0, 1.15
"""The most of a processor's time that a batch may take: of the step alone, of its process under Ray; and how many times
the GPU's time it may take in all."""
ENOUGH_CORES = 4
"""Below them the tasks that make and take the batches have no core of their own, and the rate says nothing."""


def worker(setup: Setup) -> Findings:
    """Measure the step alone, and its process under Ray, each round in a fresh one."""
    from vbp.pipeline.on_ray import copies

    alone = watched(step_alone, CALLS, environment=copies.environment()).value  # as its process under Ray has it
    found = []
    for number in range(setup.rounds):
        found.append(watched(_with_large_parcels).value)
        setup.report(f"worker: round {number + 1} of {setup.rounds}")
    return Findings([_rate(found)], [*_figures(alone, found)], [*_notes(found)])


def _with_large_parcels() -> Taken:
    from vbp.pipeline.on_ray.parcels import STORE_A_CPU

    return through_ray(store_bytes=max(SMALL_STORE, STORE_A_CPU * _cores()))


def _rate(found: Sequence[Taken]) -> Rate:
    name = f"images through a worker, {1e3 * GPU_SECONDS:.0f} ms of the device for {IMAGES}"
    return Rate("worker", name, rates=[each.images / each.seconds for each in found])


def _figures(alone: Sequence[float], found: Sequence[Taken]) -> Iterator[Figure]:
    process = [1e3 * each.cpu / each.batches for each in found]
    over = [each.seconds / each.batches / GPU_SECONDS for each in found]
    target = OVER_GPU if _cores() >= ENOUGH_CORES else None
    yield Figure("worker", "a core's time for a batch, step alone", alone, "ms", ALONE_MILLISECONDS, at_most=True)
    yield Figure("worker", "a core's time for a batch, process", process, "ms", PROCESS_MILLISECONDS, at_most=True)
    yield Figure("worker", "time for a batch over the device's own", over, target=target, at_most=True)
    yield Figure(
        "worker", "a core's time for a batch, driver", [1e3 * each.driver / each.batches for each in found], "ms"
    )


def _notes(found: Sequence[Taken]) -> Iterator[str]:
    sizes = sorted({each.parcel_bytes >> 20 for each in found})
    yield f"Batches went through Ray in parcels of {' and '.join(map(str, sizes))} MiB: the store's room decides."
    if _cores() < ENOUGH_CORES:
        yield (
            f"The time for a batch has no target on {_cores()} cores: it takes {ENOUGH_CORES}, because the tasks that "
            "make and take the batches need some of their own."
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass
class _Moment:
    at: float = 0.0

    def synchronize(self) -> None:
        time.sleep(max(0.0, self.at - time.perf_counter()))


@dataclass
class _Stream:
    seconds: float
    free_at: float = 0.0


class PretendedDevice:
    """A device that works beside this machine: what it computes it has computed once for each slot, on the CPU.

    Args:
        seconds: for a batch.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = iter((0.0, seconds, 0.0))  # copies have streams of their own, and are fast
        self._done: set[int] = set()
        self._lock = Lock()
        self._given_back: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def stream(self) -> _Stream:
        """A queue of work."""
        return _Stream(next(self._seconds))

    def event(self) -> _Moment:
        """When its work is done."""
        return _Moment()

    def enqueue(self, stream: _Stream, work: Callable[[], None], after: _Moment | None, done: _Moment) -> None:
        """Do the work the first time; later it only takes its time."""
        with self._lock:
            if id(done) not in self._done:
                work()
                self._done.add(id(done))
            start = max(time.perf_counter(), stream.free_at, after.at if after else 0.0)
            stream.free_at = done.at = start + stream.seconds

    def empty(self, size: int) -> Tensor:
        """So many bytes."""
        return torch.empty(size, dtype=torch.uint8)

    def pinned(self, size: int) -> Tensor:
        """So many bytes; as torch does with pinned memory, those of that size that nobody has any more."""
        memory = back.pop() if (back := self._given_back[size]) else np.empty(size, np.uint8)
        lent = memory.view()
        weakref.finalize(lent, back.append, memory)
        return torch.from_numpy(lent)


def network() -> Model:
    """The least network with as many classes."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 1, 8, stride=8), nn.ReLU())
    layers = nn.Sequential(*features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, CLASSES))
    return replace(own_model(layers, IMAGENET), num_classes=CLASSES)


def class_map() -> ClassMap:
    """The one folder of the batches, and as many classes as ImageNet has."""
    return ClassMap({"n0123456": 3}, [f"class {number}" for number in range(CLASSES)], "made up")


def explain(seconds: float) -> Explain:
    """The step as a GPU worker has it, on a device that takes so long for a batch."""
    step = Explain(
        {"model": network(), "device": "cpu", "precision": "float32", "batch_size": IMAGES},
        classes=class_map(),
        finishing=Finishing(overlay_style="heat"),
    )
    explainer = step.explainer
    explainer._staged = Staged(explainer._compute, PretendedDevice(seconds))  # type: ignore[arg-type]
    return step


@cache
def _pixels(images: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (images, side, side, 3), dtype=np.uint8)


def decoded(first: int = 0) -> Batch:
    """A batch as it comes from Decode."""
    each = {
        "key": "n0123456/{:06d}.JPEG", "uri": "s3://bucket/photos/n0123456/{:06d}.JPEG", "label": "n0123456",
        "version": "abc", "sha256": "0" * 64, "format": "JPEG",
    }  # fmt: skip
    numbers: dict[str, float] = {"bytes": 110_000, "width": 500, "height": 375}
    numbers |= {"frame_left": 62.5, "frame_top": 0.0, "frame_right": 437.5, "frame_bottom": 375.0}
    return {
        **{name: objects([text.format(first + row) for row in range(IMAGES)]) for name, text in each.items()},
        **{name: objects([number] * IMAGES) for name, number in numbers.items()},
        **{name: objects([None] * IMAGES) for name in ("error_stage", "error_type", "error_message")},
        **{name: np.full(IMAGES, 0.002) for name in ("seconds_fetch", "seconds_decode")},
        "shard": np.zeros(IMAGES, np.int32),
        "position": np.arange(IMAGES, dtype=np.int32),
        "pixels": _pixels(IMAGES, SIZE),
    }


def step_alone(calls: int) -> list[float]:
    """Milliseconds of a core that the step takes for each of so many batches."""
    step, batch = explain(0.0), decoded()
    for _ in range(SLOTS + 1):
        step(batch)
    spent = []
    for _ in range(calls):
        before = time.thread_time()
        step(batch)
        spent.append(1e3 * (time.thread_time() - before))
    return spent


class _Batches:
    """A shard of ready batches."""

    def singles(self, step: Callable[[Batch], Batch]) -> Iterator[Batch]:
        return iter(())

    def batches(self, rows: int) -> Iterator[Batch]:
        for number in range(BATCHES):
            yield decoded(number * IMAGES)


class _Shards:
    @contextmanager
    def open(self, number: int, /) -> Iterator[_Batches]:
        yield _Batches()


class Watched:
    """The step, which notes the processor's time that its process has taken."""

    def __init__(self, step: Explain) -> None:
        self._step = step

    def __call__(self, batch: Batch) -> Batch:
        """The step's batch, with the process and its time so far."""
        rows = len(batch["key"])
        batch = self._step(batch)
        return batch | {"process": np.full(rows, os.getpid()), "cpu": np.full(rows, time.process_time())}


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _without_pictures(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("key", "process", "cpu")}


def _noted(batch: Batch) -> Batch:
    """The report of a batch that was taken."""
    facts = {
        "images": len(batch["key"]),
        "process": batch["process"][0],
        "cpu": batch["cpu"][-1],
        "at": time.monotonic(),
    }
    return {name: np.array([value]) for name, value in facts.items()}


@dataclass(frozen=True)
class PretendedSteps:
    """Steps of which only Explain is real, on a device that takes so long for a batch."""

    seconds: float
    batch_size: int = IMAGES
    rows: int = IMAGES
    own_sizes: bool = False
    is_slow: bool = False
    read_by_explain: frozenset[str] = Explain.reads

    def source(self) -> _Shards:
        """Shards of ready batches."""
        return _Shards()

    def fetch(self) -> Callable[[Batch], Batch]:
        """Nothing."""
        return _as_it_is

    def decode(self) -> Callable[[Batch], Batch]:
        """Nothing."""
        return _as_it_is

    def explain(self) -> Callable[[Batch], Batch]:
        """The step."""
        return Watched(explain(self.seconds))

    def encode(self) -> Callable[[Batch], Batch]:
        """Drops the masks and overlays."""
        return _without_pictures

    def write(self) -> Callable[[Batch], Batch]:
        """Notes that a batch was taken."""
        return _noted


@dataclass(frozen=True)
class Taken:
    """What went through in the middle of a run."""

    images: int
    seconds: float
    cpu: float
    """Seconds of a processor that the workers' processes took."""
    driver: float
    """The same of the driver's process."""
    warned: Sequence[str] = ()
    """What the workers warned of."""
    parcel_bytes: int = 0
    """Least bytes of a full parcel."""

    @property
    def batches(self) -> float:
        """Their number."""
        return self.images / IMAGES


def through_ray(
    shards: int = SHARDS,
    seconds: float = GPU_SECONDS,
    steps: Steps | None = None,
    *,
    gpus: float = 0,
    store_bytes: int = SMALL_STORE,
) -> Taken:
    """Send batches through a worker of Ray that has as many of them in hand as on a GPU.

    Args:
        shards: of `BATCHES` each.
        seconds: that the stand-in for the device takes for a batch.
        steps: instead of those with the stand-in.
        gpus: that the worker claims.
        store_bytes: of Ray's store, if Ray is not running yet.

    Raises:
        UsageError: Ray does not find them here; it would wait for them.
    """
    from vbp.pipeline.on_ray import cluster, dataset
    from vbp.pipeline.on_ray.parcels import parcel_bytes

    given = Resources(workers=1, num_cpus=0, num_gpus=gpus, threads=1, calls=CALLS_ON_A_GPU, codec_cpus=0.5)
    with cluster.connected(store_bytes):
        there = sum(node.gpus for node in cluster.nodes())
        if there < gpus:
            raise UsageError(f"the worker claims {gpus:g} GPU, and Ray finds {there:g} here.")
        made = dataset.plan(steps or PretendedSteps(seconds), list(range(shards)), given, spread=True)
        found = taken([row | {"driver": time.process_time()} for row in made.iter_rows()])
        return replace(found, parcel_bytes=parcel_bytes(shards, given, cluster.nodes()))


def taken(rows: Sequence[Mapping[str, Any]]) -> Taken:
    """What lies between the shares `STEADY` of the reports, by the clock."""
    ordered = sorted(rows, key=lambda row: row["at"])
    first, last = (round(share * (len(ordered) - 1)) for share in STEADY)
    middle = ordered[first + 1 : last + 1]
    cpu = 0.0
    for process in {row["process"] for row in middle}:
        spent = [row["cpu"] for row in ordered[first : last + 1] if row["process"] == process]
        cpu += max(spent) - min(spent)
    images = sum(row["images"] for row in middle)
    warned = sorted({line for row in rows for line in row["warned"].splitlines()})
    driver = max(row["driver"] for row in middle) - ordered[first]["driver"]
    return Taken(images, ordered[last]["at"] - ordered[first]["at"], cpu, driver, warned)
