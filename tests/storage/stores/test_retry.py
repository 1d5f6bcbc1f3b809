import contextlib
import errno
import gc
import weakref

import aiohttp
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from s3fs.errors import translate_boto_error

from vbp.errors import ImageError, StorageError
from vbp.storage.stores.remote import RemoteStore
from vbp.storage.stores.retry import Kind, Refusal, attempt, reason


def s3_error(code, status, operation="GetObject"):
    response = {"Error": {"Code": code, "Message": f"says {code}"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(response, operation))


def truncated_body():
    """As aiohttp tells it: the cause has a status, which the server never sent."""
    error = aiohttp.ClientPayloadError("Response payload is not completed")
    error.__cause__ = aiohttp.http_exceptions.ContentLengthError("Not enough data")
    assert error.__cause__.code == 400
    return error


class Failing:
    """Fails as told, then answers 7."""

    def __init__(self, *errors):
        self.errors, self.calls, self.waited = list(errors), 0, 0.0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7

    def sleep(self, seconds):
        self.waited += seconds

    def attempt(self):
        return attempt(self, "read s3://bucket/key", self.sleep)


THROTTLED = [
    s3_error("SlowDown", 503),
    s3_error("TooManyRequests", 429),
    Refusal(Kind.THROTTLED, "slow down"),
]
TRANSIENT = [
    Refusal(Kind.TRANSIENT, "no answer"),
    s3_error("InternalError", 500),
    s3_error("RequestTimeout", 400),
    s3_error("ConditionalRequestConflict", 409),
    s3_error("503", 503),
    EndpointConnectionError(endpoint_url="http://x"),
    truncated_body(),
    aiohttp.ServerDisconnectedError(),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    TimeoutError(),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EIO, "Input/output error"),
]


@pytest.mark.parametrize("error", THROTTLED, ids=repr)
def test_a_store_that_asks_to_slow_down_is_not_given_up_after_a_few_tries(error):
    failing = Failing(*[error] * 30)
    assert failing.attempt() == 7
    assert failing.waited > 60


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_tried_again(error):
    failing = Failing(error, error, error)
    assert failing.attempt() == 7
    assert failing.calls == 4
    assert 0 < failing.waited < 20


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_given_up_in_the_end(error):
    failing = Failing(*[error] * 100)
    with pytest.raises(StorageError, match="cannot read s3://bucket/key: .") as caught:
        failing.attempt()
    assert failing.calls == 6
    assert failing.waited < 60
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("error", "calls", "expected"),
    [
        (s3_error("NoSuchKey", 404), 1, FileNotFoundError),
        (s3_error("NoSuchBucket", 404), 1, FileNotFoundError),
        (FileNotFoundError(errno.ENOENT, "No such file"), 1, FileNotFoundError),
        (s3_error("AccessDenied", 403), 2, PermissionError),
        (s3_error("ExpiredToken", 400), 2, PermissionError),
        (PermissionError(errno.EACCES, "Permission denied"), 1, PermissionError),
        (s3_error("PreconditionFailed", 412), 1, FileExistsError),
        (FileExistsError("there"), 1, FileExistsError),
        (s3_error("InvalidArgument", 400), 1, StorageError),
        (s3_error("PermanentRedirect", 301), 1, StorageError),
        (s3_error("NotImplemented", 501), 1, StorageError),
        (OSError(errno.ENOSPC, "No space left on device"), 1, StorageError),
        (NoCredentialsError(), 1, StorageError),
        (ValueError("a bug"), 1, StorageError),
    ],
    ids=repr,
)
def test_not_tried_again(error, calls, expected):
    failing = Failing(*[error] * 100)
    with pytest.raises(expected, match="cannot read s3://bucket/key"):
        failing.attempt()
    assert failing.calls == calls


def test_interrupts_pass():
    failing = Failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        failing.attempt()


@pytest.mark.parametrize(
    "kind", [FileNotFoundError, PermissionError, ConnectionResetError, ValueError, ImageError, KeyboardInterrupt]
)
def test_what_callers_hold_does_not_wait_for_the_garbage_collector(kind):
    """A table, or a file that is half read, as where `Folder.exists` finds nothing."""

    def fail():
        raise kind("x")

    def call():
        held = Failing()
        with contextlib.suppress(BaseException):
            attempt(fail, "read /a", lambda seconds: None)
        return weakref.ref(held)

    gc.disable()
    try:
        assert call()() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "text",
    [
        "403 from https://host/b/k?sv=1&sig=hunter2&se=9",
        "https://me:hunter2@host/x",
        "X-Amz-Security-Token=hunter2",
        "AWS_SECRET=hunter2",
        "AccountKey=hunter2;EndpointSuffix=x",
    ],
)
def test_no_secret_in_messages(text):
    with pytest.raises(StorageError) as caught:
        Failing(ValueError(text)).attempt()
    assert "hunter2" not in str(caught.value)


def test_no_secret_of_a_signed_url_in_messages():
    with pytest.raises(StorageError) as caught:
        attempt(Failing(ValueError("x")), "read https://host/a.jpg?X-Amz-Signature=hunter2&x=1", None)
    assert str(caught.value) == "cannot read https://host/a.jpg: ValueError: x"


class LosingAnswers:
    """A file system that does its work once, while the answer gets lost."""

    def __init__(self, held=None):
        self.held = held

    def pipe_file(self, path, data, mode):
        if self.held is not None:
            raise s3_error("PreconditionFailed", 412)
        self.held = data
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    def cat_file(self, path, start, end):
        return self.held

    def unstrip_protocol(self, path):
        return f"s3://{path}"


def test_create_with_a_lost_answer_is_ours():
    assert RemoteStore(LosingAnswers()).create("bucket/a", b"mine")


def test_create_over_anothers_is_not():
    assert not RemoteStore(LosingAnswers(b"theirs")).create("bucket/a", b"mine")


class Deleting(LosingAnswers):
    def cat_file(self, path, start, end):
        raise s3_error("NoSuchKey", 404)


def test_create_over_what_then_vanishes_is_not():
    assert not RemoteStore(Deleting(b"theirs")).create("bucket/a", b"mine")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "no answer in time (TimeoutError)"),
        (aiohttp.ServerTimeoutError(), "no answer in time (ServerTimeoutError)"),
        (ValueError(" "), "ValueError"),
        (OSError(5, ""), "OSError: [Errno 5]"),
        (RuntimeError("x\ny"), "RuntimeError: x y"),
    ],
)
def test_no_reason_is_empty(error, words):
    assert reason(error).startswith(words)
