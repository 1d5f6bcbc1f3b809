"""Rows held against a manifest that they may not have been made by: a row is of its key, not of its place.

Positions count in one manifest alone. Where that was lost, and the input was listed anew, or where another one was put
in its place, the same positions may be of other images: such rows are taken back, and their images are done again.
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
    """Take back all rows of other images than the manifest has at their positions; returns how many there were.

    Whoever calls it holds the lease. Killed at any time and repeated, it comes to the same end.

    Args:
        output: OUTPUT.
        manifest: the list of images as it is now.
        drop: called with the keys of such rows, which nothing on record explains afterwards.
        before_change: called before anything changes, maybe more than once; never where all rows fit.
    """
    count = 0
    for shard, parts in all_parts(output):
        rows = read_parts(output, parts, ["key", "position"])
        if shard < manifest.shards:
            rows = rows.filter(strangers(manifest, shard, rows))
        if not rows.num_rows:
            continue
        before_change()
        drop(rows["key"].to_pylist())
        forget(output, shard, pc.unique(rows["position"]).to_pylist())
        count += rows.num_rows
    return count
