"""Preflight: before any work, one small request of every kind that a run makes, on the machine that will do the work.

A missing bucket, a wrong region, credentials that are missing, expired or not allowed to write, and an endpoint that
does not answer each become one sentence that says what to change.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from typing import Any

from vbp.errors import StorageError, UsageError
from vbp.storage.collections.manifestfile import is_manifest
from vbp.storage.collections.tree import one_image
from vbp.storage.files import Folder, read_uri
from vbp.storage.stores.options import CREDENTIALS, family_of

PROBE = "_run/preflight"
"""Start of the path of a probe; each probe adds a random name."""


def preflight(source: str, output: str, options: Mapping[str, Any], where: str) -> None:
    """List and read one file of INPUT; write, read and delete one in OUTPUT.  Local places are not tried here.

    Args:
        source: INPUT.
        output: OUTPUT.
        options: non-secret options by URL prefix.
        where: which machine this is, for the message.

    Raises:
        UsageError: a request fails; says which, why, and what to do.
    """
    if "://" in source:
        with _as_usage_error("INPUT", source, where):
            _read_one(source, options)
    if "://" in output:
        with _as_usage_error("OUTPUT", output, where):
            _write_one(output, options)


def _read_one(source: str, options: Mapping[str, Any]) -> None:
    if is_manifest(source):
        read_uri(source, options)
        return
    folder = Folder(source, options)
    if one_image(folder) is not None:
        folder.read("")
        return
    first = folder.first()
    if first is not None:  # the listing refuses an input without images
        folder.read(first.path)


def _write_one(output: str, options: Mapping[str, Any]) -> None:
    folder, path = Folder(output, options), f"{PROBE}-{uuid.uuid4().hex}"
    data = path.encode()
    folder.write(path, data)
    if folder.read(path) != data:
        raise StorageError("what was written comes back changed")
    folder.delete(path)


@contextlib.contextmanager
def _as_usage_error(name: str, url: str, where: str) -> Any:
    try:
        yield
    except (StorageError, OSError) as error:
        remedy = _remedy(str(error), error, url)
        raise UsageError(f"{name} (={url}) cannot be used {where}: {error}. {remedy}") from error


def _remedy(text: str, error: Exception, url: str) -> str:
    low = text.lower()
    if "region" in low or "permanentredirect" in low:
        return "Set AWS_REGION on every node, or region in --storage-options."
    if "bucket" in low and ("not exist" in low or "nosuchbucket" in low):
        return "Check the bucket's name, the endpoint and the region."
    if "container" in low and "not exist" in low:
        return "Check the container's name and the storage account."
    if "tls" in low or "certificate" in low or "ssl" in low:
        return "Check endpoint_url in --storage-options, http or https among it, and the node's certificates."
    causes = (error, error.__cause__)
    if any(isinstance(cause, PermissionError) for cause in causes) or "credentials" in low:
        variables = CREDENTIALS.get(family_of(url), "its credentials")
        if "aws sso login" in low:
            return "Every node needs credentials of its own, or the node's identity."
        if any(word in low for word in ("expired", "invalidtoken", "no credentials", "signature", "invalidaccesskey")):
            return f"Renew or set the credentials on every node: {variables}, or the node's own identity."
        return "The credentials are valid but lack the right to do this; grant list and read on INPUT, all on OUTPUT."
    if isinstance(error, FileNotFoundError):
        return "Check the URL."
    return "Check endpoint_url in --storage-options and the network of every node."
