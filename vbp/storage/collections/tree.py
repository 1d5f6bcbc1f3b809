"""The images of a tree as a stream of rows; images of manifest files are in ``manifestfile``."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from vbp.storage.files import File, Folder
from vbp.storage.leftout import NO_SUFFIX, LeftOut, is_system, suffix_of
from vbp.storage.naming import key_of, label_of

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng", ".gif", ".webp", ".avif", ".avifs"),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".heics", ".heifs")
"""Suffixes that are read if the package for them is installed."""


class ManifestRow(NamedTuple):
    """One image to explain."""

    key: str
    """The image's key, which names its results; see ``vbp.storage.naming``."""
    uri: str
    """The image's absolute place, for people and other programs."""
    path: bytes | None
    """Path relative to INPUT, as the file system's bytes; None for a row of a manifest, which is read by ``uri``."""
    label: str | None
    size: int | None = None
    version: str | None = None
    gone: bool = False
    """Whether the last ``--refresh`` found INPUT without it."""


def list_tree(
    folder: Folder,
    *,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    left_out: LeftOut | None = None,
    files: Iterable[File] | None = None,
) -> Iterator[ManifestRow]:
    """The image files of a folder, recognised by suffix, in byte order of the path, without system files.

    Args:
        folder: INPUT.
        suffixes: suffixes of images in lower case; ``none`` stands for names without a suffix.
        left_out: counts the files that are no images.
        files: some of its files, in order; None: all.

    Raises:
        FileNotFoundError, StorageError: as for ``Folder.walk``.
    """
    is_image = _recognised_by(suffixes)
    for file in folder.walk() if files is None else files:
        if is_system(file.path) or not is_image(file.path):
            if left_out is not None:
                left_out.add(file.path)
            continue
        key = key_of(file.path)
        path = os.fsencode(file.path)
        yield ManifestRow(key, folder.uri(file.path), path, label_of(key), file.size, file.version)


def one_image(source: Folder, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> ManifestRow | None:
    """The row of INPUT itself if it is an image file; None if it is a folder or has no suffix of an image.

    The row's path is empty. On a web server the suffix decides, without a request: no folder there has such a name.
    """
    place = source.url.partition("?")[0] if source.is_web else source.url
    name = place.rstrip("/").rpartition("/")[2]
    if not _recognised_by(suffixes)(name):
        return None
    size = None if source.is_web else source.size()
    if size is None and not source.is_web:
        return None
    return ManifestRow(key_of(name), source.uri(), b"", None, size, source.version())


def _recognised_by(suffixes: Sequence[str]) -> Callable[[str], bool]:
    """Says of a path whether its suffix is one of these."""
    ends = tuple(suffix for suffix in suffixes if suffix != NO_SUFFIX)
    takes_none = NO_SUFFIX in suffixes
    return lambda path: path.lower().endswith(ends) or (takes_none and not suffix_of(path))
