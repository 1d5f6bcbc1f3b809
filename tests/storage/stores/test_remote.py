"""Odd web servers: silent ones, endless bodies, missing headers, or no ranges."""

import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vbp.errors import FileTooLargeError, StorageError
from vbp.storage.files import Folder, open_uri, read_uri
from vbp.storage.stores import remote, retry

BODY = bytes(range(256)) * 40


@pytest.fixture
def server(monkeypatch):
    """The address of a server whose answers are told by their paths; each failure is met once, each wait is short."""
    monkeypatch.setattr(remote, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(retry, "TRIES", 1)
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        server.over = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.over.set()
        server.shutdown()
        thread.join()


class Odd(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.strip("/").partition("?")[0].partition(".")[0]
        if name.isdigit():
            return self.say(b"secret words", int(name))
        getattr(self, name)()

    def do_HEAD(self):
        self.say(b"", 405)

    def say(self, data, status=200, **headers):
        self.send_response(status)
        for field, value in ({"Content_Length": len(data)} | headers).items():
            if value is not None:
                self.send_header(field.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def whole(self):
        self.say(BODY)

    def agent(self):
        self.say(self.headers["User-Agent"].encode())

    def query(self):
        self.say(self.path.encode())

    def empty(self):
        self.say(b"")

    def moved(self):
        self.say(b"", 302, Location="/whole.jpg")

    def zipped(self):
        self.say(gzip.compress(BODY), Content_Encoding="gzip")

    def hang(self):
        self.server.over.wait(20)
        self.close_connection = True

    def stalls(self):
        self.say(BODY[:100], Content_Length=len(BODY))
        self.hang()

    def short(self):
        self.say(BODY[:100], Content_Length=len(BODY))
        self.close_connection = True

    def drips(self):
        self.say(b"", Content_Length=10)
        for _ in range(10):
            time.sleep(0.1)
            self.wfile.write(b"x")
            self.wfile.flush()

    def endless(self):
        self.say(b"", Content_Length=None, Transfer_Encoding="chunked")
        self.sent = 0
        try:
            while self.sent < 1 << 30:
                self.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
                self.sent += 65536
        except OSError:
            self.close_connection = True

    def bomb(self):
        self.say(gzip.compress(bytes(1 << 20)), Content_Encoding="gzip")

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("name", ["whole", "moved", "zipped"])
def test_what_is_sent_in_whatever_way(server, name):
    assert read_uri(f"{server}/{name}.jpg", limit=len(BODY)) == BODY
    assert read_uri(f"{server}/{name}.jpg") == BODY


def test_pieces_of_a_server_that_always_sends_all(server):
    assert read_uri(f"{server}/whole.jpg", start=10, end=20) == BODY[10:20]
    assert read_uri(f"{server}/whole.jpg", start=10) == BODY[10:]
    assert read_uri(f"{server}/whole.jpg", start=5, end=5) == b""


def test_it_names_itself_and_keeps_queries(server):
    assert read_uri(f"{server}/agent") == b"vbp"
    assert read_uri(f"{server}/query?versionId=a&X-Amz-Signature=b%2Fc") == b"/query?versionId=a&X-Amz-Signature=b%2Fc"
    assert read_uri(f"{server}/query?50%&a b&é") == b"/query?50%25&a+b&%C3%A9"
    headers = {f"{server}/": {"headers": {"User-Agent": "mine"}}}
    assert read_uri(f"{server}/agent", headers) == b"mine"
    assert read_uri(f"{server}/empty", limit=5) == b""


@pytest.mark.parametrize("name", ["hang", "stalls"])
def test_a_silent_server_costs_its_time_out_and_has_a_message(server, name):
    started = time.monotonic()
    with pytest.raises(StorageError, match=f"^cannot read {server}/{name}.jpg: .*[Tt]ime") as caught:
        read_uri(f"{server}/{name}.jpg?token=secret")
    assert time.monotonic() - started < 10
    assert "secret" not in str(caught.value)


def test_a_slow_server_is_not_silent(server):
    assert read_uri(f"{server}/drips.jpg") == b"x" * 10


def test_less_than_was_declared(server):
    with pytest.raises(StorageError, match="cannot read .*short.jpg: ClientPayloadError: "):
        read_uri(f"{server}/short.jpg")


@pytest.mark.parametrize("name", ["whole", "endless", "bomb"])
def test_more_than_is_allowed(server, name):
    allowed = "bytes or more, and --max-bytes allows 999"
    with pytest.raises(FileTooLargeError, match=rf"^{server}/{name}.jpg has \d+ {allowed}"):
        read_uri(f"{server}/{name}.jpg?sig=secret", limit=999)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, PermissionError), (403, PermissionError), (404, FileNotFoundError), (410, FileNotFoundError),
     (451, StorageError), (500, StorageError), (503, StorageError)],
)  # fmt: skip
def test_refusals_by_their_status(server, status, kind):
    with pytest.raises(kind, match=rf"^cannot read {server}/{status}.jpg: ") as caught:
        read_uri(f"{server}/{status}.jpg?sig=secret")
    assert "secret" not in str(caught.value)


def test_too_many_requests_are_made_later(server, monkeypatch):
    monkeypatch.setattr(retry, "SECONDS_WHEN_THROTTLED", 0.0)
    with pytest.raises(StorageError, match="429"):
        read_uri(f"{server}/429.jpg")


def test_a_limit_on_any_store(any_store):
    any_store.write("empty", b"")
    any_store.write("a", b"12345")
    assert any_store.read("a", limit=5) == b"12345"
    assert any_store.read("empty", limit=5) == b""
    with pytest.raises(FileTooLargeError, match=r"a has \d bytes or more, and --max-bytes allows 4"):
        any_store.read("a", limit=4)
    with pytest.raises(FileNotFoundError):
        any_store.read("b", limit=4)


def test_an_open_file_of_a_server_without_ranges(server):
    with open_uri(f"{server}/whole.jpg") as file:
        file.seek(100)
        assert file.read(50) == BODY[100:150]
    with pytest.raises(FileTooLargeError):
        Folder(server).read("whole.jpg", limit=5)
