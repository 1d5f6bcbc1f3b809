"""Sort a store's listing into byte order, in bounded memory."""

import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from vbp.storage.stores.store import File

_RUN = 200_000


def in_byte_order(files: Iterable[File], run: int = _RUN) -> Iterator[File]:
    """The files sorted by path, each path once; sorted runs of ``run`` files wait on the disk if there are more."""
    last = None
    for file in _merged(iter(files), run):
        if file.path != last:
            yield file
        last = file.path


def _merged(files: Iterator[File], run: int) -> Iterator[File]:
    with tempfile.TemporaryDirectory(prefix="vbp-") as folder:
        runs: list[Path] = []
        while part := sorted(islice(files, run), key=_order):
            if len(part) < run and not runs:
                yield from part
                return
            runs.append(Path(folder, str(len(runs))))
            with runs[-1].open("w") as lines:
                lines.writelines(json.dumps(file) + "\n" for file in part)
        yield from heapq.merge(*map(_read, runs), key=_order)


def _read(path: Path) -> Iterator[File]:
    with path.open() as lines:
        for line in lines:
            yield File(*json.loads(line))


def _order(file: File) -> bytes:
    return file.path.encode("utf-8", "surrogateescape")
