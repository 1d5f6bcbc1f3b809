"""Manifest files of every dialect name the same images, or are refused by name."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vbp.errors import UsageError
from vbp.storage.collections.manifestfile import read_manifest_input
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest.rows import in_order
from vbp.storage.naming import key_of

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
        ("m.csv", b"place\ns3://b/x.jpg\n", r"the manifest has no column uri \(nor url, path, .*\), only place"),
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

    monkeypatch.setattr("vbp.storage.collections.manifestfile.open_uri", remember)
    rows = read_manifest_input(str(path))
    assert next(rows).uri == uris[0]
    if suffix != "parquet":  # which begins with its end
        assert opened[0].tell() < path.stat().st_size / 10
    assert sum(1 for _ in rows) == 39_999


def test_parquet_without_the_column(tmp_path):
    pq.write_table(pa.table({"place": ["a"], "x": [1]}), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="no column uri .*, only place, x"):
        list(read_manifest_input(str(tmp_path / "m.parquet")))


def test_missing_manifest(folder):
    with pytest.raises(FileNotFoundError):
        list(read_manifest_input(folder.uri("m.txt"), folder._options))


HEADERS = ["URL", " Uri ", "path", "file_name", "image", "image-path", "\ufeffuri", "FileName"]


@pytest.mark.parametrize("name", HEADERS)
def test_other_names_of_the_column(tmp_path, name):
    (tmp_path / "m.csv").write_text(f"\n{name},Label \n a.jpg , cat \n", encoding="utf-8")
    pq.write_table(pa.table({name: ["a.jpg"], "Label ": ["cat"]}), tmp_path / "m.parquet")
    for suffix in ("csv", "parquet"):
        (row,) = read_manifest_input(str(tmp_path / f"m.{suffix}"))
        assert (row.key, row.label, row.uri) == ("a.jpg", "cat", f"{tmp_path}/a.jpg")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_other_separators_and_encodings(tmp_path, separator, encoding):
    lines = [["label", "x", "uri"], ["caf\u00e9", "1", f'"a{separator} b.jpg"'], ["dog", "", "c.jpg"]]
    (tmp_path / "m.csv").write_text("\r\n".join(map(separator.join, lines)), encoding=encoding, newline="")
    found = [(row.label, row.key) for row in read_manifest_input(str(tmp_path / "m.csv"))]
    assert found == [
        ("caf\u00e9", key_of(f"a{separator} b.jpg".replace("\t", "%09").replace("|", "%7C"))),
        ("dog", "c.jpg"),
    ]


TEXT = pa.array(["caf\u00e9.jpg"])


@pytest.mark.parametrize(
    "column",
    [TEXT.cast(pa.binary()), TEXT.cast(pa.large_binary()), TEXT.cast(pa.large_string()), TEXT.dictionary_encode()],
)
def test_other_kinds_of_text_in_parquet(tmp_path, column):
    table = pa.table({"uri": column})
    pq.write_table(table, tmp_path / "m.parquet")
    (row,) = read_manifest_input(str(tmp_path / "m.parquet"))
    assert row.uri == f"{tmp_path}/caf\u00e9.jpg"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([7]), "column image holds int64; it must hold the path or URL"),
        (pa.array([{"bytes": b"x", "path": "a.jpg"}]), r"column image holds struct<.*>; it must hold the path or URL"),
        (pa.array([b"\xff\xd8\xff\xe0"]), r"row 1 of .*: its uri is bytes that are no text \(b'\\xff\\xd8"),
    ],
)
def test_columns_that_hold_no_places(tmp_path, column, message):
    pq.write_table(pa.table({"image": column}), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match=message):
        list(read_manifest_input(str(tmp_path / "m.parquet")))


def test_two_columns_that_could_hold_the_places(tmp_path):
    (tmp_path / "m.csv").write_text("file_name,url\na.jpg,s3://b/a.jpg\n")
    with pytest.raises(UsageError, match="columns url and file_name could each be its uri; rename one"):
        list(read_manifest_input(str(tmp_path / "m.csv")))
    (tmp_path / "m.csv").write_text("file_name,uri\na.jpg,s3://b/a.jpg\n")
    assert [row.uri for row in read_manifest_input(str(tmp_path / "m.csv"))] == ["s3://b/a.jpg"]


def test_numbers_beside_nulls_are_labels_without_a_point(tmp_path):
    pq.write_table(pa.table({"uri": ["a.jpg", "b.jpg"], "label": [7.0, None]}), tmp_path / "m.parquet")
    assert [row.label for row in read_manifest_input(str(tmp_path / "m.parquet"))] == ["7", None]


def test_relative_places_go_up_from_the_manifests_folder(folder):
    folder.write("in/lists/m.txt", b"../photos/a.jpg\nb..jpg\n")
    rows = list(read_manifest_input(folder.uri("in/lists/m.txt"), folder._options))
    root = folder.uri("in/lists/..") if folder.is_local else folder.uri("in")
    assert [row.uri for row in rows] == [f"{root}/photos/a.jpg", folder.uri("in/lists/b..jpg")]


def test_a_damaged_page_of_parquet(tmp_path):
    pq.write_table(pa.table({"uri": [f"{n}.jpg" for n in range(1000)]}), tmp_path / "m.parquet")
    data = bytearray((tmp_path / "m.parquet").read_bytes())
    data[4:60] = bytes(56)
    (tmp_path / "m.parquet").write_bytes(data)
    with pytest.raises(UsageError, match=r"m.parquet cannot be read as parquet"):
        list(read_manifest_input(str(tmp_path / "m.parquet")))


def test_an_image_with_two_labels_is_refused_and_one_that_is_repeated_counted(tmp_path):
    (tmp_path / "m.csv").write_text("uri,label\na.jpg,cat\na.jpg,cat\nb.jpg,dog\n")
    left_out = LeftOut()
    rows = in_order(read_manifest_input(str(tmp_path / "m.csv")), left_out)
    assert [row.key for row in rows] == ["a.jpg", "b.jpg"]
    assert left_out.counts == {"repeated": 1}
    (tmp_path / "m.csv").write_text("uri,label\na.jpg,cat\na.jpg,dog\n")
    with pytest.raises(UsageError, match=r"names .*/a.jpg twice, with the labels 'cat' and 'dog'"):
        list(in_order(read_manifest_input(str(tmp_path / "m.csv"))))


def test_a_name_may_begin_as_a_home_does(tmp_path):
    (tmp_path / "m.txt").write_text("~backup.jpg\n~/a.jpg\n")
    assert [row.uri for row in read_manifest_input(str(tmp_path / "m.txt"))] == [f"{tmp_path}/~backup.jpg", "~/a.jpg"]
