"""Names of results: from an input's path to its key, under which all its results are stored.

The output holds ``masks/<key>.png``, ``overlays/<key>.jpg`` and so on.  So a key must be a path that every
store can hold with such a suffix, that stays inside the output, and that belongs to one input alone.
"""

import hashlib
import re
from urllib.parse import quote

from vbp.storage.addresses import without_secrets
from vbp.storage.outline import SUFFIXES

_NAME_BYTES = 255  # longest part of a path on all common disks
_FILE_NAME_BYTES = _NAME_BYTES - max(map(len, SUFFIXES))
_SAMPLE_BYTES = _NAME_BYTES - len(".overlay.jpg")  # the longest suffix in a tar
_SAMPLE_UNSAFE = re.compile(r"[\x00-\x1f\x7f.%\\]|\A_(?=_)")
_KEY_BYTES = 800  # an object store allows 1,024; the rest is for the output's own path
_ESCAPED = re.compile(r"~[0-9a-f]{32}~")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")  # stores may read \ as /, and listings lose the others
_READABLE_CHARACTERS = 40
# Most paths match this and need no further check: short, dots only in the file name, no special characters.
_PLAIN = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_ -]{0,99}/){0,5}[A-Za-z0-9_-][A-Za-z0-9_. -]{0,199}")


def key_of(path: str) -> str:
    """The key of an input: its relative path, unchanged wherever possible.

    A part of the path that cannot be kept is replaced by ``~<hash>~<its readable characters>``.  These parts are:
    text that is not UTF-8 (held as lone surrogates), ``.``, ``..``, an empty part (so also an absolute path), control
    characters, backslashes, a name too long to carry a suffix, a folder that could be the mask of an image beside it
    (``a.jpg.png/``), and a part that looks like such a replacement.  If the whole path is too long, its first folder
    and the end of the name are kept.  Different paths have different keys.
    """
    if _PLAIN.fullmatch(path):
        return path
    *folders, name = path.split("/")
    parts = [_folder(folder) for folder in folders] + [_file(name)]
    key = "/".join(parts)
    if _size(key) > _KEY_BYTES:
        key = "/".join([*parts[:-1][:1], _escaped(path, name)])
    return key


def key_of_uri(uri: str) -> str:
    r"""The key of an image that a manifest names by URL or path: the URI without its scheme.

    Characters that are special in URLs or unsafe in names are percent-escaped (``: ? # % \ * " < > |`` and
    control characters); the result goes through ``key_of``.  Different URIs of one scheme have different keys, unless
    they differ only in possible secrets: the query of a web address, and passwords.
    """
    rest = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://", "", without_secrets(uri))
    return key_of(re.sub(r'[\x00-\x1f\x7f:?#%\\*"<>|]', lambda match: quote(match[0]), rest.removeprefix("/")))


def sample_name(key: str) -> str:
    r"""The key as the name of a WebDataset sample: without dots, because readers cut names at the first dot.

    ``%``, ``\`` and control characters are percent-escaped too, and so is the first character of a key that begins
    with ``__``, because readers skip such samples; ``urllib.parse.unquote`` gives the key back.  A part that becomes
    too long for a disk is replaced as in ``key_of``.  Different keys have different names.
    """
    *folders, name = _SAMPLE_UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", key).split("/")
    limits = [_NAME_BYTES] * len(folders) + [_SAMPLE_BYTES]
    parts = zip(key.split("/"), [*folders, name], limits, strict=True)
    return "/".join(
        escaped if _size(escaped) <= limit else _escaped(part, part).replace(".", "_") for part, escaped, limit in parts
    )


def label_of(key: str) -> str | None:
    """The first named folder of the key; None for an image at the root.

    A bucket's keys may contain ``//`` or ``./``; such keys stay different, but these parts are no class.
    """
    *folders, _ = key.split("/")
    return next((folder for folder in folders if folder not in _NAMELESS), None)


def _folder(name: str) -> str:
    if _keepable(name, _NAME_BYTES) and not name.endswith(SUFFIXES):
        return name
    return _escaped(name, name).replace(".", "_")


def _file(name: str) -> str:
    return name if _keepable(name, _FILE_NAME_BYTES) else _escaped(name, name)


def _keepable(name: str, limit: int) -> bool:
    if name in ("", ".", "..") or _UNSAFE.search(name) or _ESCAPED.match(name):
        return False
    try:
        return len(name.encode()) <= limit
    except UnicodeEncodeError:
        return False


def _escaped(identity: str, name: str) -> str:
    """A short name, different for every ``identity``, with as much of ``name`` as is readable."""
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"~{digest}~" + re.sub(r"[^\w.-]", "_", name)[-_READABLE_CHARACTERS:]


def _size(text: str) -> int:
    return len(text.encode())


_NAMELESS = frozenset(_folder(name) for name in ("", ".", ".."))
"""The forms in which ``key_of`` writes the parts ``.``, ``..`` and the empty one."""
