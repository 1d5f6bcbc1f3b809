"""Which output of the network each folder of the input stands for.

An image tree names classes by folder, a network numbers them.  The rules, first that fits:

1. every folder is an ImageNet WordNet id (``n02086240``) and the network has 1,000 classes;
2. every folder is one of the network's class names (case, spaces, ``_`` and ``-`` aside);
3. there are as many folders as classes: alphabetical order, as ``torchvision.datasets.ImageFolder`` numbers them.

Class names come from ``--classes FILE``, else from the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vbp.errors import UsageError


@dataclass(frozen=True)
class ClassMap:
    """Folders to class numbers, and class numbers to names."""

    index: Mapping[str, int]
    """Class number of each folder; empty when no rule fits."""
    names: Sequence[str] | None
    """Name of each class, for people; None when nobody told."""
    rule: str
    """The rule that was used, or why none fits: a sentence for people."""

    def name(self, number: int) -> str | None:
        """The name of class `number`, None where names are unknown."""
        return self.names[number] if self.names is not None else None


def map_classes(
    folders: Sequence[str], num_classes: int, class_names: Sequence[str] | None, wnids: Sequence[str]
) -> ClassMap:
    """Match the folders of an image tree with the outputs of a network.

    Args:
        folders: distinct first-level folders of the input.
        num_classes: outputs of the network.
        class_names: their names in order, or None.
        wnids: the 1,000 sorted WordNet ids of ImageNet.

    Raises:
        UsageError: `class_names` has another length than `num_classes`.
    """
    if class_names is not None and len(class_names) != num_classes:
        raise UsageError(
            f"The class file holds {len(class_names)} names, the network has {num_classes} classes; "
            "give one name a line, in the order of the network's outputs."
        )
    folders = sorted(folders)
    if num_classes == len(wnids) and folders and set(folders) <= set(wnids):
        number = {wnid: i for i, wnid in enumerate(wnids)}
        return ClassMap({f: number[f] for f in folders}, class_names, "folders are ImageNet WordNet ids")
    if class_names is not None:
        known = _numbers_by_name(class_names)
        if folders and all(_plain(f) in known for f in folders):
            return ClassMap({f: known[_plain(f)] for f in folders}, class_names, "folders are class names")
    if len(folders) == num_classes:
        return ClassMap(
            {f: i for i, f in enumerate(folders)},
            class_names if class_names is not None else folders,
            f"{num_classes} folders in alphabetical order, one a class",
        )
    return ClassMap({}, class_names, _why_none_fits(folders, num_classes, class_names))


def _plain(name: str) -> str:
    """A class name without the differences that people do not mean."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _numbers_by_name(class_names: Sequence[str]) -> dict[str, int]:
    """Class number by plain name, leaving out the names that stand for two classes (ImageNet has `crane` twice)."""
    plain = [_plain(name) for name in class_names]
    return {name: i for i, name in enumerate(plain) if plain.count(name) == 1}


def _why_none_fits(folders: Sequence[str], num_classes: int, class_names: Sequence[str] | None) -> str:
    if not folders:
        return "the images lie in no class folders"
    stranger = folders[0]
    if class_names is not None:
        known = _numbers_by_name(class_names)
        stranger = next(f for f in folders if _plain(f) not in known)
    return (
        f"{len(folders)} folders (such as {stranger!r}) are neither WordNet ids nor class names of the network, "
        f"and it has {num_classes} classes; name them with --classes FILE"
    )
