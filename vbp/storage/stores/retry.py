"""One policy for every store: which errors are tried again, how often, and which error is raised in the end."""

import errno
import re
import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, TypeVar

import tenacity

from vbp.errors import ImageError, StorageError

T = TypeVar("T")

TRIES = 6
SECONDS = 60.0
TRIES_WHEN_DENIED = 2  # a store under load has been seen to answer 403 to good credentials
SECONDS_WHEN_THROTTLED = 300.0  # a store that asks to slow down needs more time

THROTTLING_CODES = {"SlowDown", "TooManyRequests", "RequestLimitExceeded", "ThrottlingException", "ServerBusy"}
"""The codes of S3, Google and Azure for it."""

_TRANSIENT_STATUS = {408, 409, 425, 500, 502, 503, 504, 507, 509, 529}
_TRANSIENT_ERRNO = {
    *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH),
    getattr(errno, "EREMOTEIO", errno.EIO),  # Linux alone has it; s3fs uses it for a server's own failure
}
_NETWORK_CLASS = re.compile("Timeout|Connect|Disconnect|Payload|IncompleteRead|HTTPClientError|ResponseParser")
_SECRETS = (
    (re.compile(r"//[^/@\s]+:[^/@\s]+@"), "//***@"),
    (re.compile(r"(?i)(https?://)[^/@\s'\"<>]+@"), r"\1***@"),
    (re.compile(r"(?i)(https?://[^\s?#'\"<>]+)[?#][^\s'\"<>]*"), r"\1"),
    (
        re.compile(r"(?i)\b([\w-]*(?:sig|signature|token|secret|password|key|credential)=)[^&\s'\"]+"),
        r"\1***",
    ),
)


class Kind(Enum):
    """Why an operation failed; this decides what to do next."""

    MISSING = "missing"
    DENIED = "denied"
    EXISTS = "exists"
    THROTTLED = "throttled"
    TRANSIENT = "transient"
    PERMANENT = "permanent"


class Refusal(Exception):  # noqa: N818
    """A store's answer whose kind is known already."""

    def __init__(self, kind: Kind, words: str):
        super().__init__(words)
        self.kind = kind
        self.strerror = words


def attempt(operation: Callable[[], T], what: str, sleep: Callable[[float], None] = time.sleep) -> T:
    """Run ``operation``, again after network errors, time-outs, throttling and server errors.

    Waits grow exponentially with full jitter; at most ``TRIES`` tries or ``SECONDS`` seconds, and if the store
    asks to slow down, ``SECONDS_WHEN_THROTTLED`` seconds whatever the number of tries.

    Args:
        operation: what to do; must be safe to repeat.
        what: for the error message, as in "read s3://bucket/key".
        sleep: waits so many seconds; tests pass their own.

    Raises:
        FileNotFoundError: the file or the bucket does not exist (never tried again).
        FileExistsError: the store refuses to overwrite (never tried again).
        PermissionError: the store refuses, also a second time.
        ImageError: unchanged, since it is no error of the store.
        StorageError: every other error, with the cause in its message, without secrets.
    """
    retrying = _Retrying(
        sleep=sleep,
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=15),
        stop=_enough,
        retry=tenacity.retry_if_exception(lambda error: kind(error) in _TRIED_AGAIN),
        retry_error_callback=_raised,
    )
    try:
        return retrying(operation)
    except ImageError:
        raise
    except Exception as error:
        message = f"cannot {_without_secrets(what)}: {reason(error)}"
        match kind(error):
            case Kind.MISSING:
                raise FileNotFoundError(message) from error
            case Kind.EXISTS:
                raise FileExistsError(message) from error
            case Kind.DENIED:
                raise PermissionError(message) from error
            case _:
                raise StorageError(message) from error


_TRIED_AGAIN = (Kind.TRANSIENT, Kind.THROTTLED, Kind.DENIED)


