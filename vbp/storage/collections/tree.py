"""What there is to do, as a stream of rows: the images of a tree; those of manifest files are in ``manifestfile``."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vbp.storage.files import Folder
from vbp.storage.leftout import NO_SUFFIX, LeftOut, is_system, suffix_of
from vbp.storage.naming import key_of, label_of

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng", ".gif", ".webp", ".avif", ".avifs"),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".heics", ".heifs")
"""Read where the package for them is installed."""


class ManifestRow(NamedTuple):
    """One image to explain."""

    key: str
    """Names its results, see ``vbp.storage.naming``."""
    uri: str
    """Where it lies, for people and other programs."""
    path: bytes | None
    """Relative to INPUT, the bytes of the file system; None for a row of a manifest: read its ``uri``."""
    label: str | None
    size: int | None = None
    version: str | None = None


def list_tree(
    folder: Folder,
    *,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    left_out: LeftOut | None = None,
) -> Iterator[ManifestRow]:
    """The image files of a folder, known by their suffix, in byte order of the path; system files are none.

    Args:
        folder: INPUT.
        suffixes: in lower case, of images; ``none`` for names that have none.
        left_out: counts the files that are no images.

    Raises:
        FileNotFoundError, StorageError: as ``Folder.walk``.
    """
    for file in folder.walk():
        if is_system(file.path) or not _ends_in(file.path, suffixes):
            if left_out is not None:
                left_out.add(file.path)
            continue
        key = key_of(file.path)
        path = os.fsencode(file.path)
        yield ManifestRow(key, folder.uri(file.path), path, label_of(key), file.size, file.version)


def one_image(source: Folder, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> ManifestRow | None:
    """INPUT as a collection of one, where its name is an image's and there is such a file; None where it is a folder.

    Its path is empty: it is INPUT itself. Web servers have no folders of such names and are not asked.
    """
    place = source.url.partition("?")[0] if source.is_web else source.url
    name = place.rstrip("/").rpartition("/")[2]
    if not _ends_in(name, suffixes):
        return None
    size = None if source.is_web else source.size()
    if size is None and not source.is_web:
        return None
    return ManifestRow(key_of(name), source.uri(), b"", None, size, source.version())


def _ends_in(path: str, suffixes: Sequence[str]) -> bool:
    ends = tuple(suffix for suffix in suffixes if suffix != NO_SUFFIX)
    return path.lower().endswith(ends) or (len(ends) < len(suffixes) and not suffix_of(path))
