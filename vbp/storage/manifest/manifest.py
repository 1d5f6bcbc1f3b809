"""The manifest: the images of a run, listed once and stored in shards, which are read one by one.

::

    OUTPUT/_run/manifest/<random>-00000.parquet   one row group for each shard, a bounded number of shards
    OUTPUT/_run/manifest.json                     written last; only the files that it names count

A file is never changed: new rows go into a file of another name.  So in an object store, where a write or a deletion
may come late, when another run has the output, it does not hit what that run has listed.

Rows of one listing are sorted (those of a tree by path, those of a manifest file by key); a later listing appends
shards with its new images (``refresh``).  So everything here is a merge of sorted streams.  Memory does not grow with
the collection: it holds one file of the manifest while that is built.
"""

import contextlib
import math
import re
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
from vbp.storage.manifest import stretches
from vbp.storage.manifest.files import MANIFEST_PARTS, is_name, name_of, new_files, remove_others
from vbp.storage.manifest.rows import MAX_LABELS, First, Labels, in_order, rows_of, table_of, with_positions
from vbp.storage.manifest.stretches import Piece, Rest, Stretch
from vbp.storage.parquet import open_parquet
from vbp.storage.record import load_record, save_record, withdraw

__all__ = [
    "Manifest",
    "ManifestRow",
    "is_manifest",
    "list_tree",
    "read_manifest_input",
    "write_manifest",
]

MAX_SHARDS = 999_999  # a folder of parts has a name of six digits

MANIFEST = "_run/manifest.json"
_LATER: Mapping[str, Any] = {"size": None, "version": None, "gone": False}
"""Columns that older versions of the manifest did not have, and their values there."""
_SHARDS_PER_PART = 256
_ROWS_PER_PART = 1_000_000