class _Retrying(tenacity.Retrying):
    """Forgets the error that it raises.

    Else its frame would hold the error, whose traceback holds the frame and those of all callers.  So whatever they
    hold would live on until the garbage collector comes: tables, files that are half read.
    """

    def iter(self, retry_state: tenacity.RetryCallState) -> Any:
        try:
            return super().iter(retry_state)
        except BaseException:
            retry_state.outcome = None
            raise


def _raised(state: tenacity.RetryCallState) -> Any:
    """Raise the last error as it is; tenacity's own ``reraise`` would hold it too."""
    assert state.outcome is not None
    return state.outcome.result()


def created(create: Callable[[], object], read: Callable[[], bytes], data: bytes) -> bool:
    """Whether create-if-absent succeeded: whether the file holds `data` now.

    If an answer is lost after the store has written the file, the repeated request finds our own file.  So the
    existing file is compared with `data`.

    Args:
        create: makes the request; raises FileExistsError if the file exists.
        read: reads the file.
        data: content of the new file.

    Raises:
        StorageError: the store refuses.
    """
    try:
        create()
    except FileExistsError:
        try:
            return read() == data
        except FileNotFoundError:  # deleted in between
            return False
    except OSError as error:
        raise StorageError(str(error)) from error
    return True


def kind(error: BaseException) -> Kind:
    """Classify an error of any backend by its class, the HTTP status behind it, or its errno."""
    if isinstance(error, Refusal):
        return error.kind
    if isinstance(error, FileNotFoundError):
        return Kind.MISSING
    if isinstance(error, PermissionError):
        return Kind.DENIED
    if isinstance(error, FileExistsError):
        return Kind.EXISTS
    if isinstance(error, (ConnectionError, TimeoutError)):
        return Kind.TRANSIENT
    if any(_NETWORK_CLASS.search(cls.__name__) for cls in type(error).__mro__):
        return Kind.TRANSIENT  # even if aiohttp reports a status: for a truncated body it reports 400
    for link in _chain(error):
        if _code(link) in THROTTLING_CODES:
            return Kind.THROTTLED
        status = _http_status(link)
        if status is not None:
            return kind_of_status(status)
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return Kind.TRANSIENT
    return Kind.PERMANENT


def reason(error: BaseException) -> str:
    """The error's message in one line, with passwords and signatures removed; never empty."""
    name = type(error).__name__
    words = str(getattr(error, "strerror", None) or "") or (f"{name}: {error}" if str(error).strip() else "")
    if not words:
        words = f"no answer in time ({name})" if isinstance(error, TimeoutError) else name
    return " ".join(_without_secrets(words).split())


def _without_secrets(text: str) -> str:
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _enough(state: tenacity.RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    tries, seconds = TRIES, state.seconds_since_start or 0.0
    if error is not None and kind(error) is Kind.THROTTLED:
        return seconds >= SECONDS_WHEN_THROTTLED
    if error is not None and kind(error) is Kind.DENIED:
        tries = 1 if _comes_from_the_disk(error) else TRIES_WHEN_DENIED
    return state.attempt_number >= tries or seconds >= SECONDS


def _comes_from_the_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno is not None


def kind_of_status(status: int) -> Kind:
    """Classify an HTTP status, 400 and above."""
    if status in (401, 403):
        return Kind.DENIED
    if status in (404, 410):
        return Kind.MISSING
    if status == 412:  # If-None-Match: the object exists
        return Kind.EXISTS
    if status == 429:
        return Kind.THROTTLED
    return Kind.TRANSIENT if status in _TRANSIENT_STATUS else Kind.PERMANENT


def is_out_of_range(error: BaseException) -> bool:
    """Whether a store says that a range begins after the file's end."""
    return any(_http_status(link) == 416 for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _code(error: BaseException) -> str | None:
    """S3's code of the error; None if it has none."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code")) if isinstance(response, dict) else None


def _http_status(error: BaseException) -> int | None:
    """The HTTP status in an error of botocore, aiohttp, Azure, requests or gcsfs; else None."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    for name in ("status", "status_code", "code"):
        try:
            status = int(getattr(error, name, None) or 0)
        except (TypeError, ValueError):
            continue
        if 400 <= status < 600:
            return status
    return None
