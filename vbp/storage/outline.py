"""The outline of an output: its folders, and the kinds of result files with the ends of their names.

::

    masks/<key>.png  overlays/<key>.jpg  inputs/<key>.png  maps/<key>.png        layout files
    shards/<shard>/<first>-<last>-<digest>.tar                                   layout webdataset
    index/  _run/  runs/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vbp.choices import MASK_FORMATS

OWN = "_run"
"""What a run needs for itself: its record, the lease, the manifest, the parts."""
INDEX = "index"
"""One row for every image."""
RUNS = "runs"
"""Of a sweep alone: the outputs of its runs."""
TARS = "shards"
"""Results in tar files."""


class Kind(NamedTuple):
    """A kind of result file."""

    folder: str
    """Below OUTPUT, where each result is a file of its own."""
    suffixes: tuple[str, ...]
    """That its files may have, whatever was asked for."""
    is_indexed: bool
    """Whether the index tells where the file lies."""


KINDS: Mapping[str, Kind] = {
    "mask": Kind("masks", tuple(dict.fromkeys(stored.suffix for stored in MASK_FORMATS.values())), is_indexed=True),
    "overlay": Kind("overlays", (".jpg",), is_indexed=True),
    "input": Kind("inputs", (".png",), is_indexed=False),
    "maps": Kind("maps", (".png",), is_indexed=False),
}
INDEXED = tuple(name for name, kind in KINDS.items() if kind.is_indexed)
FOLDERS = tuple(kind.folder for kind in KINDS.values())
RESULT_FOLDERS = (*FOLDERS, TARS)
"""All that hold results in one layout or another."""
SUFFIXES = tuple(dict.fromkeys(suffix for kind in KINDS.values() for suffix in kind.suffixes))
"""Of result files."""


def suffixes_of(mask_format: str) -> dict[str, str]:
    """The suffix of each kind's files in a run that writes masks in this format."""
    return {name: kind.suffixes[0] for name, kind in KINDS.items()} | {"mask": MASK_FORMATS[mask_format].suffix}


def place_columns(*kinds: str) -> tuple[str, ...]:
    """Columns of the index that tell where results of these kinds lie: an offset and a length where that is a tar."""
    return tuple(f"{kind}_{what}" for kind in kinds for what in ("uri", "offset", "length"))
