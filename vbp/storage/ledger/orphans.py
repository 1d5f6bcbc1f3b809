"""Orphans: tars that no row of the ledger points to."""

import contextlib
import heapq
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from vbp.storage.files import Folder
from vbp.storage.ledger.parts import PARTS, Part, parse_parts, read_parts
from vbp.storage.outline import TARS
from vbp.storage.results.tars import Tar, parse_tar, path_of


def remove_orphans(output: Folder) -> int:
    """Delete the tars that no row of any part points to; returns how many there were.

    Only the holder of the lease may call this, and only while none of its workers is about to commit.  Two sorted
    listings are merged as they stream; parts are opened only if the name of a tar does not say its commit.
    """
    removed = 0
    for tars, parts in _shards(output):
        for tar in _orphans(output, tars, parts):
            output.delete(tar.path)
            removed += 1
    return removed


def _orphans(output: Folder, tars: list[Tar], parts: list[Part]) -> list[Tar]:
    alike = Counter((tar.first, tar.last) for tar in tars)
    committed = {(part.first, part.last) for part in parts if part.ok}
    doubtful = [tar for tar in tars if (tar.first, tar.last) not in committed or alike[tar.first, tar.last] > 1]
    if not doubtful:
        return []
    rows = read_parts(output, parts, ["mask_uri", "overlay_uri"])
    uris = {uri for column in rows.columns for uri in column.unique().to_pylist() if uri is not None}
    used = {path_of(uri) for uri in uris}
    return [tar for tar in doubtful if tar.path not in used]


def _shards(output: Folder) -> Iterator[tuple[list[Tar], list[Part]]]:
    """The tars and the parts of every shard that has any, in order."""
    tars = ((path, True) for path in _paths(output.child(TARS)))
    parts = ((path, False) for path in _paths(output.child(PARTS)))
    for _, group in groupby(heapq.merge(tars, parts), key=lambda item: item[0].partition("/")[0]):
        found = list(group)
        named = (parse_tar(path) for path, is_tar in found if is_tar)
        yield (
            [tar for tar in named if tar is not None],  # no run has written the other files
            parse_parts(path for path, is_tar in found if not is_tar),
        )


def _paths(folder: Folder) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        for file in folder.walk():
            yield file.path
