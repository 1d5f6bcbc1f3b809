"""Class files in their usual forms: the names of a network's classes, in the order of its outputs.

The following forms are read, in UTF-8 or UTF-16, with or without a byte order mark:

- one name per line; blank lines and lines that begin with ``#`` are skipped;
- lines with a number (``0 tench``, ``0: tench``, ``0,tench``, ``tench,0``), a WordNet id (``n01440764 tench``) or both;
- one line with commas between the names;
- JSON, or the same as Python writes it: a list of names, or of ``[id, name]``; names by number (``{"0": "tench"}``,
  ``{"0": ["n01440764", "tench"]}``, Keras' and torchvision's ``imagenet_class_index.json``); numbers by name.

If the numbers run from 0 or from 1 without a gap, they give the order; otherwise they are part of the names.
"""

from __future__ import annotations

import ast
import codecs
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 32 << 20
"""Largest class file in bytes; a larger file is of another kind."""

_WNID = re.compile(r"n\d{8}")
_NUMBER_FIRST = re.compile(r"\(?(\d{1,9})\)?(?:[.)]\s+|\s*[:;,|=]\s*|\s+)(\S.*)")
_NUMBER_LAST = re.compile(r"(.*\S)(?:\s*[:;,|=]\s*|\s+)(\d{1,9})")
_WNID_FIRST = re.compile(r"(n\d{8})(?:\s*[:;,|=]\s*|\s+)(\S.*)")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True)
class ClassNames:
    """The names of a network's classes."""

    names: tuple[str, ...]
    """Name of each output, for people."""
    ids: tuple[str, ...] | None = None
    """Id of each output, such as a WordNet id; None if the file has no ids."""

    def __len__(self) -> int:
        return len(self.names)


def parse_class_file(data: bytes) -> ClassNames:
    """The names in a class file.

    Raises:
        ValueError: the file holds no names, or is no text; the message says so.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it holds {len(data)} bytes, more than any class file")
    text = _text(data).replace("\0", "")
    named = _structured(text) if text.lstrip()[:1] in ("[", "{") else None
    found = _of_lines(text) if named is None else _of_value(named)
    if not found.names:
        raise ValueError("it holds no name")
    return found


def _text(data: bytes) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and data[:64].count(0) * 3 > len(data[:64]):  # in UTF-16 every other byte is 0
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in {error.encoding.upper()}: {error.reason} at byte {error.start}") from error


def _structured(text: str) -> Any:
    """The value of JSON or of a printed Python list or dict; None for other text, since a name may begin with ``[``."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _of_value(value: Any) -> ClassNames:
    if isinstance(value, Mapping):
        value = _by_number(value)
    if not isinstance(value, list | tuple):
        raise ValueError("its JSON is neither a list nor an object")
    return _of_entries([_entry(each) for each in value])


def _by_number(value: Mapping[Any, Any]) -> list[Any]:
    """The entries of a dictionary in the order of its numbers, which are its keys or its values."""
    if len(value) == 1 and isinstance(inner := next(iter(value.values())), list | Mapping):
        return _by_number(inner) if isinstance(inner, Mapping) else inner  # {"classes": [...]}
    pairs = [(_whole(key), entry) for key, entry in value.items()]
    if any(number is None for number, _ in pairs):
        pairs = [(_whole(number), name) for name, number in value.items()]
    numbers = [number for number, _ in pairs if number is not None]
    if not _counts(numbers, len(pairs)):
        raise ValueError(f"its {len(pairs)} entries are not numbered 0 to {len(pairs) - 1}")
    return [entry for _, entry in sorted(pairs, key=lambda pair: pair[0] or 0)]


def _entry(value: Any) -> tuple[str | None, str]:
    """Id (None without one) and name."""
    if isinstance(value, str):
        return None, value.strip()
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(each, str) for each in value):
        return value[0].strip(), value[1].strip()
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return None, value["name"].strip()
    raise ValueError(f"its entry {str(value)[:60]!r} is no name")


def _of_lines(text: str) -> ClassNames:
    lines = [line.strip().lstrip("\ufeff") for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) == 1 and "," in lines[0]:
        lines = [name.strip() for name in lines[0].split(",") if name.strip()]
    entries = []
    for line in _numbered(lines):
        match = _WNID_FIRST.fullmatch(line)
        entries.append((match[1], match[2]) if match else (line if _WNID.fullmatch(line) else None, line))
    return _of_entries([(wnid, _unquoted(name)) for wnid, name in entries])


def _numbered(lines: Sequence[str]) -> list[str]:
    """The lines without their numbers, sorted by them; unchanged if they have none."""
    for body in (lines, lines[1:]):  # the first line may be a header: index,name
        for pattern, number, name in ((_NUMBER_FIRST, 1, 2), (_NUMBER_LAST, 2, 1)):
            matches = [pattern.fullmatch(line) for line in body]
            found = [(int(match[number]), match[name].strip()) for match in matches if match]
            if len(found) == len(body) > 0 and _counts([each for each, _ in found], len(body)):
                return [each for _, each in sorted(found)]
    return list(lines)


def _counts(numbers: Sequence[int], entries: int) -> bool:
    """Whether the numbers count all entries from 0 or from 1."""
    ordered = sorted(numbers)
    return ordered in (list(range(entries)), list(range(1, entries + 1)))


def _of_entries(entries: Sequence[tuple[str | None, str]]) -> ClassNames:
    if empty := [number for number, (_, name) in enumerate(entries) if not name]:
        raise ValueError(f"its entry {empty[0]} is empty")
    ids = tuple(wnid for wnid, _ in entries if wnid)
    return ClassNames(tuple(name for _, name in entries), ids if len(ids) == len(entries) else None)


def _unquoted(name: str) -> str:
    name = name.strip().rstrip(",").strip()
    return name[1:-1].strip() if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'" else name


def _whole(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()) else None
