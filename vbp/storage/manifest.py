"""The manifest: the images of a run, listed once, kept in shards that are read one by one.

::

    OUTPUT/_run/manifest/part-00000.parquet   one row group a shard, a bounded number of shards
    OUTPUT/_run/manifest.json                 written last: without it there is no manifest

Rows of one listing are sorted (those of a tree by their path, those of a manifest file by their key); a later
listing appends shards of what is new. So everything here is a merge of sorted streams, and memory does not grow
with the collection.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import accumulate, chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from vbp.errors import UsageError
from vbp.storage.files import Folder
from vbp.storage.listing import ManifestRow, is_manifest, list_tree, read_manifest_input
from vbp.storage.parquet import RollingParquet, numbered
from vbp.storage.record import load_record, save_record
from vbp.storage.rows import MANIFEST_SCHEMA, order_of, sorted_by_key, table_of

__all__ = [
    "MANIFEST_SCHEMA",
    "Manifest",
    "ManifestRow",
    "extend_manifest",
    "is_manifest",
    "list_tree",
    "read_manifest_input",
    "write_manifest",
]

MAX_SHARDS = 999_999  # folders of parts are named by six digits
MAX_LABELS = 100_000

_JSON = "_run/manifest.json"
_PARTS = "_run/manifest"
_SHARDS_PER_PART = 256
_ROWS_PER_PART = 1_000_000

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Manifest:
    """The list of images as it stands in the output."""

    folder: Folder
    """OUTPUT."""
    input: str
    shard_size: int
    """Images of a full shard; the last shard of each listing may hold fewer."""
    listings: tuple[int, ...]
    """How many images the first listing found, and how many each later one added."""
    labels: tuple[str, ...]
    """The distinct labels, sorted; the first ``MAX_LABELS`` seen."""
    labels_complete: bool
    limit: int | None
    """At most so many images were asked for in the last listing."""
    complete: bool
    """Whether the last listing came to its end before the limit."""
    listed_at: str

    @classmethod
    def load(cls, output: Folder) -> "Manifest | None":
        """The manifest of an output; None where there is none, or where its listing was cut off."""
        record = load_record(output, _JSON)
        if record is None:
            return None
        own = {field.name: record[field.name] for field in fields(cls) if field.name != "folder"}
        own |= {"listings": tuple(record["listings"]), "labels": tuple(record["labels"])}
        return cls(folder=output, **own)

    @property
    def images(self) -> int:
        """How many images are listed."""
        return sum(self.listings)

    @property
    def shards(self) -> int:
        """How many shards hold them."""
        return sum(self._shards_of_listings)

    def shard_start(self, shard: int) -> int:
        """How many images come before the shard's first."""
        listing, within = self._find(shard)
        return sum(self.listings[:listing]) + within * self.shard_size

    def shard_images(self, shard: int) -> int:
        """How many images the shard holds."""
        listing, within = self._find(shard)
        return min(self.shard_size, self.listings[listing] - within * self.shard_size)

    def read_shard(self, shard: int) -> pa.Table:
        """The shard's rows: ``MANIFEST_SCHEMA``, and ``position`` (int32), the row's number within the shard."""
        listing, within = self._find(shard)
        part, group = divmod(within, self._shards_per_part)
        with self.folder.open(numbered(_PARTS, self._first_part(listing) + part)) as file:
            table = pq.ParquetFile(file).read_row_group(group)
        return table.append_column("position", pa.array(range(table.num_rows), pa.int32()))

    @cached_property
    def _shards_of_listings(self) -> list[int]:
        return [math.ceil(images / self.shard_size) for images in self.listings]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self._shards_of_listings))

    @property
    def _shards_per_part(self) -> int:
        return max(1, min(_SHARDS_PER_PART, _ROWS_PER_PART // self.shard_size))

    def _find(self, shard: int) -> tuple[int, int]:
        """The listing that the shard belongs to, and the shard's number within it."""
        ends = self._ends
        if not 0 <= shard < self.shards:
            raise IndexError(f"shard {shard} is none of the {self.shards} that there are")
        listing = bisect_right(ends, shard)
        return listing, shard - (ends[listing - 1] if listing else 0)

    def _first_part(self, listing: int) -> int:
        return sum(math.ceil(shards / self._shards_per_part) for shards in self._shards_of_listings[:listing])

    def _save(self) -> None:
        record = {"images": self.images, "shards": self.shards}
        record |= {field.name: getattr(self, field.name) for field in fields(self) if field.name != "folder"}
        save_record(self.folder, record, _JSON)


def write_manifest(
    output: Folder,
    source: Iterable[ManifestRow],
    shard_size: int,
    limit: int | None = None,
    on_progress: Progress | None = None,
    *,
    input: str = "",
) -> Manifest:
    """List the images of ``source`` from scratch.

    Args:
        output: OUTPUT.
        source: rows of ``list_tree`` or of ``read_manifest_input``.
        shard_size: images per shard, the unit of work and of resume.
        limit: stop after so many images.
        on_progress: called with the number of images listed so far, once a shard.
        input: INPUT, for the record.

    Raises:
        UsageError: two images of a manifest file have one key, or there are too many shards.
    """
    if shard_size < 1:
        raise UsageError(f"the shard size (={shard_size}) must be at least 1")
    output.delete(_JSON)
    nothing = Manifest(output, input, shard_size, (), (), True, limit, False, "")
    return _append(nothing, source, limit, on_progress)


def extend_manifest(
    output: Folder,
    manifest: Manifest,
    source: Iterable[ManifestRow],
    limit: int | None = None,
    on_progress: Progress | None = None,
) -> Manifest:
    """Append the images of ``source`` that are not listed yet, as new shards; what is listed stays as it is.

    Killed half-way, it leaves the manifest as it was. Arguments and errors as for ``write_manifest``.
    """
    return _append(replace(manifest, folder=output), source, limit, on_progress)


def _append(
    manifest: Manifest, source: Iterable[ManifestRow], limit: int | None, on_progress: Progress | None
) -> Manifest:
    first = _First(source, limit)
    rows = _not_listed(_in_order(first), _listed(manifest))
    part = manifest._first_part(len(manifest.listings))
    writer = RollingParquet(manifest.folder, _PARTS, MANIFEST_SCHEMA, part)
    labels, added = set(manifest.labels), 0
    while shard := list(islice(rows, manifest.shard_size)):
        added += len(shard)
        if manifest.shards + math.ceil(added / manifest.shard_size) > MAX_SHARDS:
            raise UsageError(
                f"more than {MAX_SHARDS} shards of {manifest.shard_size} images; "
                "set a larger --shard-size and start a new output"
            )
        if len(labels) <= MAX_LABELS:
            labels.update(row.label for row in shard if row.label is not None)
        writer.add(table_of(shard))
        if writer.groups == manifest._shards_per_part:
            writer.roll()
        if on_progress:
            on_progress(manifest.images + added)
    writer.roll()
    writer.remove_later_files()  # of a listing that was cut off
    extended = replace(
        manifest,
        listings=(*manifest.listings, added) if added else manifest.listings,
        labels=tuple(sorted(labels)[:MAX_LABELS]),
        labels_complete=len(labels) <= MAX_LABELS,
        limit=limit,
        complete=not first.cut,
        listed_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    extended._save()
    return extended


class _First:
    """The first rows of a stream, and whether there were more."""

    def __init__(self, rows: Iterable[ManifestRow], limit: int | None):
        self._rows, self._limit, self.cut = rows, limit, False

    def __iter__(self) -> Iterator[ManifestRow]:
        for number, row in enumerate(self._rows):
            if number == self._limit:
                self.cut = True
                return
            yield row


def _in_order(rows: Iterable[ManifestRow]) -> Iterator[ManifestRow]:
    """Rows of a tree come sorted, those of a manifest file are sorted here."""
    iterator = iter(rows)
    for row in iterator:
        everything = chain([row], iterator)
        yield from everything if row.path is not None else _one_per_key(sorted_by_key(everything))


def _one_per_key(rows: Iterator[ManifestRow]) -> Iterator[ManifestRow]:
    """The same image named twice is one; two images under one key would overwrite each other's results."""
    last: ManifestRow | None = None
    for row in rows:
        if last is not None and row.key == last.key:
            if row.uri != last.uri:
                raise UsageError(
                    f"the manifest has two images with the key {row.key!r}: {last.uri} and {row.uri}; "
                    "give each a key of its own in the column key"
                )
            continue
        last = row
        yield row


def _listed(manifest: Manifest) -> Iterator[bytes]:
    """What all listings so far hold, in order."""
    listings = range(len(manifest.listings))
    return heapq.merge(*(_listed_in(manifest, listing) for listing in listings))


def _listed_in(manifest: Manifest, listing: int) -> Iterator[bytes]:
    for part in range(manifest._first_part(listing), manifest._first_part(listing + 1)):
        with manifest.folder.open(numbered(_PARTS, part)) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=["key", "path"]):
                for key, path in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield key.encode() if path is None else path


def _not_listed(rows: Iterator[ManifestRow], listed: Iterator[bytes]) -> Iterator[ManifestRow]:
    known = next(listed, None)
    for row in rows:
        order = order_of(row)
        while known is not None and known < order:
            known = next(listed, None)
        if known != order:
            yield row
