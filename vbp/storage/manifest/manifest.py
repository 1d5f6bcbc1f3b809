"""The manifest: the images of a run, listed once, kept in shards that are read one by one.

::

    OUTPUT/_run/manifest/part-00000.parquet   one row group a shard, a bounded number of shards
    OUTPUT/_run/manifest.json                 written last: without it there is no manifest

Rows of one listing are sorted (those of a tree by their path, those of a manifest file by their key); a later
listing appends shards of what is new (``refresh``). So everything here is a merge of sorted streams, and
memory does not grow with the collection: it holds one file of shards while that is built.
"""

import math
import secrets
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import accumulate, islice
from typing import Any

import pyarrow as pa

from vbp.columns import MANIFEST_SCHEMA
from vbp.errors import StorageError, UsageError
from vbp.storage.collections.manifestfile import is_manifest, read_manifest_input
from vbp.storage.collections.tree import ManifestRow, list_tree
from vbp.storage.files import Folder
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest.rows import First, in_order, rows_of, table_of, with_positions
from vbp.storage.parquet import RollingParquet, numbered, open_parquet
from vbp.storage.record import load_record, save_record, withdraw

__all__ = [
    "Manifest",
    "ManifestRow",
    "is_manifest",
    "list_tree",
    "read_manifest_input",
    "write_manifest",
]

MAX_SHARDS = 999_999  # folders of parts are named by six digits
MAX_LABELS = 100_000

MANIFEST_PARTS = "_run/manifest"

MANIFEST = "_run/manifest.json"
_LATER = {"size", "version"}
"""Columns that the first manifests had not."""
_SHARDS_PER_PART = 256
_ROWS_PER_PART = 1_000_000


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
    generation: str = ""
    """Only parts of the same one count: each start over begins another. Empty where an older vbp made it."""
    id: str = ""
    """Of the first listing: positions count in this manifest alone. Empty where an older vbp made it."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Files that the last listing passed over, by suffix or kind (``vbp.storage.leftout``)."""
    suffixes: tuple[str, ...] | None = None
    """Those of images that the last listing was asked for; None for the usual ones."""

    @classmethod
    def load(cls, output: Folder) -> "Manifest | None":
        """The manifest of an output; None where there is none, or where its listing was cut off.

        Raises:
            StorageError: it is not what was written.
        """
        record = load_record(output, MANIFEST)
        if record is None:
            return None
        older: dict[str, Any] = {
            "id": "",
            "generation": "",
            "left_out": {},
            "suffixes": None,
        }  # what an older vbp did not put down
        record = older | record
        wrong = [name for name, is_right in _RIGHT.items() if not is_right(record.get(name))]
        if wrong:
            raise StorageError(
                f"{output.uri(MANIFEST)} is damaged ({wrong[0]} is {record.get(wrong[0])!r}); restore it"
            )
        own = {each.name: record[each.name] for each in fields(cls) if each.name != "folder"}
        own |= {name: tuple(own[name]) for name in ("listings", "labels", "suffixes") if own[name] is not None}
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

    def read_shard(self, shard: int, columns: Sequence[str] = tuple(MANIFEST_SCHEMA.names)) -> pa.Table:
        """The shard's rows: ``columns``, and ``position`` (int32), the row's number within the shard.

        Raises:
            UsageError: its file is not what was written.
        """
        listing, within = self._find(shard)
        part, group = divmod(within, self.shards_per_part)
        with open_parquet(self.folder, numbered(MANIFEST_PARTS, self.first_part(listing) + part)) as file:
            table = self.conformed(shard, file.read_row_group(group, list(columns)), columns)
        return with_positions(table)

    def conformed(self, shard: int, rows: pa.Table, columns: Sequence[str] = tuple(MANIFEST_SCHEMA.names)) -> pa.Table:
        """These columns of a shard, as ``MANIFEST_SCHEMA`` has them; those of which an older vbp knew nothing as nulls.

        Raises:
            ArrowInvalid: they are not what was written.
        """
        rows.validate(full=True)
        if rows.num_rows != self.shard_images(shard):
            raise pa.ArrowInvalid(f"shard {shard} has {rows.num_rows} rows, not {self.shard_images(shard)}")
        for wanted in map(MANIFEST_SCHEMA.field, columns):
            if wanted.name in _LATER and wanted.name not in rows.column_names:
                rows = rows.append_column(wanted, pa.nulls(rows.num_rows, wanted.type))
            found = rows[wanted.name] if wanted.name in rows.column_names else None
            if found is None or found.type != wanted.type or (found.null_count and not wanted.nullable):
                raise pa.ArrowInvalid(f"column {wanted.name} of shard {shard} is not what was written")
        return rows.select(list(columns))

    def rows(self) -> Iterator[ManifestRow]:
        """All rows, shard by shard."""
        for shard in range(self.shards):
            yield from rows_of(self.read_shard(shard))

    @property
    def shards_per_part(self) -> int:
        """How many row groups a file of the manifest holds."""
        return max(1, min(_SHARDS_PER_PART, _ROWS_PER_PART // self.shard_size))

    def first_shard(self, listing: int) -> int:
        """How many shards come before those of a listing."""
        return sum(self._shards_of_listings[:listing])

    def first_part(self, listing: int) -> int:
        """How many files come before those of a listing."""
        return sum(math.ceil(shards / self.shards_per_part) for shards in self._shards_of_listings[:listing])

    @cached_property
    def _shards_of_listings(self) -> list[int]:
        return [math.ceil(images / self.shard_size) for images in self.listings]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self._shards_of_listings))

    def _find(self, shard: int) -> tuple[int, int]:
        """The listing that the shard belongs to, and the shard's number within it."""
        ends = self._ends
        if not 0 <= shard < self.shards:
            raise IndexError(f"shard {shard} is none of the {self.shards} that there are")
        listing = bisect_right(ends, shard)
        return listing, shard - (ends[listing - 1] if listing else 0)

    def _save(self) -> None:
        record = {"images": self.images, "shards": self.shards}
        record |= {each.name: getattr(self, each.name) for each in fields(self) if each.name != "folder"}
        save_record(self.folder, record, MANIFEST)


