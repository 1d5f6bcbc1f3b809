"""Files and tars compared: what it costs to write and to read the same results in each layout.

``python -m vbp.evidence.layouts PLACE...`` writes small results to a new folder in each place, a local folder or any
URL, by the pipeline's own ``Write``, reads some of them back by their index rows, prints a table, and removes all.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from vbp.demo.scenes import generate
from vbp.images.encode import encode_jpeg, encode_mask
from vbp.images.overlay import overlay
from vbp.pipeline.steps import Batch, Write, objects
from vbp.storage.files import Folder
from vbp.storage.ledger.lease import Lease
from vbp.storage.ledger.parts import parts_of, read_parts
from vbp.storage.outline import RESULT_FOLDERS
from vbp.storage.results.places import made_absolute
from vbp.storage.results.read import read_result

LAYOUTS = ("files", "webdataset")
SIZE = 224
PICTURES = 50
"""Different ones; more results repeat them."""
READS = 200
THREADS = 16


@dataclass(frozen=True)
class Cost:
    """One layout in one place."""

    place: str
    layout: str
    images: int
    commit: int
    """Images in one commit."""
    write_seconds: float
    objects: int
    """Of results; parts of the ledger aside."""
    bytes: int
    read_seconds: float
    """For ``READS`` masks, ``THREADS`` at a time."""

    def as_row(self) -> str:
        """A line of the table."""
        cells = (
            self.place,
            self.layout,
            self.commit,
            f"{self.write_seconds:.1f} s",
            f"{self.images / self.write_seconds:.0f}",
            self.objects,
            f"{self.bytes / 1e6:.1f} MB",
            f"{READS / self.read_seconds:.0f}",
        )
        return f"| {' | '.join(map(str, cells))} |"


HEAD = (
    "| place | layout | images a commit | writing | images/s | objects | size | masks read/s |\n"
    "|---|---|---|---|---|---|---|---|"
)


def measure(place: str, layout: str, images: int, commit: int, options: Mapping[str, Any]) -> Cost:
    """Write `images` results in commits of `commit`, count what lies there, read some back, and remove them."""
    folder = Folder(place, options).child(f"vbp-layouts-{uuid.uuid4().hex[:8]}")
    lease = Lease(folder, "evidence")
    lease.acquire()
    try:
        write = Write(folder.url, "evidence", {"mask": ".png", "overlay": ".jpg"}, {}, options, layout=layout)
        batches = list(_batches(images, commit))
        started = time.perf_counter()
        for batch in batches:
            write(batch)
        write_seconds = time.perf_counter() - started
        sizes = [file.size or 0 for file in folder.walk() if file.path.startswith(RESULT_FOLDERS)]
        columns = ["key", "shard", "mask_uri", "mask_offset", "mask_length", "overlay_uri"]
        rows = made_absolute(folder, read_parts(folder, parts_of(folder, 0), columns)).to_pylist()
        if len(rows) != images:
            raise RuntimeError(f"{len(rows)} of {images} results are on record")
        return Cost(place, layout, images, commit, write_seconds, len(sizes), sum(sizes), _time_reads(rows, options))
    finally:
        lease.release()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(folder.delete, folder.list()))


def _batches(images: int, commit: int) -> Iterator[Batch]:
    """What ``Encode`` would hand to ``Write``, all of one shard."""
    masks, overlays = _pictures()
    for start in range(0, images, commit):
        numbers = range(start, min(start + commit, images))
        empty = objects([None] * len(numbers))
        keys = [f"class{number % 10}/{number:06d}.jpg" for number in numbers]
        yield {
            "key": objects(keys),
            "uri": objects([f"/photos/{key}" for key in keys]),
            "label": objects([key.partition("/")[0] for key in keys]),
            "shard": np.zeros(len(numbers), np.int32),
            "position": np.array(numbers, np.int32),
            "file_mask": objects([masks[number % PICTURES] for number in numbers]),
            "file_overlay": objects([overlays[number % PICTURES] for number in numbers]),
            "seconds_encode": np.zeros(len(numbers)),
        } | {name: empty.copy() for name in ("error_stage", "error_type", "error_message")}


def _pictures() -> tuple[list[bytes], list[bytes]]:
    masks, overlays = [], []
    for scene in generate(PICTURES, seed=30_000, size=SIZE):
        grey_HW = scene.pixels_HWC.mean(2, dtype=np.float32)
        mask_HW = np.gradient(grey_HW)[0] ** 2
        mask_HW /= mask_HW.max()
        masks.append(encode_mask(mask_HW, "png8"))
        overlays.append(encode_jpeg(overlay("heat", scene.pixels_HWC, mask_HW)))
    return masks, overlays


def _time_reads(rows: list[dict[str, Any]], options: Mapping[str, Any]) -> float:
    """Masks of random images, as a viewer or a training loader asks for them."""
    chosen = random.Random(0).choices(rows, k=READS)
    with ThreadPoolExecutor(THREADS) as pool:
        started = time.perf_counter()
        found = list(pool.map(lambda row: read_result(row, options=options), chosen))
        seconds = time.perf_counter() - started
    if not all(data.startswith(b"\x89PNG") for data in found):
        raise RuntimeError("what was read back are no masks")
    return seconds


def main() -> None:
    """Measure every place and print the table."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.layouts", description=__doc__)
    parser.add_argument("places", nargs="+", help="local folders or URLs")
    parser.add_argument("--images", type=int, default=2000, help="results to write (default: %(default)s)")
    parser.add_argument("--commits", type=int, nargs="+", default=[8, 128], help="images in one commit")
    parser.add_argument("--storage-options", type=json.loads, default={}, help="as for vbp explain")
    asked = parser.parse_args()
    print(HEAD, flush=True)  # noqa: T201
    for place in asked.places:
        for commit in asked.commits:
            for layout in LAYOUTS:
                print(measure(place, layout, asked.images, commit, asked.storage_options).as_row(), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
