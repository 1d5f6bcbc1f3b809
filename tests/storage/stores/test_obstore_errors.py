"""What obstore says, sorted; the texts are shortened answers of obstore 0.12 to real servers and broken networks."""

import pytest

from vbp.storage.stores.obstore_errors import refusal
from vbp.storage.stores.retry import Kind

STATUS = (
    "Generic S3 error: Error performing GET https://h/b/k?sig=hunter2 in 1ms - Server returned non-2xx status code: "
)
HTTP = "Generic S3 error: Error performing GET https://h/b/k?sig=hunter2 in 4ms - HTTP error: error sending request"


def xml(code, message):
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (STATUS + "503 Service Unavailable: " + xml("SlowDown", "Less."), Kind.THROTTLED, "Less. (SlowDown 503)"),
        (STATUS + "503 Service Unavailable: ", Kind.TRANSIENT, "the store refused (status 503)"),
        (STATUS + "429 Too Many Requests: ", Kind.THROTTLED, "the store refused (status 429)"),
        (STATUS + "400 Bad Request: " + xml("ExpiredToken", "Old."), Kind.DENIED, "Old. (ExpiredToken 400)"),
        (STATUS + "400 Bad Request: " + xml("RequestTimeout", "Idle."), Kind.TRANSIENT, "Idle. (RequestTimeout 400)"),
        (STATUS + "409 Conflict: " + xml("ConditionalRequestConflict", "x"), Kind.TRANSIENT, "x (Condit"),
        (STATUS + "403 Forbidden: ", Kind.DENIED, "access denied (status 403)"),
        (STATUS + "404 Not Found: " + xml("NoSuchBucket", "No."), Kind.MISSING, "No. (NoSuchBucket 404)"),
        (STATUS + '404 Not Found: {"error": {"code": 404, "message": "Nope."}}', Kind.MISSING, "Nope. (status 404)"),
        (STATUS + "412 Precondition Failed: ", Kind.EXISTS, "it exists (status 412)"),
        (STATUS + "501 Not Implemented: ", Kind.PERMANENT, "the store refused (status 501)"),
        ("Bulk delete request failed for key k: The blob is not there. (code: 404)", Kind.MISSING, "not found"),
        ("x - Received redirect without LOCATION, this", Kind.PERMANENT, "another region"),
        (HTTP + '\n\nDebug source:\nmessage: "Connection refused",', Kind.TRANSIENT, "failed (Connection refused)"),
        (HTTP + "\n\nDebug source:\nkind: Timeout,", Kind.TRANSIENT, "no answer in time"),
        (HTTP + "\n\nDebug source:\nerror: InvalidCertificate(\n UnknownIssuer,", Kind.PERMANENT, "(UnknownIssuer)"),
        (HTTP + "\n\nDebug source:\nInvalidMessage(\nInvalidContentType,", Kind.PERMANENT, "is the endpoint http?"),
        (HTTP + '\n\nDebug source:\nerror: "failed to lookup it"', Kind.TRANSIENT, "not known (failed to lookup it)"),
        ("Generic S3 error: HTTP error: request or response body error", Kind.TRANSIENT, "the connection failed"),
        ("Something else https://h/b/k?sig=hunter2", Kind.PERMANENT, "Something else"),
    ],
)
def test_kind_and_words(text, kind, words):
    found = refusal(Exception(text))
    assert found.kind is kind
    assert words in str(found)
    assert "hunter2" not in str(found)