def _is_number(value: object) -> bool:
    return type(value) is int and value > 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_RIGHT: Mapping[str, Callable[[Any], bool]] = {
    "input": _is_text,
    "shard_size": _is_number,
    "listings": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "labels": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "labels_complete": lambda value: isinstance(value, bool),
    "limit": lambda value: value is None or _is_number(value),
    "complete": lambda value: isinstance(value, bool),
    "listed_at": _is_text,
    "id": _is_text,
    "left_out": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    "suffixes": lambda value: value is None or (isinstance(value, list) and all(map(_is_text, value))),
    "generation": _is_text,
}
"""What each field of the record must be."""


def write_manifest(
    output: Folder,
    source: Iterable[ManifestRow],
    shard_size: int,
    limit: int | None = None,
    *,
    input: str = "",
    left_out: LeftOut | None = None,
    suffixes: tuple[str, ...] | None = None,
    generation: str = "",
) -> Manifest:
    """List the images of ``source`` from scratch.

    Args:
        output: OUTPUT.
        source: rows of ``list_tree`` or of ``read_manifest_input``.
        shard_size: images per shard, the unit of work and of resume.
        limit: stop after so many images.
        input: INPUT, for the record.
        left_out: what ``source`` passes over, counted as it goes; for the record.
        suffixes: of images, where they are others than usual; for the record.
        generation: of the parts that are to count.

    Raises:
        UsageError: two images of a manifest file have one key, or there are too many shards.
    """
    if shard_size < 1:
        raise UsageError(f"the shard size (={shard_size}) must be at least 1")
    if output.exists(MANIFEST):
        withdraw(output, MANIFEST)
    nothing = Manifest(output, input, shard_size, (), (), True, limit, False, "", generation, secrets.token_hex(8))
    first = First(source, limit)
    return append(nothing, in_order(first, left_out), first, left_out=left_out, suffixes=suffixes)


def append(
    manifest: Manifest,
    rows: Iterator[ManifestRow],
    source: First,
    before_save: Callable[[], None] | None = None,
    accept: Callable[[Manifest], object] = lambda longer: None,
    *,
    relabelled: Collection[str] = (),
    left_out: LeftOut | None = None,
    suffixes: tuple[str, ...] | None = None,
) -> Manifest:
    """Add a listing of ``rows``, in order, as new shards; killed half-way, the manifest is as it was.

    Args:
        manifest: what is listed so far.
        rows: what ``source`` has beyond that.
        source: tells whether it was cut at its limit.
        before_save: called before a manifest with new images replaces the old one.
        accept: called with such a manifest before that; what it raises keeps the old one.
        relabelled: labels that known images have got; looked at when ``rows`` have ended.
        left_out: what ``source`` passes over; None keeps what is on record.
        suffixes: of images, that ``source`` goes by, where they are others than usual.

    Raises:
        UsageError: there are too many shards.
    """
    writer = RollingParquet(
        manifest.folder, MANIFEST_PARTS, MANIFEST_SCHEMA, manifest.first_part(len(manifest.listings))
    )
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
        if writer.groups == manifest.shards_per_part:
            writer.roll()
    writer.roll()
    writer.remove_later_files()  # of a listing that was cut off
    labels.update(relabelled)
    extended = replace(
        manifest,
        listings=(*manifest.listings, added) if added else manifest.listings,
        labels=tuple(sorted(labels)[:MAX_LABELS]),
        labels_complete=len(labels) <= MAX_LABELS,
        limit=source.limit,
        complete=not source.cut,
        listed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        left_out=manifest.left_out if left_out is None else dict(left_out.counts),
        suffixes=suffixes,
    )
    if replace(extended, listed_at=manifest.listed_at) == manifest:
        return manifest
    if extended.labels != manifest.labels:
        accept(extended)
    if added and before_save:
        before_save()
    extended._save()
    return extended
