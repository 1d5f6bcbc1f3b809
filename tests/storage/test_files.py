import functools
import http.server
import importlib
import io
import os
import pickle
import re
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from vbp.errors import StorageError, UsageError
from vbp.storage.files import Folder, read_uri

TRAPS = [
    "x::y.jpg",
    "::",
    "a[1].jpg",
    "b?.jpg",
    "b*.jpg",
    "{0}.jpg",
    "c#d.jpg",
    "50%.jpg",
    "50%25.jpg",
    "new\nline.jpg",
    "tab\t.jpg",
    "\x01control.jpg",
    " space .jpg",
    "é/日本/😀.jpg",
    "e\u0301.jpg",
    "\u2028.jpg",
    "+plus&amp;.jpg",
    "'quote\".jpg",
    "<&>.jpg",
    "semi;colon,=.jpg",
    "~home.jpg",
    "$HOME.jpg",
    "..jpg",
    "dots../...jpg",
    "deep/er/and/deep/er/x.jpg",
    "n" * 251 + ".jpg",
]


@pytest.mark.parametrize("name", TRAPS)
def test_a_name_is_only_a_name(folder, name):
    neighbours = ["x", "y.jpg", "a1.jpg", "bb.jpg", "c", "50%.jp", "d"]
    for neighbour in neighbours:
        folder.write(neighbour, b"another")
    folder.write(name, b"mine")
    assert folder.read(name) == b"mine"
    assert folder.exists(name)
    assert read_uri(folder.uri(name), folder._options) == b"mine"
    with folder.open(name) as file:
        assert file.read() == b"mine"
    assert [file.path for file in folder.walk()] == sorted([*neighbours, name], key=str.encode)
    assert folder.list() == [file.path for file in folder.walk()]
    assert not folder.create(name, b"other")
    folder.delete(name)
    assert not folder.exists(name)
    assert all(folder.read(neighbour) == b"another" for neighbour in neighbours)


def test_a_folder_may_have_any_name_too(folder):
    odd = Folder(folder.uri("x::y [1]?*#%"), folder._options)
    odd.write("a/b.jpg", b"1")
    child = odd.child("a")
    assert child.read("b.jpg") == b"1"
    assert child.list() == ["b.jpg"]
    assert pickle.loads(pickle.dumps(child)).read("b.jpg") == b"1"
    assert folder.list() == ["x::y [1]?*#%/a/b.jpg"]


def test_read_write_delete(folder):
    folder.write("a/b", b"old")
    folder.write("a/b", b"new")
    assert folder.read("a/b") == b"new"
    assert folder.list() == ["a/b"]
    assert not folder.exists("a")
    folder.write("empty", b"")
    assert folder.read("empty") == b""
    folder.delete("a/b")
    folder.delete("a/b")
    assert folder.list() == ["empty"]
    with pytest.raises(FileNotFoundError, match="a/b"):
        folder.read("a/b")
    with pytest.raises(FileNotFoundError):
        folder.open("a/b")


def test_walk_and_list_in_byte_order(folder):
    names = ["a-b", "a.jpg", "a/x", "a/y/z", "a0", "b/c", "é", "\uffff", "😀"]
    for name in reversed(names):
        folder.write(name, name.encode())
    files = list(folder.walk())
    assert [file.path for file in files] == names
    assert [file.size for file in files] == [len(name.encode()) for name in names]
    assert all(file.version for file in files)
    assert folder.list("a") == ["a/x", "a/y/z"]
    assert folder.list("missing") == []
    before = {file.path: file.version for file in files}
    folder.write("a0", b"changed")
    after = {file.path: file.version for file in folder.walk()}
    assert {path for path in names if after[path] != before[path]} == {"a0"}


def test_open_reads_here_and_there(folder):
    data = bytes(range(256)) * 20_000
    folder.write("big", data)
    with folder.open("big") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]
        file.seek(1_000_001)
        assert file.read(2_000_000) == data[1_000_001:3_000_001]
        file.seek(0)
        assert file.read() == data


def test_create_has_one_winner(folder):
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: folder.create("one", str(i).encode()), range(16)))
    assert sum(won) == 1
    assert folder.read("one") == str(won.index(True)).encode()


def test_many_threads_make_the_same_folders(folder):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: folder.write(f"new/deep/{i}", b"x"), range(64)))
    assert len(folder.list("new/deep")) == 64


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_usable_in_a_forked_process(folder):
    folder.write("a", b"1")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if folder.read("a") == b"1" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_pickle_carries_url_and_options_only(folder):
    folder.write("a", b"1")
    data = pickle.dumps(folder)
    assert pickle.loads(data).read("a") == b"1"
    assert b"testsecret" not in data
    assert len(data) < 500


def test_missing_bucket(s3_server):
    nowhere = Folder("s3://vbp-nowhere/x", s3_server.storage_options)
    with pytest.raises(FileNotFoundError, match="s3://vbp-nowhere/x: .*bucket does not exist"):
        list(nowhere.walk())
    with pytest.raises(FileNotFoundError, match="bucket"):
        nowhere.read("a")
    with pytest.raises(StorageError, match="cannot write s3://vbp-nowhere/x/a: .*bucket does not exist"):
        nowhere.write("a", b"")


def test_wrong_credentials(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verywrong")
    stranger = Folder(s3_server.new_url(), {"s3://": {"endpoint_url": s3_server.endpoint + "/"}})
    with pytest.raises(PermissionError, match="signature") as caught:
        stranger.read("a")
    assert "verywrong" not in str(caught.value)
    with pytest.raises(StorageError, match="signature"):
        stranger.write("a", b"")
    with pytest.raises(PermissionError):
        list(stranger.walk())


def test_markers_of_folders_are_no_files(s3_server):
    url = s3_server.new_url()
    prefix = url.removeprefix("s3://").partition("/")[2]
    client = s3_server.client()
    for key in ("", "album/", "album/a.jpg"):
        client.put_object(Bucket="vbp-test", Key=f"{prefix}/{key}", Body=b"")
    client.close()
    assert Folder(url, s3_server.storage_options).list() == ["album/a.jpg"]


def test_listings_are_never_stale(s3_server):
    url = s3_server.new_url()
    mine, theirs = (Folder(url, s3_server.storage_options) for _ in range(2))
    mine.write("a", b"1")
    assert mine.list() == ["a"]
    theirs.write("b", b"1")
    theirs.write("a", b"22")
    assert mine.exists("b")
    assert mine.list() == ["a", "b"]
    assert mine.read("a") == b"22"


def test_a_paused_server_delays_but_does_not_fail(s3_server):
    options = {"s3://": {"endpoint_url": s3_server.endpoint, "config_kwargs": {"read_timeout": 1}}}
    folder = Folder(s3_server.new_url(), options)
    folder.write("a", b"1")
    s3_server.pause()
    try:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(folder.read, "a")
            with pytest.raises(TimeoutError):
                answer.result(timeout=1.5)
            s3_server.resume()
            assert answer.result() == b"1"
    finally:
        s3_server.resume()


def test_archive_behind_a_chain(folder):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("photos/x/a[1].jpg", b"one")
        file.writestr("photos/b.jpg", b"two")
    folder.write("a.zip", archive.getvalue())
    inside = Folder("zip://photos::" + folder.uri("a.zip"), folder._options)
    assert inside.list() == ["b.jpg", "x/a[1].jpg"]
    assert inside.first().path in inside.list()
    assert inside.read("x/a[1].jpg") == b"one"
    assert inside.uri("b.jpg") == "zip://photos/b.jpg::" + folder.uri("a.zip")
    assert inside.child("x").read("a[1].jpg") == b"one"
    assert read_uri(inside.uri("b.jpg"), folder._options) == b"two"


def test_archive_by_a_relative_path(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("b.jpg", b"one")
    monkeypatch.chdir(tmp_path)
    inside = Folder("zip://::a.zip")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(inside)).read("b.jpg") == b"one"
    assert inside.uri("b.jpg") == f"zip://b.jpg::{tmp_path}/a.zip"
    assert read_uri(f"zip://b.jpg::{tmp_path}/a.zip") == b"one"


def test_other_filesystems():
    memory = Folder("memory://vbp/x")
    memory.write("a/b c#.jpg", b"1")
    assert memory.list() == [memory.first().path] == ["a/b c#.jpg"]
    for name in ("a-b/x", "a.b", "a/a", "b"):
        memory.write(name, b"22")
    files = list(memory.walk())
    assert [file.path for file in files] == ["a-b/x", "a.b", "a/a", "a/b c#.jpg", "b"]
    assert [file.size for file in files] == [2, 2, 2, 1, 2]
    assert memory.list("a") == ["a/a", "a/b c#.jpg"]
    assert memory.read("a/b c#.jpg") == read_uri(memory.uri("a/b c#.jpg")) == b"1"
    assert memory.create("new", b"1")
    assert not memory.create("new", b"2")
    memory.delete("new")
    memory.delete("new")
    assert not memory.exists("new")
    assert not memory.is_local


def test_web_server(tmp_path):
    names = ["Z.jpg", "al bum/50% [1]?#é.jpg", "al bum.jpg", "al-bum/a/b/c.jpg", "z.jpg", "é.jpg"]
    for name in names:
        Folder(tmp_path).write(name, b"1")
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web = Folder(f"http://127.0.0.1:{server.server_port}/")
        assert [file.path for file in web.walk()] == sorted(names, key=str.encode)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            list(web.child("nowhere").walk())
        assert web.first() in list(web.walk())
        assert web.read("al bum/50% [1]?#é.jpg") == b"1"
        assert read_uri(web.uri("al bum/50% [1]?#é.jpg")) == b"1"
        with pytest.raises(FileNotFoundError, match="http://127"):
            web.read("none.jpg")
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_local_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Folder("photos").url == f"{tmp_path}/photos"
    assert Folder("photos/").uri("a b.jpg") == f"{tmp_path}/photos/a b.jpg"
    assert Folder("~/photos").url == f"{tmp_path}/home/photos"
    assert Folder(f"file://{tmp_path}/photos").url == f"{tmp_path}/photos"
    assert Folder("odd::name").url == f"{tmp_path}/odd::name"
    assert Folder("/").uri("etc") == "/etc"
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    assert Folder("link/../photos").url == f"{tmp_path.resolve()}/far/photos"
    assert Folder("photos").is_local
    assert Folder("a::/b").url == f"{tmp_path}/a::/b"
    assert Folder("s3://bucket/").url == "s3://bucket"
    (tmp_path / "a").write_bytes(b"1")
    assert read_uri("a") == read_uri(f"file://{tmp_path}/a") == b"1"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", "names no bucket"),
        ("nonsense://x", "nonsense"),
        ("sftp://me:word@host/x", "must not hold a password"),
    ],
)
def test_unusable_urls(url, message):
    with pytest.raises(UsageError, match=message) as caught:
        Folder(url)
    assert "word@" not in str(caught.value)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=re.escape("pip install 'visualbackprop[s3]'")):
        Folder("s3://some-bucket-not-seen-before/x")


def test_version_ids_are_names_for_obstore_and_refused_for_s3fs(s3_server):
    folder = Folder(s3_server.new_url(), s3_server.storage_options)
    folder.write("a?versionId=1.jpg", b"1")
    assert folder.read("a?versionId=1.jpg") == b"1"
    with pytest.raises(StorageError, match="versionId"):
        Folder(folder.url, s3_server.s3fs_options).read("a?versionId=1.jpg")


@pytest.mark.parametrize(
    "uri", ["a\0b.jpg", "../a\0b.jpg", "simplecache::/tmp/x.jpg", "dir::x::y", "foo://x", "/tmp/../a\0"]
)
def test_what_names_no_file_is_an_error_of_its_own(uri):
    with pytest.raises((FileNotFoundError, UsageError)):
        read_uri(uri)
