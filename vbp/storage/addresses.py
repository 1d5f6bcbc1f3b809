"""Addresses as people type them: which cannot be meant, and what of one may be shown and kept.

What stands behind ``?`` in a web address may be a signature, before ``@`` a password: neither is part of a name.
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
"""What S3, Azure and Google call an object's version in a web address."""


def without_secrets(uri: str) -> str:
    """The address without what may be secret: a password, and of a web address all before ``@`` and behind ``?``."""
    is_web = bool(_WEB.match(uri))
    user = _USER.match(uri)
    if user:
        name = "" if is_web else user[2].partition(":")[0]
        uri = user[1] + (f"{name}@" if name else "") + uri[user.end() :]
    return re.split(r"[?#]", uri, maxsplit=1)[0] if is_web else uri


def version_in(uri: str) -> str | None:
    """The version of the object that a web address asks for; None where it asks for none."""
    if not _WEB.match(uri):
        return None
    given = parse_qs(uri.partition("?")[2].partition("#")[0])
    return next((given[name][0] for name in _VERSIONS if name in given), None)


def check_place(name: str, place: str) -> None:
    """Refuse a place that is misspelt, before results lie where nobody looks for them.

    Args:
        name: what the place is, for the message: INPUT or OUTPUT.
        place: a path or URL, as it was typed.

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
    """Object stores take every string for a name: what a script or a habit of the web has put there shows nowhere."""
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
