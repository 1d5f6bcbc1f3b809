"""What a listing passes over: every file that is no image is counted, by the end of its name.

Files that systems and programs put beside people's own (a Mac's ``._a.jpg``, ``Thumbs.db``, ``.ipynb_checkpoints``,
whatever else is hidden) are no images, whatever their suffix, and their folders no classes.
"""

import re
from collections.abc import Iterable, Mapping

SYSTEM_NAMES = frozenset(
    {
        "$recycle.bin",
        "#recycle",
        "#snapshot",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "icon\r",
        "lost+found",
        "network trash folder",
        "picasa.ini",
        "recycler",
        "system volume information",
        "temporary items",
        "thumbs.db",
    }
)
"""Of files and folders, in lower case; those that begin with a dot are hidden and need no entry."""
SYSTEM, NO_SUFFIX, OTHERS, REPEATED = "system", "none", "others", "repeated"
"""Kinds that are counted beside suffixes: system files, names without a suffix, suffixes beyond the first ``KINDS``,
and rows of a manifest file that name an image once more."""
KINDS = 40
"""Suffixes that are told apart, at most: a name may end in anything."""

_SUFFIX = re.compile(r".\.([A-Za-z0-9_~+-]{1,12})\Z", re.DOTALL)
_WORDS = {
    SYSTEM: ("is a system file", "are system files"),
    NO_SUFFIX: ("has no suffix", "have no suffix"),
    OTHERS: ("has another suffix", "have other suffixes"),
    REPEATED: ("repeats an image", "repeat an image"),
}


def is_system(path: str) -> bool:
    """Whether a file, by its path in a folder, is hidden or a system's own, or lies in such a folder."""
    return any(_is_system_name(name) for name in path.split("/"))


def suffix_of(path: str) -> str:
    """``.jpg`` of ``cat/a.JPG``; empty where the name has none that is short and plain."""
    match = _SUFFIX.search(path.rpartition("/")[2])
    return f".{match[1].lower()}" if match else ""


class LeftOut:
    """Counts, while a listing is made.

    Attributes:
        counts: files by suffix or by one of the kinds above; at most ``KINDS`` suffixes.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, path: str) -> None:
        """One more file that is no image."""
        kind = SYSTEM if is_system(path) else suffix_of(path) or NO_SUFFIX
        if kind not in self.counts and kind not in _WORDS and len(self.counts) >= KINDS:
            kind = OTHERS
        self.count(kind)

    def count(self, kind: str) -> None:
        """One more of a kind that is known."""
        self.counts[kind] = self.counts.get(kind, 0) + 1


def in_words(counts: Mapping[str, int], most: int = 12) -> str:
    """``6 end in .heic, 1 is a system file``: the largest first; empty where nothing was left out."""
    order = sorted(counts.items(), key=lambda item: (item[0] == OTHERS, -item[1], item[0]))
    told = [_told(kind, count) for kind, count in order[:most]]
    rest = sum(count for _, count in order[most:])
    return ", ".join([*told, _told(OTHERS, rest)] if rest else told)


def suffixes_in(text: str | Iterable[str]) -> tuple[str, ...]:
    """Suffixes as they are asked for, in order: ``.jpg`` of ``JPG``; ``none`` for names without one stays.

    Raises:
        ValueError: one of them is no end of a file's name, or there is none; it is the message.
    """
    asked = text.split(",") if isinstance(text, str) else text
    names = [name.strip().lower() for name in asked]
    for name in names:
        if not name.strip(".") or re.search(r"[\s/*?]", name):
            raise ValueError(repr(name))
    return tuple(dict.fromkeys(name if name == NO_SUFFIX else f".{name.lstrip('.')}" for name in names))


def _is_system_name(name: str) -> bool:
    if name[:1] == ".":
        return name not in (".", "..")
    return name.lower() in SYSTEM_NAMES


def _told(kind: str, count: int) -> str:
    one, many = _WORDS.get(kind, (f"ends in {kind}", f"end in {kind}"))
    return f"{count} {one if count == 1 else many}"
