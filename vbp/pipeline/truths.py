"""Truths: finds and reads what ``--truth`` has about each image.

``--truth`` is a COCO file, or a folder with a file for each image: an annotation (.xml) or a mask (.png).  How such a
file is named after its image is found out once, on the first images of the collection, and then holds for all.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from vbp.errors import StorageError, TruthError, UsageError, why_unread
from vbp.evaluation.truth import Truth, coco_truths, mask_truth, voc_truth
from vbp.pipeline.source import batch_of
from vbp.pipeline.steps import frame_of, good_rows
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder, read_uri
from vbp.storage.manifest.rows import table_of, with_positions

if TYPE_CHECKING:
    from vbp.pipeline.recipe import Recipe

COCO = "COCO"
"""The rule of a truth that is one file."""
RULES = (
    "{stem}.xml", "{stem}.png", "{key}.png", "{key}.xml", "{stem}_mask.png", "{stem}.mask.png", "{name}.xml",
    "{name}.png",
)  # fmt: skip
"""Names of a truth below ``--truth``, tried in this order: `key` is the image's key, `stem` the key without its
suffix, `name` the stem without its folders."""

FIRST = 16
"""Images on which the rule is tried."""


class Truths:
    """The truths of a collection.

    Args:
        place: ``--truth``: a COCO file (.json), or a folder.
        rule: how a truth is named after its image, from `found_rule`.
        storage_options: non-secret options by URL prefix.

    Raises:
        UsageError: the COCO file cannot be read.
    """

    def __init__(self, place: str, rule: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._rule = rule
        self._coco: dict[str, Truth] = {}
        if rule == COCO:
            self._coco = _by_key(coco_truths(_content(place, storage_options), place))
        else:
            self._folder = Folder(place, storage_options)

    def of(self, key: str) -> Truth | None:
        """The truth of an image; None if there is none.

        Raises:
            TruthError: it cannot be read as one.
            StorageError: the store refuses it.
        """
        if self._rule == COCO:
            return self._coco.get(key) or self._coco.get(posixpath.basename(key))
        path = _path(self._rule, key)
        try:
            data = self._folder.read(path)
        except FileNotFoundError:
            return None
        try:
            return voc_truth(data) if path.endswith(".xml") else mask_truth(data)
        except TruthError as error:
            raise TruthError(f"{self._folder.uri(path)}: {error}") from error


def found_rule(
    place: str, keys: Sequence[str], storage_options: Mapping[str, Any] | None = None, images: str = ""
) -> str:
    """The rule by which most of these images have a truth.

    Args:
        place: ``--truth``.
        keys: keys of some images.
        storage_options: non-secret options by URL prefix.
        images: INPUT; where it is the same folder, an image is not its own truth.

    Raises:
        UsageError: there is nothing at that place, or no image has a truth by any rule.
    """
    if place.lower().endswith(".json"):
        known = _by_key(coco_truths(_content(place, storage_options), place))
        if not any(key in known or posixpath.basename(key) in known for key in keys):
            raise UsageError(
                f"--truth (={place}) has no annotation of {_some(keys)}; its images are called {_some(sorted(known))}. "
                "Names must be the images' keys, or the last part of them."
            )
        return COCO
    folder = Folder(place, storage_options)
    is_input = bool(images) and folder.url == Folder(images, storage_options).url
    found = Counter[str]()
    for rule in RULES:
        paths = [path for key in keys if (path := _path(rule, key)) != key or not is_input]
        found[rule] = sum(_is_there(folder, path) for path in paths)
    rule, count = max(found.items(), key=lambda item: item[1])
    if not count:
        tried = ", ".join(_path(rule, keys[0]) for rule in RULES)
        raise UsageError(
            f"--truth (={place}) has nothing about {_some(keys)}; looked for {tried}. Give a COCO file (.json), or a "
            "folder of annotations (.xml) or masks (.png) that are named like the images."
        )
    return rule


def tried(recipe: Recipe, rows: Iterable[ManifestRow]) -> str:
    """The rule for the collection, found and tried on its first images.

    Args:
        recipe: how the results are made; its configuration has an evaluation with a truth.
        rows: the images.

    Raises:
        UsageError: as for `found_rule`; or no truth of the first images fits its image.
    """
    evaluation, options = recipe.config.evaluation, recipe.config.storage_options
    assert evaluation is not None
    assert evaluation.truth is not None
    first = list(islice(rows, FIRST))
    rule = found_rule(evaluation.truth, [row.key for row in first], options, recipe.config.input)
    batch = recipe.decode()(recipe.fetch()(batch_of(with_positions(table_of(first)))))
    truths, wrong, right = Truths(evaluation.truth, rule, options), dict[str, str](), 0
    for row in good_rows(batch):
        key = batch["key"][row]
        try:
            truth = truths.of(key)
            if truth is not None:
                truth.in_frame((int(batch["width"][row]), int(batch["height"][row])), frame_of(batch, row), (1, 1))
                right += 1
        except TruthError as error:
            wrong[key] = str(error)
    if wrong and not right:
        key, why = next(iter(wrong.items()))
        raise UsageError(f"--truth (={evaluation.truth}) does not fit the images: {key}: {why}")
    return rule


def _is_there(folder: Folder, path: str) -> bool:
    try:
        return folder.exists(path)
    except (OSError, StorageError) as error:
        raise UsageError(f"--truth (={folder.url}) cannot be read: {why_unread(error)}.") from error


def _path(rule: str, key: str) -> str:
    stem = posixpath.splitext(key)[0]
    return rule.format(key=key, stem=stem, name=posixpath.basename(stem))


def _by_key(truths: Mapping[str, Truth]) -> dict[str, Truth]:
    """The truths by file name, and by the last part of it where no two files have the same."""
    names = Counter(posixpath.basename(name) for name in truths)
    last = {base: truth for name, truth in truths.items() if names[base := posixpath.basename(name)] == 1}
    return {**last, **truths}


def _content(place: str, storage_options: Mapping[str, Any] | None) -> bytes:
    try:
        return read_uri(place, storage_options)
    except (OSError, StorageError) as error:
        raise UsageError(f"--truth (={place}) cannot be read: {why_unread(error)}.") from error


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
