"""The scores of an evaluation, made from the parts as the index is: one row for each image, method and metric."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from vbp.columns import SCORES
from vbp.storage.files import Folder
from vbp.storage.ledger.index import INDEX_FILE_BYTES, newest_rows
from vbp.storage.manifest.manifest import Manifest
from vbp.storage.outline import SCORES_FILES
from vbp.storage.parquet import RollingParquet, Written

Found = tuple[str, str, float | None, float | None, str]
"""Method, metric, value, chance and settings: one score of an image."""


def packed(scores: Sequence[Found]) -> str:
    """The scores of one image, as the column ``scores`` of its row holds them."""
    return json.dumps(scores, allow_nan=False, separators=(",", ":"))


def collect(output: Folder, manifest: Manifest) -> Mapping[str, Written]:
    """Write ``scores/`` from the parts, in the order of the manifest; returns the files by path.

    A repeated call writes the same files.  It may be killed at any time, since they count only while ``_SUCCESS``
    exists.  The caller has made the index, so every row is of its image.
    """
    writer = RollingParquet(output, SCORES_FILES, SCORES)
    columns = ["position", "status", "finished_at", "run_id", "key", "label", "scores"]
    for _, rows in newest_rows(output, manifest, columns):
        table = pa.Table.from_pylist(list(_rows(rows.select(["key", "label", "scores"]).to_pylist())), SCORES)
        if table.num_rows:
            writer.add(table)
        if writer.bytes >= INDEX_FILE_BYTES:
            writer.roll()
    if not writer.files and not writer.groups:
        writer.add(SCORES.empty_table())
    writer.roll()
    writer.remove_later_files()
    return writer.files


def _rows(images: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for image in images:
        for found in json.loads(image["scores"] or "[]"):
            named = zip(("method", "metric", "value", "chance", "settings"), found, strict=True)
            yield {"key": image["key"], "label": image["label"], **dict(named)}
