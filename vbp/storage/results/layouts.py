"""Layouts: how the result files of a run lie in its output.

A layout takes the files of one commit, puts them into storage, and says in index columns where they are.  With
``none`` no files are made, so that there is nothing to lay out.
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
"""Files by kind, one entry an image; None where an image has none."""
Columns = dict[str, list[Any]]


class Layout(Protocol):
    """What ``Write`` asks of a layout."""

    def write(self, shard: int, rows: pa.Table, files: Files) -> Columns:
        """Put files into storage, each as a whole, before their rows are committed.

        Args:
            shard: the shard that all rows belong to.
            rows: what the index will say of the images, and ``position``, which they are sorted by.
            files: one entry a row.

        Returns:
            The columns that tell where the files are, by path in OUTPUT.

        Raises:
            StorageError: the store does not take them.
        """
        ...


class MirroredTree:
    """``masks/<key>.png``, ``overlays/<key>.jpg``: an object for each image and kind.

    Args:
        output: OUTPUT.
        suffixes: file name suffix of each kind.
        threads: writes in flight.
    """

    def __init__(self, output: Folder, suffixes: Mapping[str, str], threads: int) -> None:
        self._output, self._suffixes, self._threads = output, suffixes, threads

    def write(self, shard: int, rows: pa.Table, files: Files) -> Columns:
        """See ``Layout``; names depend on the keys alone."""
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

    An image's members are ``<sample>.mask.png``, ``<sample>.overlay.jpg`` and so on, and ``<sample>.json``, which says
    what the index says of it, except what changes from run to run; so equal results are equal bytes.

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
    """What a training loader may want to know of an image; JSON knows no infinity."""
    kept = {name: facts[name] for name in SAMPLE if name in facts}
    finite = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in kept.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False).encode()
