"""A tree of folders as one stream of files in byte order; threads look up the next folders and files ahead.

So a slow store gets many requests at once.  Memory holds the names of one folder for each level of the tree, and the
results of the requests ahead: at most ``AHEAD`` folders or ``AHEAD`` times ``PIECE`` files at each level.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from vbp.storage.stores.store import File

THREADS = 16
AHEAD = 16
PIECE = 100
"""Number of files that are looked up together."""


class Level(NamedTuple):
    """A folder whose names are listed."""

    identity: Hashable
    """Identity of the folder, whatever path leads to it; a folder within itself is not entered."""
    pieces: Sequence["Piece"]
    """Its entries, in order."""


Piece: TypeAlias = Callable[[], "Level | list[File]"]
"""A function that looks up one folder, or some files."""


def walk(root: Level, above: Sequence[Hashable] = ()) -> Iterator[File]:
    """All files below ``root``.  It keeps its own stack of folders, since trees may be deeper than Python's.

    Args:
        root: the folder.
        above: identities of the folders that it lies in, none of which is entered.

    Raises:
        OSError, StorageError: an error of a piece, raised when its turn comes.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="vbp-walk")
    try:
        trail = [(root.identity, _looked_up(root.pieces, pool))]
        while trail:
            found = next(trail[-1][1], None)
            if found is None:
                trail.pop()
            elif not isinstance(found, Level):
                yield from found
            elif found.identity not in [*above, *(identity for identity, _ in trail)]:
                trail.append((found.identity, _looked_up(found.pieces, pool)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _looked_up(pieces: Sequence[Piece], pool: ThreadPoolExecutor) -> Iterator[Level | list[File]]:
    if len(pieces) == 1:
        yield pieces[0]()
        return
    waiting: deque[Future[Level | list[File]]] = deque()
    for piece in pieces:
        waiting.append(pool.submit(piece))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
