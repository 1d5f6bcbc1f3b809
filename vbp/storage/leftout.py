"""LeftOut: counts the files that a listing leaves out because they are no images, by suffix or kind.

Files that operating systems and programs add (a Mac's ``._a.jpg``, ``Thumbs.db``, ``.ipynb_checkpoints``,
and all other hidden files) are no images, whatever their suffix, and their folders are no classes.
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
"""Names of system files and folders in lower case; names that begin with a dot are hidden and need no entry."""
SYSTEM, NO_SUFFIX, OTHERS, REPEATED = "system", "none", "others", "repeated"
"""Kinds that are counted besides suffixes: system files, names without a suffix, suffixes after the first ``KINDS``,
and rows of a manifest file that repeat an image."""
KINDS = 40
"""The most suffixes that are counted one by one, since a name may end in anything."""

_SUFFIX = re.compile(r".\.([A-Za-z0-9_~+-]{1,12})\Z", re.DOTALL)
_WORDS = {
    SYSTEM: ("is hidden or a system file", "are hidden or system files"),
    NO_SUFFIX: ("has no suffix", "have no suffix"),
    OTHERS: ("has another suffix", "have other suffixes"),
    REPEATED: ("repeats an image", "repeat an image"),
}


def is_system(path: str) -> bool:
    """Whether the file at `path` is hidden or a system file, or lies in such a folder."""
    names = path.lower().split("/")
    is_hidden = path.startswith(".") or "/." in path  # `.` and `..` in a bucket's keys are not
    return not SYSTEM_NAMES.isdisjoint(names) or (is_hidden and any(map(_is_hidden, names)))


def suffix_of(path: str) -> str:
    """The suffix in lower case, ``.jpg`` of ``cat/a.JPG``; empty if the name has no short, plain suffix."""
    match = _SUFFIX.search(path.rpartition("/")[2])
    return f".{match[1].lower()}" if match else ""


class LeftOut:
    """The counts of one listing, or of a stretch of it.

    Args:
        most: the most kinds that are counted one by one.

    Attributes:
        counts: files by suffix or by one of the kinds above, in the order in which the kinds were found first.
    """

    def __init__(self, most: int = KINDS) -> None:
        self._most = most
        self.counts: dict[str, int] = {}

    def add(self, path: str) -> None:
        """Count a file that is no image."""
        self.count(SYSTEM if is_system(path) else suffix_of(path) or NO_SUFFIX)

    def count(self, kind: str, files: int = 1) -> None:
        """Count so many files of a kind."""
        if kind not in self.counts and kind not in _WORDS and len(self.counts) >= self._most:
            kind = OTHERS
        self.counts[kind] = self.counts.get(kind, 0) + files


def in_words(counts: Mapping[str, int], most: int = 12) -> str:
    """The counts as a phrase, largest first: ``6 end in .heic, 1 has no suffix``; empty if there are none."""
    order = sorted(counts.items(), key=lambda item: (item[0] == OTHERS, -item[1], item[0]))
    phrases = [_phrase(kind, count) for kind, count in order[:most]]
    rest = sum(count for _, count in order[most:])
    return ", ".join([*phrases, _phrase(OTHERS, rest)] if rest else phrases)


def suffixes_in(text: str | Iterable[str]) -> tuple[str, ...]:
    """Suffixes from ``--suffixes``, sorted: ``.jpg`` from ``JPG``; ``none`` stays, for names without a suffix.

    Raises:
        ValueError: a name is no suffix, or there is none; the message is that name.
    """
    asked = text.split(",") if isinstance(text, str) else text
    names = [name.strip().lower() for name in asked]
    for name in names:
        if not name.strip(".") or re.search(r"[\s/*?]", name):
            raise ValueError(repr(name))
    return tuple(dict.fromkeys(name if name == NO_SUFFIX else f".{name.lstrip('.')}" for name in names))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") and name not in (".", "..")


def _phrase(kind: str, count: int) -> str:
    one, many = _WORDS.get(kind, (f"ends in {kind}", f"end in {kind}"))
    return f"{count} {one if count == 1 else many}"
