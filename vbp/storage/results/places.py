"""Where the results of a row lie: in the ledger relative to OUTPUT, in the index by absolute URL or path.

So a ledger stays true wherever OUTPUT is moved, and the index is made anew from it. Rows of an older vbp hold absolute
places; of these only what lies below OUTPUT counts. A place that nobody of us can have written is none.
"""

import re
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from vbp.storage.files import Folder
from vbp.storage.naming import OUTPUT_SUFFIXES
from vbp.storage.results.tars import SHARDS

FOLDERS: Mapping[str, str] = {"mask": "masks", "overlay": "overlays", "input": "inputs", "maps": "maps"}
"""Kind of result file -> its folder below OUTPUT."""
INDEXED = ("mask", "overlay")
"""Kinds whose place a row tells."""

_TAR = re.compile(rf"(?:.*/)?({SHARDS}/(\d{{6}})/\d{{6,}}-\d{{6,}}-[0-9a-f]{{16}}\.tar)", re.DOTALL | re.ASCII)


def place_of(uri: str, kind: str, key: str, shard: int) -> str | None:
    """The path in OUTPUT of a result.

    Args:
        uri: as the row has it: relative, or absolute, whatever OUTPUT was called then.
        kind: of ``INDEXED``.
        key: of the image.
        shard: that holds the image.

    Returns:
        None where no run can have put a result of this image there.
    """
    own = f"{FOLDERS[kind]}/{key}"
    for suffix in OUTPUT_SUFFIXES:
        if uri.endswith(own + suffix) and uri.removesuffix(own + suffix)[-1:] in ("", "/"):
            return own + suffix
    tar = _TAR.fullmatch(uri)
    return tar[1] if tar and int(tar[2]) == shard else None


RESULT_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "mask": (".png", ".npy"),
    "overlay": (".jpg",),
    "input": (".png",),
    "maps": (".png",),
}
"""Kind of result file -> suffixes that its files may have, whatever was asked for."""


def names_of(key: str) -> Iterator[str]:
    """Every path that a result of an image may have in a mirrored tree."""
    return (f"{FOLDERS[kind]}/{key}{suffix}" for kind, suffixes in RESULT_SUFFIXES.items() for suffix in suffixes)


def key_of_result(path: str) -> str | None:
    """The image whose result would have this path; None where none can."""
    for kind, suffixes in RESULT_SUFFIXES.items():
        for suffix in suffixes:
            if path.startswith(f"{FOLDERS[kind]}/") and path.endswith(suffix):
                return path.removeprefix(f"{FOLDERS[kind]}/").removesuffix(suffix)
    return None


def places(rows: pa.Table, kind: str) -> tuple[list[str | None], list[bool]]:
    """``place_of`` for rows of the ledger, and which rows have one that cannot be."""
    columns = (rows[name].to_pylist() for name in (f"{kind}_uri", "key", "shard"))
    triples = list(zip(*columns, strict=True))
    found = [None if uri is None else place_of(uri, kind, key, shard) for uri, key, shard in triples]
    wrong = [uri is not None and place is None for (uri, _, _), place in zip(triples, found, strict=True)]
    return found, wrong


def misplaced(rows: pa.Table) -> pa.BooleanArray:
    """Which rows of the ledger name a place that cannot be."""
    wrong = [places(rows, kind)[1] for kind in INDEXED]
    return pa.array([any(each) for each in zip(*wrong, strict=True)], pa.bool_())


def made_absolute(output: Folder, rows: pa.Table) -> pa.Table:
    """Rows of the ledger with places that say where the output is now; null where none can be."""
    root = pa.scalar(_root(output))
    for kind in INDEXED:
        name = f"{kind}_uri"
        relative = pa.array(places(rows, kind)[0], pa.string())
        absolute = pc.binary_join_element_wise(root, relative, "")
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), absolute)
    return rows


def elsewhere(output: Folder, rows: pa.Table) -> int:
    """How many rows of the index point to where the output is not."""
    root = _root(output)
    counts = [
        pc.sum(pc.invert(pc.starts_with(rows[f"{kind}_uri"], root)), min_count=0).as_py() or 0 for kind in INDEXED
    ]
    return max(counts)


def _root(output: Folder) -> str:
    """What leads the absolute place of every file of the output."""
    return output.uri("x").removesuffix("x")