@dataclass(frozen=True)
class Manifest:
    """The list of images of an output."""

    folder: Folder
    """OUTPUT."""
    input: str
    shard_size: int
    """Images in a full shard; the last shard of a listing may hold fewer."""
    listings: tuple[int, ...]
    """Images that each listing added, the first listing first."""
    labels: tuple[str, ...]
    """The different labels, sorted; only the first ``MAX_LABELS`` that were found."""
    labels_complete: bool
    limit: int | None
    """``--limit`` of the last listing."""
    complete: bool
    """Whether the last listing found all images before it reached the limit."""
    listed_at: str
    generation: str = ""
    """Only parts of this generation count; each start over begins another. Empty if an older vbp made it."""
    id: str = ""
    """Id of the first listing: positions are valid in this manifest alone. Empty if an older vbp made it."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files that the last listing left out, by suffix or kind (``vbp.storage.leftout``)."""
    suffixes: tuple[str, ...] | None = None
    """``--suffixes`` of the last listing; None for the usual ones."""
    files: tuple[str, ...] | None = None
    """Names of its files, in the order of shards; None if an older vbp made it."""
    attempt: str = ""
    """The attempt that has claimed it last; in object stores every attempt does so."""
    gone: Mapping[int, int] = field(default_factory=dict)
    """Number of images that are gone from INPUT, by shard; they keep their places, since rows are found by them."""

    @classmethod
    def load(cls, output: Folder) -> "Manifest | None":
        """The manifest of an output; None if there is none, or its first listing was not completed.

        Raises:
            StorageError: the manifest is damaged.
        """
        record = load_record(output, MANIFEST)
        if record is None:
            return None
        older: dict[str, Any] = {
            "id": "",
            "generation": "",
            "left_out": {},
            "suffixes": None,
            "files": None,
            "attempt": "",
            "gone": {},
        }  # fields that an older vbp did not record
        record = older | record
        wrong = [name for name, is_right in _RIGHT.items() if not is_right(record.get(name))]
        if wrong:
            raise StorageError(
                f"{output.uri(MANIFEST)} is damaged ({wrong[0]} is {record.get(wrong[0])!r}); restore it"
            )
        own = {each.name: record[each.name] for each in fields(cls) if each.name != "folder"}
        own["generation"] = _generation_in_run(output) or own["generation"]
        own["gone"] = {int(shard): count for shard, count in own["gone"].items()}
        own |= {name: tuple(own[name]) for name in ("listings", "labels", "suffixes", "files") if own[name] is not None}
        found = cls(folder=output, **own)
        if len(found.names) != found.first_part(len(found.listings)):
            raise StorageError(f"{output.uri(MANIFEST)} is damaged (files is {record['files']!r}); restore it")
        if any(shard >= found.shards or count > found.shard_images(shard) for shard, count in found.gone.items()):
            raise StorageError(f"{output.uri(MANIFEST)} is damaged (gone is {record['gone']!r}); restore it")
        return found

    @property
    def images(self) -> int:
        """Number of listed images."""
        return sum(self.listings)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return sum(self._shards_of_listings)

    def shard_start(self, shard: int) -> int:
        """Number of images before the shard."""
        listing, within = self._find(shard)
        return sum(self.listings[:listing]) + within * self.shard_size

    def shard_images(self, shard: int) -> int:
        """Number of images in the shard."""
        listing, within = self._find(shard)
        return min(self.shard_size, self.listings[listing] - within * self.shard_size)

    def read_shard(self, shard: int, columns: Sequence[str] = tuple(MANIFEST_SCHEMA.names)) -> pa.Table:
        """The shard's rows: ``columns``, and ``position`` (int32), the row's number within the shard.

        Raises:
            UsageError: the manifest's file is damaged.
        """
        listing, within = self._find(shard)
        part, group = divmod(within, self.shards_per_part)
        with open_parquet(self.folder, self.path(listing, part)) as file:
            table = self.conformed(shard, file.read_row_group(group, list(columns)), columns)
        return with_positions(table)

    def conformed(self, shard: int, rows: pa.Table, columns: Sequence[str] = tuple(MANIFEST_SCHEMA.names)) -> pa.Table:
        """These columns of a shard, with the types of ``MANIFEST_SCHEMA``; an older vbp's lacking ones are filled.

        Raises:
            ArrowInvalid: the rows are damaged.
        """
        rows.validate(full=True)
        if rows.num_rows != self.shard_images(shard):
            raise pa.ArrowInvalid(f"shard {shard} has {rows.num_rows} rows, not {self.shard_images(shard)}")
        for wanted in map(MANIFEST_SCHEMA.field, columns):
            if wanted.name in _LATER and wanted.name not in rows.column_names:
                value = pa.scalar(_LATER[wanted.name], wanted.type)
                rows = rows.append_column(wanted, pa.repeat(value, rows.num_rows))
            found = rows[wanted.name] if wanted.name in rows.column_names else None
            if found is None or found.type != wanted.type or (found.null_count and not wanted.nullable):
                raise pa.ArrowInvalid(f"column {wanted.name} of shard {shard} is not what was written")
        return rows.select(list(columns))

    def rows(self) -> Iterator[ManifestRow]:
        """The rows of all images that are not gone, in the order of shards."""
        for shard in range(self.shards):
            yield from (row for row in rows_of(self.read_shard(shard)) if not row.gone)

    def gone_in(self, shard: int) -> list[int]:
        """Positions of the shard's images that are gone from INPUT; errors as for `read_shard`."""
        if shard not in self.gone:
            return []
        rows = self.read_shard(shard, ["gone"])
        positions: list[int] = rows.filter(rows["gone"])["position"].to_pylist()
        return positions

    def images_within(self, limit: int | None) -> int:
        """Number of images among the first `limit` of the manifest that are not gone; errors as for `read_shard`."""
        end = self.images if limit is None else min(limit, self.images)
        return end - sum(self._gone_before(end, shard) for shard in self.gone)

    def _gone_before(self, end: int, shard: int) -> int:
        """How many of the manifest's first `end` images are gone and in this shard."""
        room = end - self.shard_start(shard)
        if room >= self.shard_images(shard):
            return self.gone[shard]
        return sum(position < room for position in self.gone_in(shard)) if room > 0 else 0

    @property
    def shards_per_part(self) -> int:
        """Number of row groups in a full file of the manifest."""
        return max(1, min(_SHARDS_PER_PART, _ROWS_PER_PART // self.shard_size))

    def first_shard(self, listing: int) -> int:
        """Number of the first shard of a listing."""
        return sum(self._shards_of_listings[:listing])

    def shard_at(self, listing: int, part: int, group: int = 0) -> int:
        """Number of the shard in a row group of a file of a listing."""
        return self.first_shard(listing) + part * self.shards_per_part + group

    def path(self, listing: int, part: int) -> str:
        """The path in OUTPUT of a file of a listing."""
        return f"{MANIFEST_PARTS}/{self.names[self.first_part(listing) + part]}"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of its files, in the order of shards."""
        if self.files is not None:
            return self.files
        return tuple(f"part-{number:05d}.parquet" for number in range(self.first_part(len(self.listings))))

    def first_part(self, listing: int) -> int:
        """Number of the first file of a listing."""
        return sum(math.ceil(shards / self.shards_per_part) for shards in self._shards_of_listings[:listing])

    @cached_property
    def _shards_of_listings(self) -> list[int]:
        return [math.ceil(images / self.shard_size) for images in self.listings]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self._shards_of_listings))

    def _find(self, shard: int) -> tuple[int, int]:
        """The shard's listing, and the shard's number within it."""
        ends = self._ends
        if not 0 <= shard < self.shards:
            raise IndexError(f"shard {shard} is none of the {self.shards} that there are")
        listing = bisect_right(ends, shard)
        return listing, shard - (ends[listing - 1] if listing else 0)

    def claimed(self, attempt: str) -> "Manifest":
        """Write ``manifest.json`` again, so that in an object store the late write of another attempt fails."""
        own = replace(self, attempt=attempt)
        own._save()
        return own

    def _save(self) -> None:
        record = {"images": self.images, "shards": self.shards}
        record |= {each.name: getattr(self, each.name) for each in fields(self) if each.name != "folder"}
        save_record(self.folder, record, MANIFEST)


def _generation_in_run(output: Folder) -> str | None:
    """The generation in ``run.json``: a run that starts over writes it there, where a late write fails."""
    with contextlib.suppress(StorageError):
        found = (load_record(output) or {}).get("generation")
        return found if isinstance(found, str) else None
    return None


def _is_number(value: object) -> bool:
    return type(value) is int and value > 0


def _is_count_of_shard(item: tuple[str, object]) -> bool:
    return re.fullmatch(r"0|[1-9]\d{0,5}", item[0], re.ASCII) is not None and _is_number(item[1])


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
    "attempt": _is_text,
    "gone": lambda value: isinstance(value, dict) and all(map(_is_count_of_shard, value.items())),
    "files": lambda value: value is None or (isinstance(value, list) and all(map(is_name, value))),
}
"""A check for each field of the record."""


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
    rest: Rest | None = None,
) -> Manifest:
    """Write a new manifest with the images of ``source``.

    Args:
        output: OUTPUT.
        source: rows from ``list_tree`` or ``read_manifest_input``.
        shard_size: images per shard, the unit of work and of resume.
        limit: the most images that are listed.
        input: INPUT, for the record.
        left_out: files that ``source`` leaves out, counted while it runs; for the record.
        suffixes: ``--suffixes``, if given; for the record.
        generation: generation of the parts that will count.
        rest: workers that list what ``source`` has not listed after some time; only without a limit.

    Raises:
        UsageError: two images of a manifest file have one key, or there are too many shards.
    """
    if shard_size < 1:
        raise UsageError(f"the shard size (={shard_size}) must be at least 1")
    if output.exists(MANIFEST):
        withdraw(output, MANIFEST)
    nothing = Manifest(
        output, input, shard_size, (), (), True, limit, False, "", generation, secrets.token_hex(8), files=()
    )
    first = First(source, limit)
    return append(nothing, in_order(first, left_out), first, left_out=left_out, suffixes=suffixes, rest=rest)


def append(
    manifest: Manifest,
    rows: Iterator[ManifestRow],
    source: First,
    before_save: Callable[[], None] | None = None,
    accept: Callable[[Manifest], object] = lambda longer: None,
    *,
    relabelled: Collection[str] = (),
    rewritten: Mapping[int, str] = {},
    left_out: LeftOut | None = None,
    suffixes: tuple[str, ...] | None = None,
    gone: Mapping[int, int] | None = None,
    rest: Rest | None = None,
) -> Manifest:
    """Add a listing of ``rows``, in order, as new shards; if this is killed, the manifest stays as it was.

    Args:
        manifest: the manifest so far.
        rows: the rows of ``source`` that are not listed yet.
        source: says whether it was cut at its limit.
        before_save: called before a manifest with new images replaces the old one.
        accept: called with the new manifest before that; an exception from it keeps the old manifest.
        relabelled: new labels of known images; read after ``rows`` have ended.
        rewritten: names of new files, by the number of the file that they replace; read after ``rows`` have ended.
        left_out: files that ``source`` leaves out; None keeps the counts on record.
        suffixes: ``--suffixes`` of ``source``, if given.
        gone: number of images that are gone, by shard; read after ``rows`` have ended. None keeps what is on record.
        rest: as for ``write_manifest``.

    Raises:
        UsageError: there are too many shards.
    """
    new = _Addition(manifest)
    new.write(rows, rest)
    new.labels.add(relabelled)
    kept = (rewritten.get(number, name) for number, name in enumerate(manifest.names))
    extended = replace(
        manifest,
        listings=(*manifest.listings, new.images) if new.images else manifest.listings,
        files=(*kept, *new.names) if new.images or rewritten else manifest.files,
        labels=tuple(sorted(new.labels.found)[:MAX_LABELS]),
        labels_complete=new.labels.are_complete,
        limit=source.limit,
        complete=not source.cut,
        listed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        left_out=manifest.left_out if left_out is None else dict(left_out.counts),
        suffixes=suffixes,
        gone=manifest.gone if gone is None else dict(gone),
    )
    if replace(extended, listed_at=manifest.listed_at) == manifest:
        extended = manifest
    else:
        if extended.labels != manifest.labels:
            accept(extended)
        if new.images and before_save:
            before_save()
        extended._save()
    remove_others(manifest.folder, set(extended.names))
    return extended


class _Addition:
    """The new images of a listing, on the way into files of a manifest.

    Attributes:
        images: how many there are.
        labels: their labels, after those of the manifest.
        names: names of the new files.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.images, self.labels, self.names = 0, Labels(manifest.labels), list[str]()

    def write(self, rows: Iterator[ManifestRow], rest: Rest | None) -> None:
        """Write the rows, and those of `rest` when it is its turn; errors as for `append`."""
        writer, others, size = new_files(self._manifest.folder), None, self._manifest.shard_size
        while others is None and (shard := list(islice(rows, size))):
            self._count(len(shard), (row.label for row in shard))
            writer.add(table_of(shard))
            if writer.groups == self._manifest.shards_per_part:
                writer.roll()
            if rest is not None and self.images >= stretches.ALONE and len(shard) == size:
                others = rest.stretches(shard[-1], self.images)
                rest = rest if others else None
        writer.roll()
        self.names += map(name_of, writer.files)
        if rest is not None and others is not None:
            self._write_others(rest, others, list(writer.files))

    def _write_others(self, rest: Rest, others: Iterator[Stretch], files: Sequence[str]) -> None:
        """Add the rows of `others` behind those in `files`, the last of which may have room."""
        size = self._manifest.shard_size
        rows_in_file = self._manifest.shards_per_part * size
        pieces: list[Piece] = []
        if begun := self.images % rows_in_file:
            pieces.append(Piece(files[-1], 0, begun))
            self.names.pop()
        for stretch in others:
            self._count(stretch.images, stretch.labels)
            pieces += stretch.pieces
        self.names += rest.files(pieces, rows_in_file, size)

    def _count(self, images: int, labels: Iterable[str | None]) -> None:
        self.images += images
        size = self._manifest.shard_size
        if self._manifest.shards + math.ceil(self.images / size) > MAX_SHARDS:
            raise UsageError(
                f"more than {MAX_SHARDS} shards of {size} images; set a larger --shard-size and start a new output"
            )
        self.labels.add(labels)
