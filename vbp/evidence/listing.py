"""What a run does before its images, by one process and by workers of Ray: INPUT is listed.

The part ``fleet`` of ``python -m vbp.evidence.scale``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from vbp.evidence.fleet import IMAGES, WORKERS, Took, most_at_once, rate, seconds, workers_at_once
from vbp.evidence.scale import figure, named, touch
from vbp.evidence.timing import Figure
from vbp.evidence.watch import watched
from vbp.pipeline import RunConfig, prepare
from vbp.pipeline.apart import rows_apart
from vbp.storage.files import Folder
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest import stretches
from vbp.storage.manifest.manifest import Manifest, ManifestRow, write_manifest
from vbp.storage.manifest.refresh import Changes, refresh_manifest
from vbp.storage.spreading import Spread, ignored

_SHARE = 5
"""The first process lists one N-th of the files alone."""
_THREADS = 16


def by_workers(folder: Path, files: int, place: str | None, options: Mapping[str, Any]) -> Iterator[Figure]:
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
    first = files // _SHARE
    alone = watched(_listed, tree.url, str(folder / "alone"), options, files, 0)
    yield rate(f"{files:,} files {where}, listed by one process", alone, files, "files/s")
    for workers in WORKERS:
        shared = watched(_listed, tree.url, str(folder / f"by-{workers}"), options, files, workers)
        yield rate(
            f"{first:,} of them by one, the others by {workers} more, on the same cores", shared, files, "files/s"
        )
    again = watched(_listed, tree.url, str(folder / f"by-{workers}"), options, files, workers, True)
    yield rate("the same with --refresh, nothing new", again, files, "files/s")
    theirs = watched(_tasks, tree.url, str(folder / "tasks"), options, files).value / (files - first)
    ours, compared = (found.value.behind / (files - first) for found in (shared, again))
    yield figure("CPU of workers for a million files, without Ray's", theirs * 1e6, "s")
    yield figure("CPU of the driver for a million files that workers list", ours * 1e6, "s")
    yield figure("the same with --refresh, where it compares them", compared * 1e6, "s")
    yield from _estimates(seconds(alone) / files, theirs, ours, where)


def _estimates(each: float, theirs: float, ours: float, where: str) -> Iterator[Figure]:
    """Figures from seconds a file: by one process, and of CPU of the workers and of the driver."""
    yield figure(f"estimate: {IMAGES:,} files {where} by one process", each * IMAGES / 60, "min", detail="not measured")
    rest = IMAGES - stretches.ALONE
    fleet = most_at_once()
    spent = each * stretches.ALONE + max(theirs / fleet, ours) * rest
    told = f"not measured; {stretches.ALONE:,} by one process first; if the store answers so fast"
    yield figure(f"estimate: the same by {fleet} workers with a core each", spent / 60, "min", detail=told)


def _listed(tree: str, output: str, options: Mapping[str, Any], files: int, workers: int, again: bool = False) -> Took:
    """List a tree, or list it again; `workers`: tasks of Ray at a time that help, 0 for none."""
    with ExitStack() as stack:
        by = workers_at_once(stack, workers) if workers else None
        began, cpu = time.monotonic(), time.process_time()
        behind = (_refresh if again else _write)(tree, output, options, files, by)
        return Took(began, time.monotonic(), time.process_time() - cpu, behind)


def _tasks(tree: str, output: str, options: Mapping[str, Any], files: int) -> float:
    """Seconds of CPU of all tasks that workers would have, carried out here."""
    cpu = 0.0

    def clocked(function: Any, arguments: Any, done: Any = ignored, most: float = math.inf) -> Any:
        nonlocal cpu
        for argument in arguments:
            began = time.process_time()
            result = function(argument)
            cpu += time.process_time() - began
            done(result)
            yield result

    _write(tree, output, options, files, clocked)
    return cpu


def _write(tree: str, output: str, options: Mapping[str, Any], files: int, spread: Spread | None) -> float:
    """List a tree to a manifest, as a run does; returns the driver's seconds of CPU since others list."""
    rows, rest, left_out, begun = _rows(tree, output, options, files, spread)
    size, rows = prepare.choose_shard_size(RunConfig(input=tree, output=output), rows)
    manifest = write_manifest(Folder(output), rows, size, input=tree, left_out=left_out, rest=rest)
    assert manifest.images == files
    return sum(time.process_time() - each for each in begun)


def _refresh(tree: str, output: str, options: Mapping[str, Any], files: int, spread: Spread | None) -> float:
    """Compare a tree with the manifest, as a run with ``--refresh`` does; nothing has changed.  Returns as `_write`."""
    manifest = Manifest.load(Folder(output))
    assert manifest is not None
    rows, rest, left_out, begun = _rows(tree, output, options, files, spread)
    listed = rest.rows(rows) if rest else rows
    _, changes = refresh_manifest(Folder(output), manifest, listed, forget=lambda shard, rows: None, left_out=left_out)
    assert changes == Changes(0, 0, 0)
    return sum(time.process_time() - each for each in begun)


def _rows(
    tree: str, output: str, options: Mapping[str, Any], files: int, spread: Spread | None
) -> tuple[Iterator[ManifestRow], stretches.Rest | None, LeftOut, list[float]]:
    """The rows as this process lists them, who lists the rest, what is left out, and our CPU when the others begin."""
    stretches.ALONE, left_out = files // _SHARE, LeftOut()
    config = RunConfig(input=tree, output=output, storage_options=options)
    check = partial(rows_apart, source=tree, output=output)
    rows = check(prepare.list_input(config, left_out=left_out))
    begun: list[float] = []
    if spread is None:
        return rows, None, left_out, begun

    def stop() -> None:
        rows.close()
        begun.append(time.process_time())

    rest = stretches.Rest(
        spread, Folder(tree, options), Folder(output), prepare.image_suffixes(config), check, left_out,
        told=lambda images: None, stop=stop,
    )  # fmt: skip
    return rows, rest, left_out, begun
