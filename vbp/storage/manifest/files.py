"""Files of manifests: their names, which nobody uses twice, and how they are written and removed."""

import re
import secrets
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

from vbp.columns import MANIFEST_SCHEMA
from vbp.storage.files import Folder
from vbp.storage.parquet import RollingParquet

MANIFEST_PARTS = "_run/manifest"

_FILE = re.compile(r"(?:part|[0-9a-f]{16})-\d{5,}\.parquet", re.ASCII)
"""Names of the files; those of an older vbp begin with ``part`` and are numbered through all listings."""
_THREADS = 16


def is_name(value: object) -> bool:
    """Whether this is the name of a file of a manifest."""
    return isinstance(value, str) and _FILE.fullmatch(value) is not None


def name_of(path: str) -> str:
    """The name of the manifest's file at a path in OUTPUT."""
    return path.removeprefix(f"{MANIFEST_PARTS}/")


def new_files(output: Folder) -> RollingParquet:
    """A writer of files of the manifest with names that nobody has used."""
    return RollingParquet(output, f"{MANIFEST_PARTS}/{secrets.token_hex(8)}", MANIFEST_SCHEMA)


def files_in(output: Folder) -> Iterator[str]:
    """The paths of the files of all manifests, also of listings that were not completed."""
    return (path for path in output.list(MANIFEST_PARTS) if is_name(name_of(path)))


def remove_others(output: Folder, names: Collection[str]) -> None:
    """Remove all files but these: files that were replaced, and what listings leave that were not completed."""
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(output.delete, [path for path in files_in(output) if name_of(path) not in names]))
