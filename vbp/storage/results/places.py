"""Where the results of a row lie: a relative path in the ledger, an absolute URL or path in the index.

So the ledger stays valid when OUTPUT is moved, and the index is made again from it.  Ledger rows of an older vbp hold
absolute places; only their part below OUTPUT is used.  A place that no run can have written counts as null.
"""

import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from vbp.storage.files import Folder
from vbp.storage.outline import INDEXED, KINDS, TARS

_TAR = re.compile(rf"(?:.*/)?({TARS}/(\d{{6}})/\d{{6,}}-\d{{6,}}-[0-9a-f]{{16}}\.tar)", re.DOTALL | re.ASCII)


def place_of(uri: str, kind: str, key: str, shard: int) -> str | None:
    """The path in OUTPUT of a result.

    Args:
        uri: the row's place: relative, or absolute below a former URL of OUTPUT.
        kind: one of ``INDEXED``.
        key: the image's key.
        shard: number of the image's shard.

    Returns:
        None if no run can have written a result of this image there.
    """
    for suffix in KINDS[kind].suffixes:
        own = own_path(kind, key, suffix)
        if uri.endswith(own) and uri.removesuffix(own)[-1:] in ("", "/"):
            return own
    tar = _TAR.fullmatch(uri)
    return tar[1] if tar and int(tar[2]) == shard else None


def own_path(kind: str, key: str, suffix: str) -> str:
    """The path in OUTPUT of a result in the layout ``files``."""
    return f"{KINDS[kind].folder}/{key}{suffix}"


def names_of(key: str) -> Iterator[str]:
    """Every path that a result of an image can have in the layout ``files``."""
    return (own_path(name, key, suffix) for name, kind in KINDS.items() for suffix in kind.suffixes)


def key_of_result(path: str) -> str | None:
    """The key of the image whose result has this path; None if it is no path of a result."""
    for kind in KINDS.values():
        for suffix in kind.suffixes:
            if path.startswith(f"{kind.folder}/") and path.endswith(suffix):
                return path.removeprefix(f"{kind.folder}/").removesuffix(suffix)
    return None


def places(rows: pa.Table, kind: str) -> tuple[list[str | None], list[bool]]:
    """``place_of`` for rows of the ledger, and for each row whether its place is impossible."""
    columns = (rows[name].to_pylist() for name in (f"{kind}_uri", "key", "shard"))
    triples = list(zip(*columns, strict=True))
    found = [None if uri is None else place_of(uri, kind, key, shard) for uri, key, shard in triples]
    wrong = [uri is not None and place is None for (uri, _, _), place in zip(triples, found, strict=True)]
    return found, wrong


def misplaced(rows: pa.Table) -> pa.BooleanArray:
    """For each row of the ledger, whether it names an impossible place."""
    wrong = [places(rows, kind)[1] for kind in INDEXED]
    return pa.array([any(each) for each in zip(*wrong, strict=True)], pa.bool_())


def made_absolute(output: Folder, rows: pa.Table) -> pa.Table:
    """Rows of the ledger with absolute places in the present OUTPUT; an impossible place becomes null."""
    root = pa.scalar(_root(output))
    for kind in INDEXED:
        name = f"{kind}_uri"
        relative = pa.array(places(rows, kind)[0], pa.string())
        absolute = pc.binary_join_element_wise(root, relative, "")
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), absolute)
    return rows


def elsewhere(output: Folder, rows: pa.Table) -> int:
    """How many rows of the index name a place outside the present OUTPUT."""
    root = _root(output)
    counts = [
        pc.sum(pc.invert(pc.starts_with(rows[f"{kind}_uri"], root)), min_count=0).as_py() or 0 for kind in INDEXED
    ]
    return max(counts)


def _root(output: Folder) -> str:
    """The beginning of the absolute place of every file of the output."""
    return output.uri("x").removesuffix("x")
