"""Reconcile the ledger with a manifest under which its rows may not have been made: a row belongs to its key.

Positions are valid in one manifest alone.  If the manifest was lost and the input was listed again, or if another one
was put in its place, a position may mean another image.  Such rows are deleted, and their images are done again.
"""

from collections.abc import Callable

import pyarrow.compute as pc

from vbp.storage.files import Folder
from vbp.storage.ledger.index import all_parts, forget, strangers
from vbp.storage.ledger.parts import read_parts
from vbp.storage.manifest.manifest import Manifest

Drop = Callable[[list[str]], None]
"""Removes the results of images, by key."""


def reconcile(output: Folder, manifest: Manifest, drop: Drop, before_change: Callable[[], None]) -> int:
    """Delete all rows whose key or version is not the manifest's at their position; returns how many there were.

    The caller holds the lease.  It may be killed at any time; a repeated call completes it.

    Args:
        output: OUTPUT.
        manifest: the present manifest.
        drop: called with the keys of the deleted rows, whose results no record names afterwards.
        before_change: called before anything changes, maybe more than once; never called if all rows fit.
    """
    count = 0
    for shard, parts in all_parts(output):
        rows = read_parts(output, parts, ["key", "version", "position"])
        if shard < manifest.shards:
            rows = rows.filter(strangers(manifest, shard, rows))
        if not rows.num_rows:
            continue
        before_change()
        drop(rows["key"].to_pylist())
        forget(output, shard, pc.unique(rows["position"]).to_pylist())
        count += rows.num_rows
    return count
