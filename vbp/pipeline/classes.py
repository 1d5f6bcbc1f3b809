"""Which output of the network each folder of the input stands for.

An image tree names classes by folder; a network numbers them. One of these rules must match in full:

1. every folder is the name or the WordNet id of one class, by ``--classes FILE``, else by the checkpoint (case, spaces,
   ``_`` and ``-`` aside, and of ``tench, Tinca tinca`` one of the names is enough);
2. every folder is an ImageNet WordNet id (``n02086240``) and the network has ImageNet's 1,000 classes;
3. ``--classes by-order``: as many folders as classes, in the order of their names, as
   ``torchvision.datasets.ImageFolder`` numbers them.

A class file that does not match is refused. If no rule matches, it is unknown which predictions are correct.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vbp.errors import UsageError
from vbp.networks.classfile import ClassNames
from vbp.pipeline.config import BY_ORDER

_SHOWN = 3
"""The most names that a message lists."""
_ALIKE = 0.9
"""Share of a class file's names that must equal ImageNet's, in order, before folders are matched by WordNet id."""


@dataclass(frozen=True)
class ClassMap:
    """The class number of each folder, and the name of each class."""

    index: Mapping[str, int]
    """Class number of each folder; empty when no rule fits."""
    names: Sequence[str] | None
    """Name of each class, for people; None if unknown."""
    rule: str
    """A sentence for people: the rule that matched, or why none does."""
    advice: str = ""
    """What to do where no rule matches; empty where nothing helps, or nothing is needed."""

    @property
    def with_advice(self) -> str:
        """The rule, and what to do."""
        return f"{self.rule}; {self.advice}" if self.advice else self.rule

    def name(self, number: int) -> str | None:
        """The name of class `number`, None where names are unknown."""
        return self.names[number] if self.names is not None else None


def map_classes(
    folders: Sequence[str],
    num_classes: int,
    own: Sequence[str] | None,
    wnids: Sequence[str],
    declared: ClassNames | str | None = None,
) -> ClassMap:
    """Match the folders of an image tree with the outputs of a network.

    Args:
        folders: the different first-level folders of the input.
        num_classes: outputs of the network.
        own: the checkpoint's class names in order, or None.
        wnids: the 1,000 sorted WordNet ids of ImageNet.
        declared: the content of a class file, or ``BY_ORDER``; None without ``--classes``.

    Raises:
        UsageError: `declared` does not fit the network or the folders; names both sides.
    """
    folders = sorted(folders)
    if declared == BY_ORDER:
        return _by_order(folders, num_classes, own)
    if isinstance(declared, ClassNames):
        return _by_file(folders, num_classes, own, wnids, declared)
    if own is not None and not (strangers := _strangers(folders, named := ClassNames(tuple(own)))) and folders:
        return ClassMap(_numbers(folders, named), own, "folders are class names")
    if _are_wnids(folders, num_classes, wnids):
        return _by_wnid(folders, own, wnids)
    if not folders:
        return ClassMap({}, own, "the images lie in no class folders")
    if own is None:
        why = f"nobody says which of the network's {num_classes} outputs each of {_listed(folders)} stands for"
    else:
        why = _mismatch(strangers, ClassNames(tuple(own)), "of the checkpoint")
    order = f", or {BY_ORDER} if they are numbered by the alphabet" if len(folders) == num_classes else ""
    return ClassMap({}, own, why, f"tell them with --classes FILE{order}")


def _by_file(
    folders: Sequence[str], num_classes: int, own: Sequence[str] | None, wnids: Sequence[str], declared: ClassNames
) -> ClassMap:
    if len(declared) != num_classes:
        raise UsageError(
            f"The class file holds {len(declared)} names, the network has {num_classes} classes; "
            "give one name a line, in the order of the network's outputs."
        )
    if not folders:
        return ClassMap({}, declared.names, "the images lie in no class folders")
    strangers = _strangers(folders, declared)
    if not strangers:
        return ClassMap(_numbers(folders, declared), declared.names, "folders are class names")
    if _are_wnids(folders, num_classes, wnids) and own is not None and _are_alike(declared.names, own):
        return _by_wnid(folders, declared.names, wnids)
    raise UsageError(
        f"Folders and class names do not match: {_mismatch(strangers, declared, 'in the file (--classes)')}. Correct "
        "one of them, or leave --classes out: no prediction is called correct then."
    )


def _by_order(folders: Sequence[str], num_classes: int, own: Sequence[str] | None) -> ClassMap:
    if len(folders) != num_classes:
        raise UsageError(
            f"--classes {BY_ORDER} needs a folder for each class: INPUT has {len(folders)} ({_listed(folders)}), "
            f"the network {num_classes} classes; name these with --classes FILE."
        )
    index = {folder: number for number, folder in enumerate(folders)}
    if own is not None and not _strangers(folders, named := ClassNames(tuple(own))):
        numbers = _numbers(folders, named)
        if other := [folder for folder in folders if numbers[folder] != index[folder]]:
            raise UsageError(
                f"--classes {BY_ORDER} makes folder {other[0]!r} class {index[other[0]]}, but the checkpoint itself "
                f"calls class {numbers[other[0]]} so; leave --classes out, and its names count."
            )
    return ClassMap(index, own or folders, f"{num_classes} folders in alphabetical order, one a class ({BY_ORDER})")


def _by_wnid(folders: Sequence[str], names: Sequence[str] | None, wnids: Sequence[str]) -> ClassMap:
    number = {wnid: i for i, wnid in enumerate(wnids)}
    return ClassMap({f: number[f] for f in folders}, names, "folders are ImageNet WordNet ids")


def _are_wnids(folders: Sequence[str], num_classes: int, wnids: Sequence[str]) -> bool:
    return num_classes == len(wnids) and bool(folders) and set(folders) <= set(wnids)


def _are_alike(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists of names mean the same classes in the same order."""
    same = sum(bool(_aliases(one) & _aliases(other)) for one, other in zip(names, others, strict=True))
    return same >= _ALIKE * len(names)


