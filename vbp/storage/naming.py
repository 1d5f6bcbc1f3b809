"""Names of results: from an input's path to the key under which everything about it is kept.

The output holds ``masks/<key>.png``, ``overlays/<key>.jpg`` and so on. So a key must be a path that every
store can hold with such a suffix, that stays inside the output, and that no other input has.
"""

import hashlib
import re
from urllib.parse import quote

from vbp.storage.addresses import without_secrets
from vbp.storage.outline import SUFFIXES

_NAME_BYTES = 255  # of one part of a path, on all common disks
_FILE_NAME_BYTES = _NAME_BYTES - max(map(len, SUFFIXES))
_SAMPLE_BYTES = _NAME_BYTES - len(".overlay.jpg")  # the longest suffix there
_SAMPLE_UNSAFE = re.compile(r"[\x00-\x1f\x7f.%\\]|\A_(?=_)")
_KEY_BYTES = 800  # leaves the output's own path its share of an object store's 1,024
_ESCAPED = re.compile(r"~[0-9a-f]{32}~")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")  # some stores take the last for a slash, and listings lose the others
_READABLE_CHARACTERS = 40
# Most paths need no closer look: short, no dots but in the name, nothing that means something.
_PLAIN = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_ -]{0,99}/){0,5}[A-Za-z0-9_-][A-Za-z0-9_. -]{0,199}")


def key_of(path: str) -> str:
    """The key of an input: its relative path, unchanged wherever possible.

    A part of the path that cannot be kept is replaced by ``~<hash>~<what was readable of it>``: what is not
    UTF-8 (held as lone surrogates), ``.``, ``..``, an empty part (so also an absolute path), control characters,
    backslashes, a name too long to carry a suffix, a folder that could be the mask of an image beside it
    (``a.jpg.png/``), and whatever looks like such a replacement. Of a path that is too long as a whole, the first
    folder and the end of the name are kept. Different paths have different keys.
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

    What means something in URLs or is unsafe in names is percent-escaped (``: ? # % \ * " < > |`` and
    control characters), the rest goes through ``key_of``. Different URIs of one scheme have different keys, but for
    what may be secret: the query of a web address, and passwords.
    """
    rest = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://", "", without_secrets(uri))
    return key_of(re.sub(r'[\x00-\x1f\x7f:?#%\\*"<>|]', lambda match: quote(match[0]), rest.removeprefix("/")))


def sample_name(key: str) -> str:
    r"""The key as the name of a sample of a WebDataset: without a dot, where readers cut names off.

    Percent-escaped are also ``%``, ``\``, control characters, and the first character of a key that begins with
    ``__``, which readers skip as a remark of their own; ``urllib.parse.unquote`` gives the key back. A part of it that
    has become too long for a disk is replaced as in ``key_of``. Different keys have different names.
    """
    *folders, name = _SAMPLE_UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", key).split("/")
    limits = [_NAME_BYTES] * len(folders) + [_SAMPLE_BYTES]
    parts = zip(key.split("/"), [*folders, name], limits, strict=True)
    return "/".join(
        escaped if _size(escaped) <= limit else _escaped(part, part).replace(".", "_") for part, escaped, limit in parts
    )


def label_of(key: str) -> str | None:
    """The first folder of the key that has a name; None for an image at the root.

    A bucket's keys may hold ``//`` or ``./``, which are kept apart as keys, and no class of their own.
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
    """A short name, another one for every ``identity``, that tells of ``name`` what it can."""
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"~{digest}~" + re.sub(r"[^\w.-]", "_", name)[-_READABLE_CHARACTERS:]


def _size(text: str) -> int:
    return len(text.encode())


_NAMELESS = frozenset(_folder(name) for name in ("", ".", ".."))
"""How ``key_of`` writes folders that are none."""
