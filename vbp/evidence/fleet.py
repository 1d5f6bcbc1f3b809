"""What a run does before its images, by one process and by workers of Ray: listing INPUT.

A part of ``python -m vbp.evidence.scale``.  Workers on the driver's machine share its cores, so the time by the clock
says little of a cluster.  The seconds of CPU say more: those of the workers are divided among them, those of the driver
are not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vbp.evidence.scale import figure, named, touch
from vbp.evidence.timing import Figure
from vbp.evidence.watch import Watched, watched
from vbp.pipeline import RunConfig, prepare
from vbp.pipeline.apart import rows_apart
from vbp.pipeline.resources import divide
from vbp.storage.files import Folder
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest import stretches
from vbp.storage.manifest.manifest import write_manifest

IMAGES, FLEET = 100_000_000, 64
"""Images and workers of the estimates."""
WORKERS = (1, 2)
_SHARDS = 256
"""Shards in a file of the manifest."""
_THREADS = 16


class Took(NamedTuple):
    """When some work began and ended, by the clock of `Look`, and the driver's own seconds of CPU in between."""

    began: float
    ended: float
    cpu: float


def listing(folder: Path, files: int, place: str | None, options: Mapping[str, Any]) -> Iterator[Figure]:
    """A tree of tiny files, listed to a manifest by one process, and by a first one and one or two workers.

    Args:
        folder: for the manifests, and for the tree on a disk.
        files: how many there are.
        place: a new folder on a store, which is filled; None: on the disk.
        options: as of ``vbp explain``.
    """
    where = "on a disk" if place is None else f"on {place.partition('://')[0]}"
    tree = Folder(place or str(folder / "tree"), options)
    if place is None:
        touch(folder / "tree", files)
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name: tree.write(name, b"."), named(files)))
    first = _SHARDS * _shard_size(files)
    alone = watched(_listed, tree.url, str(folder / "alone"), options, files, 0)
    yield _rate(f"{files:,} files {where}, listed by one process", alone, files)
    shared = {}
    for workers in WORKERS:
        shared[workers] = watched(_listed, tree.url, str(folder / f"by-{workers}"), options, files, workers)
        yield _rate(
            f"{first:,} of them by one, the others by {workers} more, on the same cores", shared[workers], files
        )
    each = _seconds(alone) / files
    by_workers = (_cpu(shared[1]) - shared[1].value.cpu) / (files - first)
    yield figure("CPU of a worker for a million files", by_workers * 1e6, "s")
    told = f"{stretches.ALONE:,} by one process first, if the store answers so many; not measured"
    yield figure(f"estimate: {IMAGES:,} files {where} by one process", each * IMAGES / 60, "min", detail="not measured")
    fleet = each * stretches.ALONE + by_workers * (IMAGES - stretches.ALONE) / FLEET
    yield figure(f"estimate: the same by {FLEET} workers with a core each", fleet / 60, "min", detail=told)


def _shard_size(files: int) -> int:
    """Images in a shard; of few files small ones, so that the first process does not list all."""
    return max(64, min(prepare.SHARD_SIZE, files // 1000))


def _listed(tree: str, output: str, options: Mapping[str, Any], files: int, workers: int) -> Took:
    """List a tree; `workers`: tasks at a time that help, 0 for none."""
    from vbp.pipeline.on_ray import cluster, spread

    size = _shard_size(files)
    stretches.ALONE, spread.AT_ONCE = size * _SHARDS, workers
    config = RunConfig(input=tree, output=output, shard_size=size, storage_options=options)
    source, left_out = Folder(tree, options), LeftOut()
    check = partial(rows_apart, source=tree, output=output)
    with ExitStack() as stack:
        rest = None
        if workers:
            stack.enter_context(cluster.connected())
            given = divide(cluster.nodes(), "cpu", None)
        began, cpu = time.monotonic(), time.process_time()
        rows = check(prepare.list_input(config, left_out=left_out))
        if workers:
            rest = stretches.Rest(
                spread.spread_by(given), source, Folder(output), prepare.image_suffixes(config), check, left_out,
                told=lambda images: None, stop=rows.close,
            )  # fmt: skip
        manifest = write_manifest(Folder(output), rows, size, input=tree, left_out=left_out, rest=rest)
        assert manifest.images == files
        return Took(began, time.monotonic(), time.process_time() - cpu)


def _rate(name: str, found: Watched, files: int) -> Figure:
    told = (
        f"{_seconds(found):.1f} s, {_cpu(found):.1f} s of CPU, {found.value.cpu:.1f} of it the driver's; "
        f"{found.own:.0f} MB, the largest other process {found.workers:.0f} MB"
    )
    return figure(name, files / _seconds(found), "files/s", detail=told)


def _seconds(found: Watched) -> float:
    return float(found.value.ended - found.value.began)


def _cpu(found: Watched) -> float:
    """Seconds of CPU of all processes while the work was done, Ray's own included."""
    return found.cores(found.value.began, found.value.ended) * _seconds(found)
