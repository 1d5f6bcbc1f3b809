"""Source: the images of a shard that are not done yet, read from the manifest, in batches for the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from vbp.columns import ERRORS
from vbp.errors import StorageError, WorkerDiedError
from vbp.pipeline.config import RunConfig
from vbp.pipeline.steps import Batch, objects
from vbp.storage.files import Folder
from vbp.storage.ledger import index
from vbp.storage.ledger.marks import Marks
from vbp.storage.ledger.parts import PARTS, parse_parts
from vbp.storage.manifest.manifest import MANIFEST, Manifest

DEATHS = 2
"""Workers that must die while they work on one image alone, before it becomes an error row; one may be chance."""
SINGLES = 128
"""Images that are done one by one after a worker died: about as many as it may have been working on."""


class Source:
    """Opens shards.

    Args:
        config: names the output, and says which images must be done.
    """

    def __init__(self, config: RunConfig) -> None:
        self._output = Folder(config.output, config.storage_options)
        self._config = config
        self._manifest: Manifest | None = None

    @contextmanager
    def open(self, shard: int) -> Iterator[Work]:
        """The images of `shard` that are in no part yet; a mark stands for the shard until the context ends."""
        if self._manifest is None:
            self._manifest = Manifest.load(self._output)
        if self._manifest is None:
            raise StorageError(
                f"{self._output.uri(MANIFEST)} is gone; restore it, or run the same command again: it lists INPUT anew."
            )
        files = self._output.list(f"{PARTS}/{shard:06d}")
        try:
            rows = index.rows_left(
                self._output,
                self._manifest,
                shard,
                retry_failed=self._config.retry_failed,
                limit=self._config.limit,
                parts=parse_parts(path.removeprefix(f"{PARTS}/") for path in files),
            )
        except OSError as error:  # Ray overwrites the file name of an OSError that is raised in a worker
            raise StorageError(str(error)) from error
        with Marks(self._output, shard, [PurePosixPath(path).name for path in files], rows.num_rows) as marks:
            yield Work(shard, rows, marks)


class Work:
    """The images of one shard that must be done: first some one by one, if needed, then the rest in batches.

    Images are done one by one if an earlier worker died before it finished any.  This finds the image that crashes
    workers; it becomes an error row, and the other images of its batch are not lost with it.
    """

    def __init__(self, shard: int, rows: pa.Table, marks: Marks) -> None:
        self._shard, self._rows, self._marks = shard, rows, marks
        self._singles = min(SINGLES, rows.num_rows) if marks.stuck or marks.deaths else 0

    def singles(self, step: Callable[[Batch], Batch]) -> Iterator[Batch]:
        """What `step` makes of batches of one image, usually none; the image is in hand only during the step."""
        for row in range(self._singles):
            batch = batch_of(self._rows.slice(row, 1), self._shard)
            deaths = self._marks.deaths[int(batch["position"][0])]
            if deaths >= DEATHS:
                yield step(_blamed(batch, deaths))
                continue
            with self._marks.alone(int(batch["position"][0])):
                done = step(batch)
            yield done

    def batches(self, rows: int) -> Iterator[Batch]:
        """Batches of the remaining images, `rows` images each."""
        for start in range(self._singles, self._rows.num_rows, rows):
            yield batch_of(self._rows.slice(start, rows), self._shard)


def batch_of(rows: pa.Table, shard: int = 0) -> Batch:
    """Rows of ``Manifest.read_shard`` as a batch for the first step."""
    batch: Batch = {name: objects(rows[name].to_pylist()) for name in ("key", "uri", "path", "label", "version")}
    batch["shard"] = np.full(rows.num_rows, shard, np.int32)
    batch["position"] = rows["position"].to_numpy()
    return batch


def _blamed(batch: Batch, deaths: int) -> Batch:
    error = WorkerDiedError(
        f"{deaths} workers died with this image alone in hand: killed from outside, out of memory, or by a crash in "
        "native code. --retry-failed tries it again."
    )
    reason = ("worker", type(error).__name__, str(error))
    return batch | {name: objects([value]) for name, value in zip(ERRORS, reason, strict=True)}
