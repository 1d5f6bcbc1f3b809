"""The ``--storage-options`` mapping: settings by URL prefix, without secrets."""

from collections.abc import Mapping
from typing import Any

from vbp.errors import UsageError

_SECRET_ENDINGS = ("key", "secret", "token", "password", "passphrase", "sas", "connection_string")
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (or AWS_PROFILE)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING",
    "hf": "HF_TOKEN",
    "sftp": "a key in ~/.ssh, or ssh-agent",
}
"""The environment variables with the credentials of each kind of store."""
_FAMILIES = {"ssh": "sftp", "s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az"}


def check_options(options: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The options as plain dicts, after a check that their keys are URL prefixes and no field holds a secret.

    Raises:
        UsageError: a prefix is no URL, settings are no mapping, or a field is meant for a secret.
    """
    checked = {}
    for prefix, settings in (options or {}).items():
        if "://" not in prefix or not isinstance(settings, Mapping):
            raise UsageError(
                f"storage option {prefix!r} is no URL prefix with settings; write for example "
                '{"s3://bucket": {"endpoint_url": "https://host:9000"}}'
            )
        _refuse_secrets(prefix, settings)
        checked[prefix] = dict(settings)
    return checked


def options_for(url: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of the longest prefix of ``url``; empty if no prefix fits."""
    fitting = [prefix for prefix in options or {} if _lies_under(url, prefix)]
    return dict(options[max(fitting, key=len)]) if options and fitting else {}


def protocol_of(url: str) -> str:
    """``s3`` of ``s3://bucket/key``."""
    return url.partition("://")[0].lower()


def family_of(url: str) -> str:
    """The protocol of a URL, with one name for each kind of store: ``az`` of ``abfs://container``."""
    protocol = protocol_of(url)
    return _FAMILIES.get(protocol, protocol)


def _lies_under(url: str, prefix: str) -> bool:
    return url == prefix or url.startswith(prefix.rstrip("/") + "/")


def secret_in(settings: Mapping[str, Any]) -> str | None:
    """The first field, at any depth, whose name says that it is a secret; None without one."""
    for field, value in settings.items():
        if str(field).lower().endswith(_SECRET_ENDINGS):
            return str(field)
        if isinstance(value, Mapping) and (found := secret_in(value)):
            return found
    return None


def _refuse_secrets(prefix: str, settings: Mapping[str, Any]) -> None:
    if field := secret_in(settings):
        variables = CREDENTIALS.get(family_of(prefix), f"FSSPEC_{protocol_of(prefix).upper()}_{field.upper()}")
        raise UsageError(
            f"storage option {field!r} for {prefix} would put a secret into logs and run records; "
            f"set it in the environment of every node instead: {variables}"
        )
