"""Addresses that people type: refuse the misspelt ones, and cut out secrets before one is shown or stored.

In a web address the text after ``?`` may be a signature, and the text before ``@`` a password.
"""

import re
from urllib.parse import parse_qs

from vbp.errors import UsageError

_WEB = re.compile(r"https?://", re.IGNORECASE)
_USER = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)([^/?#@]*)@")
_NEARLY = re.compile(r"\s*(s3a?|gs|gcs|az|abfss?|hf|https?|sftp|ssh|file)\s*:\s*/*", re.IGNORECASE)
_BUCKET = re.compile(r"(?:s3a?|gs|gcs|az|abfss?)://", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_VERSIONS = ("versionId", "versionid", "generation")
"""Query parameters of a web address in which S3, Azure and Google give an object's version."""


def without_secrets(uri: str) -> str:
    """The address without secrets: a password, and in a web address all text before ``@`` and after ``?``."""
    is_web = bool(_WEB.match(uri))
    user = _USER.match(uri)
    if user:
        name = "" if is_web else user[2].partition(":")[0]
        uri = user[1] + (f"{name}@" if name else "") + uri[user.end() :]
    return re.split(r"[?#]", uri, maxsplit=1)[0] if is_web else uri


def version_in(uri: str) -> str | None:
    """The object version that a web address names; None if it names none."""
    if not _WEB.match(uri):
        return None
    given = parse_qs(uri.partition("?")[2].partition("#")[0])
    return next((given[name][0] for name in _VERSIONS if name in given), None)


def check_place(name: str, place: str) -> None:
    """Refuse a misspelt place, before results are written where nobody looks for them.

    Args:
        name: what the place is, for the message: INPUT or OUTPUT.
        place: a path or URL, as the user typed it.

    Raises:
        UsageError: says what to write.
    """
    if "://" not in place:
        nearly = _NEARLY.match(place)
        if nearly:
            url = f"{nearly[1].lower()}://{place[nearly.end() :]}"
            raise UsageError(f"{name} (={place}) is neither path nor URL; write {url}, or ./ before a path.")
        return
    links = place.split("::")
    shown = "::".join(map(without_secrets, links))
    if _CONTROL.search(place) or place != place.strip():
        raise UsageError(f"{name} (={shown!r}) has a blank or a line break where there can be none; remove it.")
    if shown != place:
        raise UsageError(
            f"{name} (={shown}) is given with a password or a query, which may be secret and would be kept in the "
            "record of the run; leave it out: credentials belong into the environment."
        )
    if _BUCKET.match(place) and len(links) == 1:
        _check_key(name, place)


def _check_key(name: str, place: str) -> None:
    """Refuse a suspicious object name: object stores accept every string, so a misspelt name raises no error."""
    scheme, _, rest = place.partition("://")
    bucket, *parts = rest.rstrip("/").split("/")
    meant = [part for part in parts if part not in ("", ".", "..")]
    if len(meant) < len(parts):
        raise UsageError(
            f"{name} (={place}) has an empty part, . or .. between its slashes, as an empty variable of a script "
            f"leaves it; write {scheme}://{'/'.join([bucket, *meant])}."
        )
    query = re.search(r"[?#]" if name == "OUTPUT" else r"\?[\w-]+=", rest)
    if query:
        raise UsageError(
            f"{name} (={scheme}://{rest[: query.start()]}) goes on with {query[0][0]}, which begins no query there but "
            "would be part of the name; leave it out."
        )
