"""Starting over: remove only files that the records of earlier runs name.

A folder of results may hold other people's files, such as ground truth beside masks, or a link to another disk.  A
first run refuses such a folder.  Later runs leave alone every file that no record names, and follow no link.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, islice
from typing import NamedTuple

import pyarrow as pa

from vbp.errors import StorageError, UsageError
from vbp.storage.files import Folder
from vbp.storage.ledger.marks import is_mark
from vbp.storage.ledger.parts import PARTS, generation_of, parse_parts, read_parts
from vbp.storage.manifest.files import files_in
from vbp.storage.manifest.manifest import MANIFEST, Manifest
from vbp.storage.outline import FOLDERS, INDEX, RESULT_FOLDERS, SCORES, TARS
from vbp.storage.record import RUN, load_record, mark_incomplete, save_record, withdraw
from vbp.storage.results.places import names_of
from vbp.storage.results.tars import shard_of
from vbp.storage.sorting import Sorter

_EXAMPLES = 3
_THREADS = 16
_AT_ONCE = 4096
_TABLES = (INDEX, SCORES)
_TABLE_FILE = re.compile(rf"({'|'.join(_TABLES)})/part-\d{{5,}}\.parquet", re.ASCII)


def refuse_others(output: Folder) -> None:
    """Before the first run: refuse folders of results that are not empty.

    Raises:
        UsageError: one of them holds files or is a file, which no run can have written.
    """
    folders = (*RESULT_FOLDERS, *_TABLES)
    found = [name for name in folders if output.exists(name)]
    found = found or list(islice(chain.from_iterable(_below(output, name) for name in folders), _EXAMPLES))
    if found:
        raise UsageError(
            f"OUTPUT (={output.url}) holds files that no run has written, where results go: {', '.join(found)}; "
            "choose another OUTPUT, or move them elsewhere."
        )


def holds_run(output: Folder) -> bool:
    """Whether `output` has a record of an earlier run: ``run.json``, a manifest or a part."""
    return output.exists(RUN) or output.exists(MANIFEST) or next(_below(output, PARTS), None) is not None


def clear(output: Folder, attempt: str) -> None:
    """Remove all files that earlier runs wrote to `output` and that their records name; nothing else."""
    if not holds_run(output):
        return
    mark_incomplete(output)
    with contextlib.suppress(StorageError):  # no _SUCCESS and no part that another attempt writes late is then ours
        changes = {"attempt": attempt, "generation": generation_of(attempt)}
        save_record(output, {**(load_record(output) or {}), **changes})
    with Sorter(_Path, _SCHEMA) as explained:
        shards = _explain(output, explained)
        # Parts go first: no part may outlive the manifest with its positions, or the results that it names.
        _delete(output, (path for path in _below(output, PARTS) if _is_of_ledger(path)))
        tables = chain.from_iterable(_below(output, name) for name in _TABLES)
        _delete(output, (path for path in tables if _TABLE_FILE.fullmatch(path)))
        found = chain.from_iterable(_below(output, name) for name in sorted(FOLDERS))
        _delete(output, _common(explained, found))
        _delete(output, (path for path in _below(output, TARS) if shard_of(path) in shards))
    forget_listing(output)


def forget_listing(output: Folder) -> None:
    """Remove the manifest and the record of a first run that ended before any image was done; nothing else.

    The manifest goes before its parts: one that lacks parts stops every run that follows. Where a change may come late,
    the record goes first: every run writes it before all else, so a late removal fails there and goes no further. On a
    disk it goes last, because a manifest without a record is refused.
    """
    if output.changes_may_come_late:
        withdraw(output, RUN)
    withdraw(output, MANIFEST)
    _delete(output, files_in(output))
    if not output.changes_may_come_late:
        withdraw(output, RUN)


class _Path(NamedTuple):
    path: bytes


_SCHEMA = pa.schema([("path", pa.binary())])


def _explain(output: Folder, explained: Sorter[_Path]) -> set[int]:
    """Add the path of every result that manifest and parts name; returns the numbers of their shards."""
    shards: set[int] = set()
    for shard, keys in chain(_listed(output), _recorded(output)):
        shards.add(shard)
        for key in keys:
            for path in names_of(key):
                explained.add(_Path(path.encode()))
    return shards


def _listed(output: Folder) -> Iterator[tuple[int, list[str]]]:
    """Shard number and keys of each shard, as far as the manifest can be read."""
    with contextlib.suppress(StorageError, UsageError, OSError):
        manifest = Manifest.load(output)
        for shard in range(manifest.shards if manifest else 0):
            assert manifest is not None
            yield shard, manifest.read_shard(shard, ["key"])["key"].to_pylist()


def _recorded(output: Folder) -> Iterator[tuple[int, list[str]]]:
    """Shard number and keys of each part that can be read; needed when the manifest cannot be read."""
    for part in parse_parts(path.removeprefix(f"{PARTS}/") for path in _below(output, PARTS)):
        with contextlib.suppress(StorageError, OSError):
            yield part.shard, read_parts(output, [part], ["key"])["key"].to_pylist()


def _is_of_ledger(path: str) -> bool:
    name = path.removeprefix(f"{PARTS}/")
    return bool(parse_parts([name])) or is_mark(name.rpartition("/")[2])


def _common(explained: Iterable[_Path], found: Iterator[str]) -> Iterator[str]:
    """The paths that are in both streams, which are sorted."""
    wanted = iter(explained)
    known = next(wanted, None)
    for path in found:
        here = os.fsencode(path)
        while known is not None and known.path < here:
            known = next(wanted, None)
        if known is not None and known.path == here:
            yield path


def _below(output: Folder, folder: str) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        for file in output.child(folder).walk():
            yield f"{folder}/{file.path}"


def _delete(output: Folder, paths: Iterator[str]) -> None:
    """Remove files, but none that is reached through a link."""
    is_behind_link = lru_cache(maxsize=10_000)(output.is_behind_link)
    with ThreadPoolExecutor(_THREADS) as pool:
        own = (path for path in paths if not is_behind_link(path.rpartition("/")[0]))
        while batch := list(islice(own, _AT_ONCE)):
            list(pool.map(output.delete, batch))
