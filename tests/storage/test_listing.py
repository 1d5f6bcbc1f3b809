import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vbp.errors import UsageError
from vbp.storage.files import Folder
from vbp.storage.leftout import LeftOut
from vbp.storage.listing import list_tree, read_manifest_input


def test_a_tree(folder):
    for name in ("cat/b.JPG", "cat/a.jpeg", "dog/deep/c.tiff", "d.webp", "notes.txt", "cat/._x", "png"):
        folder.write(name, b"123")
    rows = list(list_tree(folder))
    assert [(row.key, row.label, row.size) for row in rows] == [
        ("cat/a.jpeg", "cat", 3),
        ("cat/b.JPG", "cat", 3),
        ("d.webp", None, 3),
        ("dog/deep/c.tiff", "dog", 3),
    ]
    assert [row.path for row in rows] == [row.key.encode() for row in rows]
    assert [row.uri for row in rows] == [folder.uri(row.key) for row in rows]
    assert all(row.version for row in rows)


def test_what_a_tree_leaves_out(folder):
    names = (
        "cat/b.JPG",
        "cat/._b.jpg",
        "cat/c.jfif",
        "cat/d.heic",
        "e",
        "f.none",
        "notes.txt",
        ".ipynb_checkpoints/g.jpg",
    )
    for name in names:
        folder.write(name, b"123")
    left_out = LeftOut()
    assert [row.key for row in list_tree(folder, left_out=left_out)] == ["cat/b.JPG", "cat/c.jfif"]
    assert left_out.counts == {"system": 2, ".heic": 1, "none": 1, ".none": 1, ".txt": 1}
    asked = list_tree(folder, suffixes=(".heic", "none"), left_out=left_out)
    assert [row.key for row in asked] == ["cat/d.heic", "e"]


def test_results_inside_the_input_are_no_input(folder):
    for name in ("a.jpg", "out/masks/a.jpg.png", "outside/b.jpg"):
        folder.write(name, b"")
    assert [row.key for row in list_tree(folder, folder.child("out"))] == ["a.jpg", "outside/b.jpg"]
    assert len(list(list_tree(folder, Folder("/elsewhere")))) == 3


def test_names_that_need_another_key(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"1")
    (row,) = list_tree(Folder(tmp_path))
    assert row.path == b"caf\xe9.jpg"
    assert row.key.endswith("~caf_.jpg")
    assert row.uri == f"{tmp_path}/caf%E9.jpg"


MANIFESTS = {
    "m.txt": b"s3://b/x.jpg\n\n/data/y z.jpg\r\nsub/a::b.jpg\n",
    "m.csv": b'\xef\xbb\xbflabel,uri,other\ncat,s3://b/x.jpg,1\n,/data/y z.jpg,2\n"d,og",sub/a::b.jpg,3\n',
}


@pytest.mark.parametrize(("name", "labels"), [("m.txt", [None] * 3), ("m.csv", ["cat", None, "d,og"])])
def test_text_manifests(folder, name, labels):
    folder.write("in/" + name, MANIFESTS[name])
    rows = list(read_manifest_input(folder.uri("in/" + name), folder._options))
    assert [row.key for row in rows] == ["b/x.jpg", "data/y z.jpg", "sub/a%3A%3Ab.jpg"]
    assert [row.uri for row in rows] == ["s3://b/x.jpg", "/data/y z.jpg", folder.uri("in/sub/a::b.jpg")]
    assert [row.label for row in rows] == labels
    assert [row.path for row in rows] == [None] * 3


