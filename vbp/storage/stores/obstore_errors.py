"""Read an object store's answer from obstore's messages: its kind for ``retry``, and a sentence for people.

A message of obstore holds the request's URL, which may be signed, and the whole answer; the URL is dropped.
"""

import os
import re

from vbp.storage.stores.retry import THROTTLING_CODES, Kind, Refusal, kind_of_status

_STATUS = re.compile(r"\b(?:status )?code: (\d{3})\b")
_CODE = re.compile(r"<Code>([^<]+)</Code>|\"(?:code|reason)\": ?\"(\w+)\"")
_MESSAGE = re.compile(r"<Message>([^<\n]+)|\"message\": ?\"([^\"\n]+)\"")
_OTHER_REGION = "the bucket lies in another region than the one asked (set AWS_REGION, or region in --storage-options)"
_PROVIDER = re.compile(r"PermissionError: ([^\n]*)")
"""The message of our own provider of credentials."""
_KINDS_OF_CODES = {
    "ExpiredToken": Kind.DENIED,
    "InvalidToken": Kind.DENIED,
    "TokenRefreshRequired": Kind.DENIED,
    "RequestTimeout": Kind.TRANSIENT,
    "ConditionalRequestConflict": Kind.TRANSIENT,
    "OperationAborted": Kind.TRANSIENT,
}
# How errors of the network look in obstore's messages, the innermost first.
_NETWORK = (
    (re.compile(r"InvalidCertificate\(\s*(\w+)"), "the server's TLS certificate is not accepted", Kind.PERMANENT),
    (re.compile("InvalidContentType|InvalidMessage"), "no TLS is spoken there; is the endpoint http?", Kind.PERMANENT),
    (re.compile("BadScheme|RelativeUrlWithoutBase"), "the endpoint is no http or https URL", Kind.PERMANENT),
    (re.compile("TimedOut|kind: Timeout"), "no answer in time", Kind.TRANSIENT),
    (re.compile(r'error: "(failed to lookup[^"]*)"'), "the host's name is not known", Kind.TRANSIENT),
    (re.compile(r'message: "([^"]*)"'), "the connection failed", Kind.TRANSIENT),
    (re.compile("HTTP error"), "the connection failed", Kind.TRANSIENT),
)


def refusal(error: Exception) -> Refusal:
    """Obstore's error as a ``Refusal``."""
    text = str(error)
    said, _, debug = text.partition("\n\nDebug source:")
    status = _STATUS.search(said)
    if status:
        code, message = (_first(pattern, said) for pattern in (_CODE, _MESSAGE))
        return Refusal(_kind(error, int(status[1]), code), _sentence(int(status[1]), code, message))
    if "BareRedirect" in debug or "Received redirect" in said:
        return Refusal(Kind.PERMANENT, _OTHER_REGION)
    if told := _PROVIDER.search(said):
        return Refusal(Kind.DENIED, told[1].strip())
    for pattern, words, kind in _NETWORK:
        if match := pattern.search(text):
            detail = next((group for group in match.groups() if group), None) if pattern.groups else None
            return Refusal(kind, f"{words} ({detail})" if detail else words)
    return Refusal(Kind.PERMANENT, said.partition(" http")[0])


def aws_trouble(error: Exception) -> str:
    """A sentence on an error in AWS' configuration or credentials, with the remedy.

    Args:
        error: an error of botocore, or an OSError of the program that ``credential_process`` names.
    """
    name = type(error).__name__
    words = " ".join(str(error).split()).rstrip(".")
    files = (
        "~/.aws/config and ~/.aws/credentials, or the files that AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE name"
    )
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    if name == "ProfileNotFound":
        return f"AWS_PROFILE names a profile that is not there ({words}): look into {files}"
    if "SSO" in name or "Login" in name or name == "TokenRetrievalError":
        login = f"aws sso login --profile {profile}"
        return f"no credentials: the SSO session of the AWS profile {profile} is over, run: {login}"
    if name == "PartialCredentialsError":
        return f"no credentials: those of the AWS profile {profile} or of the environment are not whole ({words})"
    if name in ("ConfigParseError", "ConfigNotFound", "UnicodeDecodeError", "ValueError"):
        return f"AWS' configuration cannot be read ({words}): mend {files}"
    return f"no credentials: those of the AWS profile {profile} cannot be had ({name}: {words})"


def _kind(error: Exception, status: int, code: str | None) -> Kind:
    if code in THROTTLING_CODES:
        return Kind.THROTTLED
    if code in _KINDS_OF_CODES:
        return _KINDS_OF_CODES[code]
    if type(error).__name__ == "AlreadyExistsError":  # Azure answers 409 where the others answer 412
        return Kind.EXISTS
    return kind_of_status(status)


def _sentence(status: int, code: str | None, message: str | None) -> str:
    words = {401: "not authorised", 403: "access denied", 404: "not found", 412: "it exists"}
    told = [message or words.get(status, "the store refused"), f"({code or 'status'} {status})"]
    return " ".join(told)


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return next((group.strip() for group in match.groups() if group), None) if match else None
