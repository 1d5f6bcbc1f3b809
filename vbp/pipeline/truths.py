"""Truths: finds and reads what ``--truth`` has about each image.

``--truth`` is a COCO file, or a folder with a file for each image: an annotation (.xml) or a mask (.png).  How such a
file is named after its image is found out once, on the first images of the collection, and then holds for all.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from vbp.errors import StorageError, TruthError, UsageError, why_unread
from vbp.evaluation.truth import Truth, coco_truths, mask_truth, voc_truth
from vbp.pipeline.source import batch_of
from vbp.pipeline.steps import frame_of, good_rows
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder, read_uri
from vbp.storage.manifest.rows import table_of, with_positions
from vbp.words import counted

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
LOOKED_AT = 1000
"""Images among which one must show an object; others may show none."""


class Truths:
    """The truths of a collection.

    Args:
        place: ``--truth``: a COCO file (.json), or a folder.
        rule: how a truth is named after its image, from `found_rule`.
        storage_options: non-secret options by URL prefix.
        images: INPUT; where it is the same folder, an image is not its own truth.

    Raises:
        UsageError: the COCO file cannot be read.
    """

    def __init__(
        self, place: str, rule: str, storage_options: Mapping[str, Any] | None = None, images: str = ""
    ) -> None:
        self.rule, self._coco = rule, _Coco({})
        if rule == COCO:
            self._coco = _Coco(coco_truths(_content(place, storage_options), place))
        else:
            self._folder = Folder(place, storage_options)
            self._is_input = _is_input(self._folder, images, storage_options)

    def name_of(self, key: str) -> str | None:
        """What the truth of an image is called, in the folder or the COCO file; None if it can have none."""
        if self.rule == COCO:
            return self._coco.name_of(key)
        path = _path(self.rule, key)
        return None if path == key and self._is_input else path

    def is_there(self, name: str) -> bool:
        """Whether there is a truth of that name."""
        return self.rule == COCO or _is_there(self._folder, name)

    def of(self, key: str) -> Truth | None:
        """The truth of an image; None if there is none.

        Raises:
            TruthError: it cannot be read as one.
            StorageError: the store refuses it.
        """
        path = self.name_of(key)
        if path is None or self.rule == COCO:
            return None if path is None else self._coco.truths[path]
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
        known = _Coco(coco_truths(_content(place, storage_options), place))
        if not any(map(known.name_of, keys)):
            raise UsageError(
                f"--truth (={place}) has no annotation of {_some(keys)}; its images are called "
                f"{_some(sorted(known.truths))}. Names must end as the images' keys do."
            )
        return COCO
    folder = Folder(place, storage_options)
    is_input = _is_input(folder, images, storage_options)
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
        UsageError: as for `found_rule`; or no truth of the first images fits its image, or none shows an object.
    """
    evaluation, options = recipe.config.evaluation, recipe.config.storage_options
    assert evaluation is not None
    assert evaluation.truth is not None
    rows = iter(rows)
    first = list(islice(rows, FIRST))
    rule = found_rule(evaluation.truth, [row.key for row in first], options, recipe.config.input)
    batch = recipe.decode()(recipe.fetch()(batch_of(with_positions(table_of(first)))))
    truths, wrong, right = Truths(evaluation.truth, rule, options, recipe.config.input), dict[str, str](), 0
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
    keys = (row.key for row in chain(first, rows))
    looked = until_an_object(truths, keys, evaluation.truth)
    refuse_shared(truths, chain(looked, keys))
    return rule


def until_an_object(truths: Truths, keys: Iterator[str], place: str) -> list[str]:
    """The keys up to the first image whose truth shows an object; images without one may come before.

    Args:
        truths: the truths.
        keys: of the images.
        place: ``--truth``.

    Raises:
        UsageError: there is none among the first `LOOKED_AT`.
    """
    looked = []
    for key in islice(keys, LOOKED_AT):
        looked.append(key)
        with suppress(TruthError):
            truth = truths.of(key)
            if truth is not None and truth.shows_object:
                return looked
    raise UsageError(
        f"--truth (={place}) shows no object in any of the first {counted(len(looked), 'image')}: its masks are "
        "black, or its annotations have no box. Give the truth in which the objects are."
    )


def refuse_shared(truths: Truths, keys: Iterable[str]) -> None:
    """Refuse a truth that would be that of two images, because only the last parts of names are compared.

    Raises:
        UsageError: names the truth and the images.
    """
    if truths.rule != COCO and "{name}" not in truths.rule:
        return
    owners: dict[str, str] = {}
    for key in keys:
        name = truths.name_of(key)
        if name is not None and (other := owners.setdefault(name, key)) != key and truths.is_there(name):
            raise UsageError(
                f"--truth: {other} and {key} would have the same truth, {name}; give its name the folders that the "
                "images have."
            )


class _Coco:
    """Truths of a COCO file: a name is that of an image if one of the two ends as the other, by whole folders."""

    def __init__(self, truths: Mapping[str, Truth]) -> None:
        self.truths = truths
        self._by_last: dict[str, list[str]] = defaultdict(list)
        for name in truths:
            self._by_last[posixpath.basename(name)].append(name)

    def name_of(self, key: str) -> str | None:
        """The name that the file has for an image; None if there is none, or more than one."""
        if key in self.truths:
            return key
        found = [name for name in self._by_last.get(posixpath.basename(key), ()) if _ends_alike(name, key)]
        return found[0] if len(found) == 1 else None


def _ends_alike(name: str, key: str) -> bool:
    parts, others = PurePosixPath(name).parts, PurePosixPath(key).parts
    count = min(len(parts), len(others))
    return parts[-count:] == others[-count:]


def _is_input(folder: Folder, images: str, storage_options: Mapping[str, Any] | None) -> bool:
    return bool(images) and folder.url == Folder(images, storage_options).url


def _is_there(folder: Folder, path: str) -> bool:
    try:
        return folder.exists(path)
    except (OSError, StorageError) as error:
        raise UsageError(f"--truth (={folder.url}) cannot be read: {why_unread(error)}.") from error


def _path(rule: str, key: str) -> str:
    stem = posixpath.splitext(key)[0]
    return rule.format(key=key, stem=stem, name=posixpath.basename(stem))


def _content(place: str, storage_options: Mapping[str, Any] | None) -> bytes:
    try:
        return read_uri(place, storage_options)
    except (OSError, StorageError) as error:
        raise UsageError(f"--truth (={place}) cannot be read: {why_unread(error)}.") from error


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
