"""Where the files of an image lie in an output, for each layout."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vbp.choices import MASK_FORMATS
from vbp.errors import StorageError, UsageError
from vbp.storage.files import Folder
from vbp.storage.outline import FOLDERS, INDEXED, KINDS, TARS, suffixes_of
from vbp.storage.results.places import key_of_result, own_path, place_of
from vbp.storage.results.tars import path_of, shard_of


class OwnFiles:
    """Layouts ``files`` and ``none``: each result is a file of its own, or there is none.

    Attributes:
        kinds: kinds of results that `read` can find.
        folders: all folders that may hold results, in any configuration.
    """

    def __init__(self, output: Folder, config: Mapping[str, Any]) -> None:
        self.kinds: tuple[str, ...] = tuple(config.get("outputs", ())) if config.get("layout") == "files" else ()
        self.folders = FOLDERS
        self._suffixes = suffixes_of(config.get("mask_format", "png8"))
        self._output = output

    def paths(self, key: str) -> list[str]:
        """The paths in OUTPUT of an image's files."""
        return [own_path(kind, key, self._suffixes[kind]) for kind in self.kinds]

    def expected(self, row: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
        """The paths of an image's files, and the least number of bytes of each."""
        for path in self.paths(row["key"]):
            yield path, 1

    def misplaced(self, row: Mapping[str, Any]) -> str | None:
        """Why the places in a row cannot be of its image; None if they fit its key."""
        for kind in INDEXED:
            uri = row[f"{kind}_uri"]
            if uri is None and _is_due(row, kind, self.kinds):
                return f"{kind}_uri is missing"
            if uri is not None and place_of(uri, kind, row["key"], -1) is None:
                return f"{kind}_uri is {uri}"
        return None

    def key_of(self, path: str) -> str | None:
        """The key of the image whose result has this path; None if it is no path of a result."""
        return key_of_result(path)

    def is_tar_of(self, path: str, shards: int) -> bool:
        """False: this layout has no tars."""
        return False

    def may_be_under_way(self, path: str, unfinished: Collection[int]) -> bool:
        """False: `expected` already names the files of unfinished images."""
        return False

    def read(self, row: Mapping[str, Any], kind: str) -> bytes:
        """One of an image's files.

        Raises:
            FileNotFoundError: the file does not exist.
            StorageError: the store does not answer.
        """
        return self._output.read(own_path(kind, row["key"], self._suffixes[kind]))


def _is_due(row: Mapping[str, Any], kind: str, kinds: Collection[str]) -> bool:
    """Whether a row must name a result of `kind`: the run writes it, and the image has a mask."""
    return kind in kinds and row["status"] == "ok" and row["mask_mean"] is not None


class Tars:
    """Layout ``webdataset``: each result is a range of a tar; attributes as for `OwnFiles`."""

    def __init__(self, output: Folder, config: Mapping[str, Any]) -> None:
        self.kinds = tuple(kind for kind in INDEXED if kind in config.get("outputs", ()))
        self.folders = (TARS,) if self.kinds else ()  # rows name tars only for masks and overlays
        self._output = output

    def paths(self, key: str) -> list[str]:
        """Empty: an image's results are deleted with their tar, once no row names it."""
        return []

    def expected(self, row: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
        """The tar of an image's results, and its least number of bytes; empty if the row names no tar."""
        for kind in INDEXED:
            if row.get(f"{kind}_uri") is not None:
                yield path_of(row[f"{kind}_uri"]), row[f"{kind}_offset"] + row[f"{kind}_length"]

    def misplaced(self, row: Mapping[str, Any]) -> str | None:
        """Why the places in a row cannot be of its image: no range of a tar of its shard; None if they are one."""
        for kind in INDEXED:
            uri, offset, length = (row[f"{kind}_{name}"] for name in ("uri", "offset", "length"))
            if uri is None and _is_due(row, kind, self.kinds):
                return f"{kind}_uri is missing"
            if uri is None:
                continue
            if place_of(uri, kind, "", row["shard"]) is None or offset is None or length is None:
                return f"{kind}_uri is {uri}, from {offset} on {length} bytes"
        return None

    def key_of(self, path: str) -> str | None:
        """None: a tar holds many images."""
        return None

    def is_tar_of(self, path: str, shards: int) -> bool:
        """Whether `path` is the name of a tar of one of the first `shards` shards."""
        shard = shard_of(path)
        return shard is not None and shard < shards

    def may_be_under_way(self, path: str, unfinished: Collection[int]) -> bool:
        """Whether the tar may belong to an unfinished commit, which the next run completes, or whose tar it removes."""
        return shard_of(path) in unfinished

    def read(self, row: Mapping[str, Any], kind: str) -> bytes:
        """One of an image's files, shorter if its tar ends early; errors as for `OwnFiles.read`."""
        if row[f"{kind}_uri"] is None:
            raise FileNotFoundError(f"the image {row['key']!r} has no {kind}")
        path, start, length = path_of(row[f"{kind}_uri"]), row[f"{kind}_offset"], row[f"{kind}_length"]
        try:
            return self._output.read(path, start, start + length)
        except StorageError:  # stores refuse a range that begins after the end of the file
            with self._output.open(path) as file:
                file.seek(start)
                return file.read(length)


_LAYOUTS: Mapping[str | None, type[OwnFiles] | type[Tars]] = {
    None: OwnFiles,
    "files": OwnFiles,
    "none": OwnFiles,
    "webdataset": Tars,
}


def files_of(output: Folder, config: Mapping[str, Any]) -> OwnFiles | Tars:
    """The files of an output, by its layout.

    Args:
        output: OUTPUT.
        config: the run's configuration on record; needs ``layout``, ``outputs``, ``mask_format``.

    Raises:
        UsageError: the layout or an output is unknown to this vbp.
    """
    name, mask_format = config.get("layout"), config.get("mask_format", "png8")
    strange = [kind for kind in config.get("outputs", ()) if kind not in KINDS]
    if mask_format not in MASK_FORMATS or strange:
        what = f"the result {strange[0]}" if strange else f"the mask format (={mask_format})"
        raise UsageError(f"{what} of {output.url} is unknown to this version of vbp.")
    if name not in _LAYOUTS:
        raise UsageError(f"the layout of {output.url} (={name}) is unknown to this version of vbp.")
    return _LAYOUTS[name](output, config)
