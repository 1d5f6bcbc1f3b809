"""Outputs as runs leave them, made without a network."""

import datetime
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vbp.storage.files import Folder
from vbp.storage.ledger.compaction import compact
from vbp.storage.ledger.index import write_part
from vbp.storage.manifest.manifest import ManifestRow, write_manifest
from vbp.storage.record import mark_complete, save_record

NOON = datetime.datetime(2026, 11, 15, 12, tzinfo=datetime.UTC)
FIRST, SECOND = "20261115T115900Z-aaaaaaaa", "20261115T121500Z-bbbbbbbb"
SIZE = 16


class Made:
    """An output under construction; image n lies in shard n // 4 at position n % 4."""

    def __init__(self, folder, keys, **config):
        self.folder = folder
        self.keys = sorted(keys, key=str.encode)
        self.config = {"limit": None, "outputs": ["mask", "overlay"], "mask_format": "png8", "layout": "files"}
        self.config |= {"frame": "network", "fit": "crop", "size": SIZE, "input": "/in", **config}
        rows = [
            ManifestRow(key, f"/in/{key}", key.encode(), key.split("/")[0] if "/" in key else None, 9, "v")
            for key in self.keys
        ]
        self.manifest = write_manifest(folder, rows, 4, self.config["limit"], input="/in")
        self.begin(FIRST)

    def begin(self, attempt, **facts):
        """A run has begun."""
        self.attempt = attempt
        self.record = {"run_id": attempt, "input": "/in", "config": self.config, "fingerprint": {}, **facts}
        self.folder.write("_run/run.json", json.dumps(self.record).encode())

    def mask(self, number):
        """What the image's mask is, in [0, 1]."""
        mask = np.random.default_rng(number).random((SIZE, SIZE), np.float32) ** 8
        return (mask - mask.min()) / (mask.max() - mask.min())

    def commit(self, numbers, status="ok", *, seconds=0.0, files=True, **changes):
        """Rows of these images, all in one shard, finished `seconds` after noon, and their files."""
        rows = []
        for number in numbers:
            key, mask = self.keys[number], self.mask(number)
            row = {"key": key, "uri": f"/in/{key}", "status": status, "position": number % 4, "run_id": self.attempt}
            row |= {"finished_at": NOON + datetime.timedelta(seconds=seconds)}
            row |= {"label": key.split("/")[0] if "/" in key else None}
            if status == "ok":
                peak_y, peak_x = divmod(int(mask.argmax()), SIZE)
                row |= {"mask_mean": float(mask.mean()), "mask_area": float((mask > 0.5).mean()), "flat": False}
                row |= {"peak_x": peak_x, "peak_y": peak_y, "width": 40, "height": 30}
                row |= {"mask_uri": self.folder.uri(f"masks/{key}.png")}
                row |= {"overlay_uri": self.folder.uri(f"overlays/{key}.jpg")}
            else:
                row |= {"error_stage": "decode", "error_type": "CorruptImageError", "error_message": "broken"}
            if status == "ok" and files:
                levels = np.floor(255 * mask + 0.5).astype(np.uint8)
                self.folder.write(f"masks/{key}.png", picture_bytes(levels, "PNG"))
                overlay = np.stack([levels, levels // 2, 255 - levels], -1)
                self.folder.write(f"overlays/{key}.jpg", picture_bytes(overlay, "JPEG"))
            rows.append(row | changes)
        return write_part(self.folder, pa.Table.from_pylist(rows), numbers[0] // 4, self.attempt)

    def finish(self, success=True):
        """The index, the summary, the promise."""
        totals = compact(self.folder, self.manifest, self.config["limit"])
        summary = {"images": totals.images, "ok": totals.ok, "error": totals.error, "images_per_second": 2.0}
        summary["succeeded"] = success
        self.begin(self.attempt, summary=summary)
        if success:
            self.folder.write("_SUCCESS", b"")
        return self

    def promise(self, attempt=FIRST):
        """As `finish`, with the promise of today: it names its attempt and the files of the index."""
        self.finish(success=False)
        totals = compact(self.folder, self.manifest, self.config["limit"])
        save_record(self.folder, self.record | {"attempt": attempt})
        mark_complete(self.folder, attempt, totals.files, {"images": totals.images})
        return self

    @property
    def url(self):
        return self.folder.url


def picture_bytes(pixels, kind):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def make(tmp_path):
    """Makes an output on the local disk."""

    def make(images=10, **config):
        keys = (
            images if isinstance(images, list) else [f"{'cat' if n < 5 else 'dog'}/{n:05d}.jpg" for n in range(images)]
        )
        return Made(Folder(tmp_path / "out"), keys, **config)

    return make


@pytest.fixture
def finished(make):
    """Ten images, all ok, in shards of four."""
    made = make()
    for numbers in ([0, 1, 2, 3], [4, 5], [6, 7], [8, 9]):
        made.commit(numbers, seconds=numbers[0])
    return made.finish()


def files_below(folder):
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }
