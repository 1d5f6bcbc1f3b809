"""Reading a result by its index row: whole files and ranges of tars, one request each."""

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vbp.errors import StorageError
from vbp.storage.results.read import read_result

CONTENT = bytes(range(256)) * 40


def row(uri, offset=None, length=None, kind="mask"):
    return {"key": "a.jpg", "status": "ok", f"{kind}_uri": uri, f"{kind}_offset": offset, f"{kind}_length": length}


@pytest.mark.parametrize("kind", ["mask", "overlay"])
def test_whole_files_and_ranges(folder, kind):
    folder.write("shards/a.tar", CONTENT)
    uri = folder.uri("shards/a.tar")
    options = {"s3://": {"endpoint_url": _endpoint(folder)}} if not folder.is_local else None
    assert read_result(row(uri, kind=kind), kind, options) == CONTENT
    assert read_result(row(uri, 512, 700, kind), kind, options) == CONTENT[512:1212]
    assert read_result(row(uri, 0, 1, kind), kind, options) == CONTENT[:1]
    assert read_result(row(uri, len(CONTENT) - 5, 5, kind), kind, options) == CONTENT[-5:]


def _endpoint(folder):
    (settings,) = folder.__reduce__()[1][1].values()
    return settings["endpoint_url"]


def test_rows_of_layouts_without_offsets_and_of_pandas(tmp_path):
    (tmp_path / "m.png").write_bytes(CONTENT)
    assert read_result({"mask_uri": str(tmp_path / "m.png")}) == CONTENT
    nan = float("nan")
    assert read_result(row(str(tmp_path / "m.png"), nan, nan)) == CONTENT
    assert read_result(row(str(tmp_path / "m.png"), 512.0, 3.0)) == CONTENT[512:515]


@pytest.mark.parametrize("uri", [None, float("nan")])
def test_a_row_without_the_file_says_so(uri):
    with pytest.raises(FileNotFoundError, match=r"'a\.jpg' has no mask.*error"):
        read_result(row(uri) | {"status": "error"})


def test_a_tar_that_was_cut_short_is_an_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(CONTENT[:1000])
    with pytest.raises(StorageError, match=r"a\.tar gave 488 bytes from 512 on, not 700"):
        read_result(row(str(tmp_path / "a.tar"), 512, 700))
    with pytest.raises(FileNotFoundError):
        read_result(row(str(tmp_path / "gone.tar"), 512, 700))


@contextlib.contextmanager
def web_server():
    """A server that knows ranges and keeps what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            span = self.headers.get("Range")
            asked.append((self.command, self.path, span))
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups()) if span else (0, len(CONTENT) - 1)
            data = CONTENT[first : last + 1]
            self.send_response(206 if span else 200)
            if span:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(CONTENT)}")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_one_request_for_the_bytes_alone():
    with web_server() as (url, asked):
        assert read_result(row(f"{url}/shards/a.tar", 512, 700)) == CONTENT[512:1212]
    assert asked == [("GET", "/shards/a.tar", "bytes=512-1211")]
