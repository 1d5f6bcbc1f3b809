"""The outline of an output: its folders, and the kinds of result files with the ends of their names.

::

    masks/<key>.png  overlays/<key>.jpg  inputs/<key>.png  maps/<key>.png        layout files
    shards/<shard>/<first>-<last>-<digest>.tar                                   layout webdataset
    index/  scores/  _run/  runs/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vbp.choices import MASK_FORMATS

OWN = "_run"
"""Files for the runs themselves: the record, the lease, the manifest, the parts."""
INDEX = "index"
"""The index: one row for every image."""
INDEX_FILES = f"{INDEX}/part"
"""The series of its files."""
SCORES = "scores"
"""What an evaluation found: one row for each image, method and metric."""
SCORES_FILES = f"{SCORES}/part"
"""The series of its files."""
RUNS = "runs"
"""Outputs of the runs of a sweep."""
TARS = "shards"
"""Results in tar files."""


class Kind(NamedTuple):
    """A kind of result file."""

    folder: str
    """Folder below OUTPUT, in layout files."""
    suffixes: tuple[str, ...]
    """All suffixes that its files can have, in any configuration."""
    is_indexed: bool
    """Whether the index has a column with the file's place."""


KINDS: Mapping[str, Kind] = {
    "mask": Kind("masks", tuple(dict.fromkeys(stored.suffix for stored in MASK_FORMATS.values())), is_indexed=True),
    "overlay": Kind("overlays", (".jpg",), is_indexed=True),
    "input": Kind("inputs", (".png",), is_indexed=False),
    "maps": Kind("maps", (".png",), is_indexed=False),
}
INDEXED = tuple(name for name, kind in KINDS.items() if kind.is_indexed)
FOLDERS = tuple(kind.folder for kind in KINDS.values())
RESULT_FOLDERS = (*FOLDERS, TARS)
"""All folders that hold results, of every layout."""
SUFFIXES = tuple(dict.fromkeys(suffix for kind in KINDS.values() for suffix in kind.suffixes))
"""All suffixes of result files."""


def suffixes_of(mask_format: str) -> dict[str, str]:
    """The suffix of each kind's files in a run that writes masks in this format."""
    return {name: kind.suffixes[0] for name, kind in KINDS.items()} | {"mask": MASK_FORMATS[mask_format].suffix}


def place_columns(*kinds: str) -> tuple[str, ...]:
    """Index columns with the places of results of these kinds: URI, and offset and length within a tar."""
    return tuple(f"{kind}_{what}" for kind in kinds for what in ("uri", "offset", "length"))
