"""The contract of every store, tested with every implementation and every kind of server that is installed."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from vbp.storage.files import Folder, read_uri

NAMES = [
    "x::y.jpg", "::", "a[1].jpg", "b?.jpg", "b*.jpg", "{0}.jpg", "c#d.jpg", "50%.jpg", "50%25.jpg", " space .jpg",
    "é/日本/😀.jpg", "e\u0301.jpg", "+plus&amp;.jpg", "'quote\".jpg", "<&>.jpg", "semi;colon,=.jpg", "~home.jpg",
    "a-b", "a.jpg", "a/x", "a/y/z", "a0", "$HOME.jpg", "deep/er/and/deep/er/x.jpg",
]  # fmt: skip
CONTROL = ["new\nline.jpg", "tab\t.jpg"]


def test_names_are_only_names(any_store, request):
    # rclone and Azurite cannot keep control characters
    names = NAMES + ([] if "careless" in request.node.name or "[az" in request.node.name else CONTROL)
    for name in names:
        any_store.write(name, name.encode())
    assert any_store.list() == sorted(names, key=str.encode)
    assert [file.size for file in any_store.walk()] == [len(name.encode()) for name in any_store.list()]
    assert all(file.version for file in any_store.walk())
    for name in names:
        assert any_store.read(name) == name.encode()
        assert any_store.exists(name)
        assert read_uri(any_store.uri(name), any_store._options) == name.encode()
    assert any_store.list("a") == ["a/x", "a/y/z"]
    for name in names:
        any_store.delete(name)
    assert any_store.list() == []


def test_read_write_delete(any_store):
    any_store.write("a/b", b"old")
    any_store.write("a/b", b"new")
    assert any_store.read("a/b") == b"new"
    assert not any_store.exists("a")
    any_store.write("empty", b"")
    assert any_store.read("empty") == b""
    assert any_store.list() == ["a/b", "empty"]
    assert any_store.first().path in any_store.list()
    assert any_store.child("a").first().path == "b"
    any_store.delete("a/b")
    any_store.delete("a/b")
    assert any_store.list() == ["empty"]
    with pytest.raises(FileNotFoundError, match="a/b"):
        any_store.read("a/b")


def test_pieces(any_store):
    data = bytes(range(256)) * 3500
    any_store.write("big", data)
    with any_store.open("big") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]
        file.seek(300_001)
        assert file.read(500_000) == data[300_001:800_001]


def test_create_has_one_winner(any_store, request):
    if "careless" in request.node.name:
        pytest.skip("this server ignores If-None-Match")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: any_store.create("one", str(number).encode()), range(16)))
    assert sum(won) == 1
    assert any_store.read("one") == str(won.index(True)).encode()


def test_missing_buckets(any_store, request):
    if "adlfs" in request.node.name:
        pytest.skip("adlfs lists a container that is not there as an empty one")
    if "sftp" in request.node.name:
        pytest.skip("a server has no buckets")
    url = re.sub(r"://[^/]+", "://vbp-nowhere", any_store.url)
    with pytest.raises(FileNotFoundError, match="vbp-nowhere"):
        list(Folder(url, any_store._options).walk())
