"""Branches: a tree cut into pieces that follow each other, so that several processes can list it.

Nobody knows how large a branch is.  So folders are cut until there are many branches.  A folder that seems to hold
files alone is not cut, so memory never holds the names of a large one.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

from vbp.errors import StorageError
from vbp.storage.stores.store import File

ENOUGH = 128
"""Branches from which on no folder is cut any more."""
LEVELS = 8
"""The most levels of folders that are cut."""
LOOSE = 10_000
"""The most files in a folder that is cut."""
THREADS = 8


class Branch(NamedTuple):
    """All files below a folder, or some of the files in it."""

    folder: str
    """Path relative to the root, with a ``/`` at its end; empty for the root itself."""
    files: Sequence[File] | None = None
    """Files of the folder that follow each other, with paths relative to the root; None: all below the folder."""


Cut = Callable[[str], list[Branch] | None]
"""Cuts a folder: returns its branches in byte order; None if it is better listed as a whole."""


def branches_in(folder: str, entries: Iterable[File]) -> list[Branch]:
    """The branches of a folder from its entries, which are in order; paths of folders end with ``/``."""
    found: list[Branch] = []
    for are_folders, group in groupby(entries, lambda entry: entry.path.endswith("/")):
        some = list(group)
        found += [Branch(entry.path) for entry in some] if are_folders else [Branch(folder, some)]
    return found


def cut_up(cut: Cut, after: bytes = b"") -> list[Branch]:
    """The branches of a tree that may have files after a path, in byte order; one or none if it cannot be cut.

    They may also have files up to that path.
    """
    branches, whole = [Branch("")], set[str]()
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(LEVELS):
            folders = [branch.folder for branch in branches if branch.files is None and branch.folder not in whole]
            if not folders or len(branches) >= ENOUGH:
                break
            inner = dict(zip(folders, pool.map(lambda folder: _tried(cut, folder), folders), strict=True))
            whole.update(folder for folder in folders if inner[folder] is None)
            branches = [branch for branch in _replaced(branches, inner) if _reaches(branch, after)]
    return branches


def _tried(cut: Cut, folder: str) -> list[Branch] | None:
    try:
        return cut(folder)
    except (StorageError, OSError):  # it is raised again when the branch is listed, in its turn
        return None


def _replaced(branches: Iterable[Branch], inner: dict[str, list[Branch] | None]) -> Iterator[Branch]:
    """The branches, with those that were cut replaced by what is in them."""
    for branch in branches:
        finer = inner.get(branch.folder) if branch.files is None else None
        yield from [branch] if finer is None else finer


def _reaches(branch: Branch, after: bytes) -> bool:
    """Whether the branch may have files after a path."""
    if branch.files is not None:
        return os.fsencode(branch.files[-1].path) > after
    folder = os.fsencode(branch.folder)
    return folder > after or after.startswith(folder)
