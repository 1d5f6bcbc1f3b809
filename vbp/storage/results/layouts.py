"""Layouts: how the result files of a run lie in its output.

A layout writes the files of one commit, and returns index columns with their places.  With
``none`` no files are made, so it needs no layout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pyarrow as pa

from vbp.columns import SAMPLE
from vbp.storage.files import Folder
from vbp.storage.naming import sample_name
from vbp.storage.outline import INDEXED
from vbp.storage.results.places import own_path
from vbp.storage.results.tar import TarBuilder
from vbp.storage.results.tars import write_tar

Files = Mapping[str, Sequence[bytes | None]]
"""Files by kind, with one entry for each image; None for an image without a file."""
Columns = dict[str, list[Any]]


class Layout(Protocol):
    """The interface of a layout, used by ``Write``."""

    def write(self, shard: int, rows: pa.Table, files: Files) -> Columns:
        """Write files, each atomically, before their rows are committed.

        Args:
            shard: number of the shard to which all rows belong.
            rows: index columns of the images, and ``position``, by which the rows are sorted.
            files: one entry for each row.

        Returns:
            The columns with the places of the files, as paths in OUTPUT.

        Raises:
            StorageError: the store refuses a file.
        """
        ...


class MirroredTree:
    """``masks/<key>.png``, ``overlays/<key>.jpg``: an object for each image and kind.

    Args:
        output: OUTPUT.
        suffixes: file name suffix of each kind.
        threads: writes that run at the same time.
    """

    def __init__(self, output: Folder, suffixes: Mapping[str, str], threads: int) -> None:
        self._output, self._suffixes, self._threads = output, suffixes, threads

    def write(self, shard: int, rows: pa.Table, files: Files) -> Columns:
        """See ``Layout``; the files' names depend only on the keys."""
        keys = rows["key"].to_pylist()
        paths = {kind: [own_path(kind, key, self._suffixes[kind]) for key in keys] for kind in files}
        present = [
            (paths[kind][row], data) for kind in files for row, data in enumerate(files[kind]) if data is not None
        ]
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(lambda file: self._output.write(*file), present))
        return {
            f"{kind}_uri": [None if data is None else path for path, data in zip(paths[kind], files[kind], strict=True)]
            for kind in INDEXED
            if kind in files
        }


class WebDataset:
    """``shards/<shard>/<name>.tar``: one object for each commit, its members grouped as WebDataset wants them.

    An image's members are ``<sample>.mask.png``, ``<sample>.overlay.jpg`` and so on, and ``<sample>.json`` with its
    index columns, without those that change from run to run; so equal results give equal bytes.

    Args:
        output: OUTPUT.
        suffixes: file name suffix of each kind.
    """

    def __init__(self, output: Folder, suffixes: Mapping[str, str]) -> None:
        self._output, self._suffixes = output, suffixes

    def write(self, shard: int, rows: pa.Table, files: Files) -> Columns:
        """See ``Layout``; without any file there is no tar."""
        tar = TarBuilder()
        offsets: dict[str, list[int | None]] = {kind: [None] * rows.num_rows for kind in files}
        for row, facts in enumerate(rows.to_pylist()):
            present = {kind: data for kind, contents in files.items() if (data := contents[row]) is not None}
            if not present:
                continue
            sample = sample_name(facts["key"])
            for kind, data in present.items():
                offsets[kind][row] = tar.add(f"{sample}.{kind}{self._suffixes[kind]}", data)
            tar.add(f"{sample}.json", _description(facts))
        if not tar.members:
            return {}
        path = write_tar(self._output, tar.finish(), shard, rows["position"].to_pylist())
        columns: Columns = {}
        for kind in INDEXED:
            if kind in files:
                columns[f"{kind}_uri"] = [None if offset is None else path for offset in offsets[kind]]
                columns[f"{kind}_offset"] = list(offsets[kind])
                columns[f"{kind}_length"] = [None if data is None else len(data) for data in files[kind]]
        return columns


def make_layout(name: str, output: Folder, suffixes: Mapping[str, str], threads: int) -> Layout:
    """The layout called `name` in ``RunConfig``."""
    return WebDataset(output, suffixes) if name == "webdataset" else MirroredTree(output, suffixes, threads)


def _description(facts: Mapping[str, Any]) -> bytes:
    """The JSON member of an image; infinite numbers become null, since JSON has none."""
    kept = {name: facts[name] for name in SAMPLE if name in facts}
    finite = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in kept.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False).encode()
