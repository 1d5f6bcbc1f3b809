"""What is done after the images, by one process and by workers of Ray: the index, and ``vbp validate``.

The part ``finish`` of ``python -m vbp.evidence.scale``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from vbp.evidence.fleet import IMAGES, WORKERS, Took, cpu, most_at_once, rate, workers_at_once
from vbp.evidence.scale import ROWS_A_PART, figure, named
from vbp.evidence.timing import Figure
from vbp.evidence.watch import watched
from vbp.pipeline import prepare
from vbp.pipeline.steps import Batch, as_table, objects
from vbp.review.output import Output
from vbp.review.validate import validate
from vbp.storage.files import Folder
from vbp.storage.ledger import compaction
from vbp.storage.ledger.compaction import compact
from vbp.storage.ledger.parts import write_part
from vbp.storage.manifest.manifest import Manifest, ManifestRow, write_manifest
from vbp.storage.record import mark_complete, save_record
from vbp.storage.spreading import Spread, here

_RANGES = 8
"""Ranges for the workers; a real one has more rows than all of these."""
_RUN = "20261130T000000Z-0123abcd"
_CONFIG = {
    "limit": None, "outputs": ["mask", "overlay"], "mask_format": "png8", "layout": "files", "frame": "network",
    "fit": "crop", "size": 224, "input": "/photos",
}  # fmt: skip


def finish(folder: Path, images: int) -> Iterator[Figure]:
    """The ledger of a run over so many images, from which the index is made; then all of it is validated."""
    output = Folder(str(folder / "finish"))
    ledger(output, images)
    yield from _measured("rows of the index made", partial(_indexed, output.url), images)
    yield from _measured("images validated without a mask reopened", partial(_validated, output.url), images)


def _measured(what: str, work: partial[Took], images: int) -> Iterator[Figure]:
    alone = watched(work, 0)
    yield rate(f"{images:,} {what} by one process", alone, images, "rows/s")
    shared = {workers: watched(work, workers) for workers in WORKERS}
    for workers, found in shared.items():
        yield rate(f"{what} by {workers} more, on the same cores", found, images, "rows/s")
    one = cpu(alone) / images
    of_driver, of_worker = shared[1].value.cpu / images, (cpu(shared[1]) - shared[1].value.cpu) / images
    yield figure(f"estimate: {IMAGES:,} {what} by one process", one * IMAGES / 60, "min", detail="by CPU; not measured")
    fleet = most_at_once()
    spent = (of_driver + of_worker / fleet) * IMAGES
    told = f"by CPU, {of_driver * IMAGES / 60:.0f} min of it the driver's; the store keeps up; not measured"
    yield figure(f"estimate: the same by {fleet} workers with a core each", spent / 60, "min", detail=told)


def _spreading(stack: ExitStack, workers: int, images: int) -> Spread:
    """So many workers that share ranges of equal size; 0: this process alone, which has ranges of the usual size."""
    if not workers:
        return here
    compaction.ROWS_A_FILE = images // _RANGES
    return workers_at_once(stack, workers)


def _indexed(url: str, workers: int) -> Took:
    output = Folder(url)
    manifest = Manifest.load(output)
    assert manifest is not None
    with ExitStack() as stack:
        spread = _spreading(stack, workers, manifest.images)
        began, before = time.monotonic(), time.process_time()
        totals = compact(output, manifest, spread=spread)
        assert totals.ok == manifest.images
        return Took(began, time.monotonic(), time.process_time() - before)


def _validated(url: str, workers: int) -> Took:
    output = Output.open(url)
    assert output.manifest is not None
    with ExitStack() as stack:
        spread = _spreading(stack, workers, output.manifest.images)
        promise(output.folder)  # of an index with these ranges
        output = Output.open(url)
        began, before = time.monotonic(), time.process_time()
        found = validate(output, sample=0, spread=spread)
        assert found.is_sound
        assert output.is_complete
        return Took(began, time.monotonic(), time.process_time() - before)


def ledger(output: Folder, images: int) -> Manifest:
    """What a run over so many images leaves before it makes the index: rows with all columns, and files of a byte."""
    rows = (ManifestRow(name, f"/photos/{name}", name.encode(), name[:10], 123_456, "1") for name in named(images))
    manifest = write_manifest(output, rows, prepare.SHARD_SIZE, input="/photos")
    save_record(
        output, {"run_id": _RUN, "input": "/photos", "manifest": manifest.id, "config": _CONFIG, "fingerprint": {}}
    )
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(partial(_commit, output, manifest), range(manifest.shards)))
    return manifest


def _commit(output: Folder, manifest: Manifest, shard: int) -> None:
    table, rng = manifest.read_shard(shard), np.random.default_rng(shard)
    for start in range(0, table.num_rows, ROWS_A_PART):
        listed = table.slice(start, ROWS_A_PART)
        batch: Batch = {name: objects(listed[name].to_pylist()) for name in _LISTED}
        batch |= {name: objects([value] * listed.num_rows) for name, value in _SAME.items()}
        batch |= {name: rng.integers(0, 224, listed.num_rows).astype(np.int32) for name in _WHOLE}
        batch |= {name: rng.random(listed.num_rows) for name in _REAL}
        keys = batch["key"]
        batch["sha256"] = objects([hashlib.sha256(key.encode()).hexdigest() for key in keys])
        for kind, folder, suffix in (("mask", "masks", "png"), ("overlay", "overlays", "jpg")):
            batch[f"{kind}_uri"] = objects([f"{folder}/{key}.{suffix}" for key in keys])
            for path in batch[f"{kind}_uri"]:
                _touch(Path(output.url, path))
        write_part(output, as_table(batch), shard, _RUN)


_LISTED = ("key", "uri", "label", "version", "position")
_SAME = {
    "status": "ok", "format": "JPEG", "flat": False, "correct": True, "model": "vgg16", "weights": "0" * 64,
    "predicted_label": "a name", "preset": "paper", "device": "cpu", "finished_at": datetime(2026, 11, 30, tzinfo=UTC),
    "run_id": _RUN,
}  # fmt: skip
_WHOLE = (
    "width", "height", "bytes", "peak_x", "peak_y", "mask_width", "mask_height", "prediction",
)  # fmt: skip
_REAL = (
    "frame_left", "frame_top", "frame_right", "frame_bottom", "log10_max", "mask_mean", "mask_area", "image_peak_x",
    "image_peak_y", "probability", "seconds",
)  # fmt: skip
"""Columns of the rows: those of the manifest, those with one value, and those with random ones."""


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b".")


def promise(output: Folder) -> None:
    """Make the index, and promise it."""
    manifest = Manifest.load(output)
    assert manifest is not None
    totals = compact(output, manifest)
    counts = {"images": totals.images, "ok": totals.ok, "error": totals.error}
    record = {"run_id": _RUN, "attempt": _RUN, "input": "/photos", "config": _CONFIG, "fingerprint": {}}
    save_record(output, record | {"manifest": manifest.id, "summary": {**counts, "output": output.url}})
    mark_complete(output, _RUN, totals.files, counts)
