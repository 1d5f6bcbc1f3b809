"""What lies beside a file that is not there: a hint for names that were misspelt."""

from __future__ import annotations

import os
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path


def nearby(place: str, suffixes: Collection[str] = ()) -> str:
    """The file of the most similar name in the same local folder; empty without one, and for URLs.

    Args:
        place: path or URL of a file that does not exist.
        suffixes: ends that names must have, in small letters; empty: any.
    """
    path = Path(os.path.expanduser(place))
    if "://" in place:
        return ""
    try:
        names = sorted(each.name for each in path.parent.iterdir() if not suffixes or each.suffix.lower() in suffixes)
    except OSError:
        return ""
    return next(iter(get_close_matches(path.name, names, n=1)), "")


def meant(place: str, suffixes: Collection[str] = ()) -> str:
    """The same as words behind a name: ``" (did you mean mine.py?)"``, or nothing."""
    found = nearby(place, suffixes)
    return f" (did you mean {found}?)" if found else ""
