"""Existing result files, held against those that the rows expect: a merge of two streams that are sorted by path.

For workers both streams are cut at the same paths.  What lies between two of them is a *stretch*: branches of a folder
of results, and the files that are expected there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import chain, groupby
from typing import NamedTuple

import pyarrow as pa

from vbp.review.examine import Expected, Findings, check_seen
from vbp.storage.files import Branch, Folder
from vbp.storage.sorting import Sorter
from vbp.storage.spreading import ignored

_TASKS = 256
"""The most stretches of a folder."""
_FILES = 4_000_000
"""The most files that are expected in a stretch, since its worker holds them, with some 100 bytes each."""
_FILES_A_WORD = 10_000
"""Files after which progress is told."""

File = tuple[bytes, int | None]
"""Path of a file in OUTPUT, and its bytes if the store tells them."""


@dataclass
class Compared:
    """What was found."""

    findings: Findings = field(default_factory=Findings)
    files: int = 0
    """Existing files."""
    strays: list[str] = field(default_factory=list)
    """Paths of those that are not expected."""


class Stretch(NamedTuple):
    """What one worker compares."""

    folder: str
    branches: Sequence[Branch] | None
    """They follow each other in the folder; None: the whole folder, which may be missing."""
    expected: Sequence[pa.Buffer]
    """Tables of `Expected`, each of them sorted, as Arrow streams."""


def compare(
    expected: Iterable[Expected], existing: Iterable[File], tell: Callable[[str], object] = ignored
) -> Compared:
    """Compare expected with existing files; both are sorted by path."""
    found = Compared()
    wanted = groupby(expected, key=lambda each: each.path)
    path, users = next(wanted, (None, iter(())))
    for file, size in existing:
        found.files += 1
        if not found.files % _FILES_A_WORD:
            tell(f"{found.files} files compared")
        while path is not None and path < file:
            _lost(found, users)
            path, users = next(wanted, (None, iter(())))
        if path != file:
            found.strays.append(os.fsdecode(file))
            continue
        for each in users:
            if size is not None and size < each.least:
                told = f"{os.fsdecode(file)}: {size} bytes"
                found.findings.add("file short", told, each.shard, each.position)
        path, users = next(wanted, (None, iter(())))
    while path is not None:
        _lost(found, users)
        path, users = next(wanted, (None, iter(())))
    return found


def _lost(found: Compared, users: Iterable[Expected]) -> None:
    for each in users:
        if each.least:
            found.findings.add("file lost", os.fsdecode(each.path), each.shard, each.position)


def existing(output: Folder, folders: Collection[str]) -> Iterator[File]:
    """All files in folders of results, in byte order of the path."""
    return chain.from_iterable(_existing(output, folder, None) for folder in sorted(folders))


def _existing(output: Folder, name: str, branches: Sequence[Branch] | None) -> Iterator[File]:
    folder = output.child(name)
    with contextlib.suppress(FileNotFoundError):
        for file in folder.walk() if branches is None else folder.walk_branches(branches):
            yield os.fsencode(f"{name}/{file.path}"), file.size


def compare_stretch(output: Folder, stretch: Stretch) -> Compared:
    """`compare` the files of a stretch; nothing is changed.

    Raises:
        UsageError: the output is not seen here.
        StorageError: the store does not answer.
    """
    check_seen(output)
    return compare(merge(*map(_read, stretch.expected)), _existing(output, stretch.folder, stretch.branches))


def _read(stream: pa.Buffer) -> Iterator[Expected]:
    for batch in pa.ipc.open_stream(stream):
        yield from map(Expected._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))


def stretches(output: Folder, folders: Collection[str], expected: Sorter[Expected]) -> Iterator[Stretch] | None:
    """All files of an output in stretches, in order; None if one of them would be too large."""
    places: list[tuple[str, Sequence[Branch] | None]] = []
    for folder in sorted(folders):
        if (branches := output.child(folder).cut_up()) is None:
            places.append((folder, None))
            continue
        size = -(-len(branches) // _TASKS)
        places += [(folder, branches[first : first + size]) for first in range(0, len(branches), size)]
    tables = expected.cut([_start(*place) for place in places])
    if any(sum(table.num_rows for table in some) > _FILES for some in tables):
        return None
    return (Stretch(*place, [*map(_stream, some)]) for place, some in zip(places, tables, strict=True))


def _start(folder: str, branches: Sequence[Branch] | None) -> bytes:
    """The path from which on files belong to these branches, or to later ones."""
    first = branches[0] if branches else Branch("")
    return os.fsencode(f"{folder}/{first.folder if first.files is None else first.files[0].path}")


def _stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()