def test_parquet_manifest(folder):
    table = pa.table({"x": [1, 2], "label": [7, None], "uri": ["s3://b/x.jpg", "s3://b/y.jpg"], "key": ["../k", None]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    folder.write("m.PARQUET", sink.getvalue().to_pybytes())
    first, second = read_manifest_input(folder.uri("m.PARQUET"), folder._options)
    assert (second.key, second.uri, second.label) == ("b/y.jpg", "s3://b/y.jpg", None)
    assert (first.uri, first.label) == ("s3://b/x.jpg", "7")
    assert first.key.endswith("~__/k")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.csv", b"url\ns3://b/x.jpg\n", "line 2 of .*m.csv has no uri; columns there: url"),
        ("m.csv", b'uri\ns3://b/x.jpg\n\n""\n', "line 4 of .*m.csv has no uri"),
        ("m.csv", b"uri,label\nx.jpg,a\none, two.jpg,b\n", "line 3 has 3 fields, the first line names 2"),
        ("m.csv", b"label,uri\ncat\n", "line 2 of .*m.csv has no uri"),
        ("m.csv", b'uri\n"x.jpg\n', "m.csv cannot be read as csv: .*unexpected end"),
        ("m.csv", b"uri\nx.jpg\ncaf\xe9.jpg\n", "m.csv cannot be read as csv: .*line 3 is not UTF-8"),
        ("m.txt", b"\nx.jpg\ncaf\xe9.jpg\n", "m.txt cannot be read as txt: .*line 3 is not UTF-8"),
        ("m.parquet", b"PAR1 not really", "m.parquet cannot be read as parquet"),
    ],
)
def test_unusable_manifests(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message):
        list(read_manifest_input(str(tmp_path / name)))


@pytest.mark.parametrize("number", [1, 25_000])
def test_bad_rows_of_parquet_are_named(tmp_path, number):
    uris = [f"{n}.jpg" for n in range(30_000)]
    uris[number - 1] = None
    pq.write_table(pa.table({"uri": uris}), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match=f"^row {number} of .*m.parquet has no uri"):
        list(read_manifest_input(str(tmp_path / "m.parquet")))


def test_versions_in_a_manifest(tmp_path):
    (tmp_path / "m.csv").write_text("uri,version\n/a.jpg,e1\n/b.jpg,\n")
    assert [row.version for row in read_manifest_input(str(tmp_path / "m.csv"))] == ["e1", None]


def test_lines_of_csv_may_be_quoted_over_several(tmp_path):
    (tmp_path / "m.csv").write_bytes(b'label,uri\r\n"two\r\nlines",/a.jpg\r\nx,/b.jpg\r\n')
    assert [(row.label, row.key) for row in read_manifest_input(str(tmp_path / "m.csv"))] == [
        ("two\r\nlines", "a.jpg"),
        ("x", "b.jpg"),
    ]


@pytest.mark.parametrize("suffix", ["txt", "csv", "parquet"])
def test_manifests_are_streamed(tmp_path, suffix, monkeypatch):
    """Of a large manifest the first rows come before the last are read."""
    uris = [f"/data/{'x' * 200}/{n}.jpg" for n in range(40_000)]
    path = tmp_path / f"m.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"uri": uris}), path, row_group_size=10_000)
    else:
        path.write_text("uri\n" * (suffix == "csv") + "\n".join(uris) + "\n")
    opened = []

    def remember(uri, options=None):
        opened.append(open(uri, "rb"))  # noqa: SIM115  (the reader closes it)
        return opened[-1]

    monkeypatch.setattr("vbp.storage.listing.open_uri", remember)
    rows = read_manifest_input(str(path))
    assert next(rows).uri == uris[0]
    if suffix != "parquet":  # which begins with its end
        assert opened[0].tell() < path.stat().st_size / 10
    assert sum(1 for _ in rows) == 39_999


def test_parquet_without_the_column(tmp_path):
    pq.write_table(pa.table({"url": ["a"], "x": [1]}), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="no column uri, only url, x"):
        list(read_manifest_input(str(tmp_path / "m.parquet")))


def test_missing_manifest(folder):
    with pytest.raises(FileNotFoundError):
        list(read_manifest_input(folder.uri("m.txt"), folder._options))