def _plain(name: str) -> str:
    """A class name in lower case, with single spaces in place of ``_``, ``-`` and white space."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _aliases(name: str) -> set[str]:
    """All names of a class: the whole name, and each part between commas."""
    return {plain for part in (name, *name.split(",")) if (plain := _plain(part))}


def _numbers_by_name(declared: ClassNames) -> dict[str, int | None]:
    """Class number by plain name; None for names that stand for two classes (ImageNet has `crane` twice).

    A class with that whole name is preferred to one with that part of a name.
    """
    whole: dict[str, int | None] = {}
    parts: dict[str, int | None] = {}
    for number, name in enumerate(declared.names):
        own = {_plain(name)} | ({_plain(declared.ids[number])} if declared.ids else set())
        for known, aliases in ((whole, own), (parts, _aliases(name) - own)):
            for alias in aliases:
                known[alias] = None if alias in known else number
    return parts | whole


def _numbers(folders: Sequence[str], declared: ClassNames) -> dict[str, int]:
    known = _numbers_by_name(declared)
    return {folder: number for folder in folders if (number := known[_plain(folder)]) is not None}


def _strangers(folders: Sequence[str], declared: ClassNames) -> list[str]:
    """Folders whose name belongs to no class, or to two."""
    known = _numbers_by_name(declared)
    return [folder for folder in folders if known.get(_plain(folder)) is None]


def _mismatch(strangers: Sequence[str], declared: ClassNames, whose: str) -> str:
    """A sentence on folders that are no classes, with the closest class names."""
    first, known = strangers[0], _numbers_by_name(declared)
    others = len(strangers) - 1
    more = f" (nor {f'are {others} others, such as' if others > 1 else 'is'} {strangers[1]!r})" if others else ""
    if namesakes := [number for number, name in enumerate(declared.names) if _plain(first) in _aliases(name)]:
        return f"folder {first!r} is the name of the classes {namesakes[0]} and {namesakes[-1]}"
    close = difflib.get_close_matches(_plain(first), known, _SHOWN)
    names = [declared.names[number] for each in close if (number := known[each]) is not None]
    shown = (
        f"the closest are {_listed(list(dict.fromkeys(names)))}" if names else f"there are {_listed(declared.names)}"
    )
    return f"folder {first!r} is none of the {len(declared)} class names {whose}{more}; {shown}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
