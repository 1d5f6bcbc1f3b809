import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vbp.errors import StorageError, UsageError
from vbp.storage import sorting
from vbp.storage.collections.manifestfile import read_manifest_input
from vbp.storage.files import Folder
from vbp.storage.manifest import manifest as module
from vbp.storage.manifest import rows
from vbp.storage.manifest.manifest import Manifest, ManifestRow, write_manifest
from vbp.storage.manifest.refresh import refresh_manifest


def tree(*numbers):
    """Rows as of a tree, in the order of their paths."""
    return [
        ManifestRow(f"c{n % 3}/{n:07d}.jpg", f"/in/c{n % 3}/{n:07d}.jpg", b"%07d" % n, f"c{n % 3}", n, str(n))
        for n in sorted(numbers)
    ]


def listed(*keys):
    """Rows as of a manifest file, in any order."""
    return [ManifestRow(key, f"s3://b/{key}", None, None) for key in keys]


def keys_of(manifest):
    return [manifest.read_shard(shard)["key"].to_pylist() for shard in range(manifest.shards)]


def test_write_load_read(folder):
    manifest = write_manifest(folder, tree(*range(10)), 4, input="/in")
    assert (manifest.images, manifest.shards, manifest.labels) == (10, 3, ("c0", "c1", "c2"))
    assert manifest.complete
    assert manifest.labels_complete
    assert Manifest.load(folder) == Manifest.load(folder)
    loaded = Manifest.load(folder)
    assert (loaded.listings, loaded.input, loaded.limit, loaded.listed_at) == ((10,), "/in", None, manifest.listed_at)
    assert [(loaded.shard_start(s), loaded.shard_images(s)) for s in range(3)] == [(0, 4), (4, 4), (8, 2)]
    table = loaded.read_shard(2)
    assert table.schema.field("position").type == pa.int32()
    assert table.to_pylist() == [
        {
            "key": f"c{n % 3}/{n:07d}.jpg",
            "uri": f"/in/c{n % 3}/{n:07d}.jpg",
            "path": b"%07d" % n,
            "label": f"c{n % 3}",
            "size": n,
            "version": str(n),
            "gone": False,
            "position": n - 8,
        }
        for n in (8, 9)
    ]
    with pytest.raises(IndexError, match="shard 3"):
        loaded.read_shard(3)


def test_no_manifest_before_its_end(folder):
    assert Manifest.load(folder) is None
    write_manifest(folder, tree(1, 2), 1)

    def broken():
        yield from tree(1, 2, 3)
        raise OSError("the listing broke off")

    with pytest.raises(OSError, match="broke off"):
        write_manifest(folder, broken(), 1)
    assert Manifest.load(folder) is None
    assert write_manifest(folder, tree(5), 1).images == 1
    assert len(folder.list("_run/manifest")) == 1


def test_no_file_is_changed_nor_its_name_used_again(tmp_path):
    """In an object store a write or a deletion may come late, when another run has listed."""
    folder, seen = Folder(tmp_path), {}

    def look():
        for path in folder.list("_run/manifest"):
            assert seen.setdefault(path, folder.read(path)) == folder.read(path)
        return len(seen)

    for count in (1, 2):
        manifest = write_manifest(folder, tree(1), 1)
        assert look() == count
    changed = [tree(1)[0]._replace(version="changed"), *tree(2)]
    longer, _ = refresh_manifest(folder, manifest, changed, forget=lambda shard, rows: None)
    assert look() == 4
    assert list(longer.rows()) == list(Manifest.load(folder).rows()) == changed
    assert len(folder.list("_run/manifest")) == 2


def as_an_older_vbp_left_it(folder, manifest):
    """The files of all listings numbered on, and a record that does not name them."""
    for number, name in enumerate(manifest.files):
        folder.write(f"_run/manifest/part-{number:05d}.parquet", folder.read(f"_run/manifest/{name}"))
        folder.delete(f"_run/manifest/{name}")
    record = json.loads(folder.read("_run/manifest.json"))
    folder.write("_run/manifest.json", json.dumps({k: v for k, v in record.items() if k != "files"}).encode())
    return Manifest.load(folder)


def test_the_files_of_an_older_vbp_are_read_and_refreshed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARDS_PER_PART", 2)
    folder = Folder(tmp_path)
    manifest, _ = refresh_manifest(folder, write_manifest(folder, tree(*range(0, 10, 2)), 2), tree(*range(12)))
    before = list(manifest.rows())
    manifest = as_an_older_vbp_left_it(folder, manifest)
    assert list(manifest.rows()) == before
    folder.write("_run/manifest/part-00004.parquet", b"of a listing that was cut off")
    longer, changes = refresh_manifest(folder, manifest, tree(*range(14)))
    assert changes.new == 2
    assert list(Manifest.load(folder).rows())[:12] == before
    assert sorted(f"_run/manifest/{name}" for name in longer.files) == folder.list("_run/manifest")
    assert len(longer.files) == 5


@pytest.mark.parametrize("files", [[], ["../../masks/a.png"], ["part-00000.parquet"] * 2, [1], "part-00000.parquet"])
def test_names_that_no_file_of_it_has_are_told(tmp_path, files):
    folder = Folder(tmp_path)
    write_manifest(folder, tree(1), 1)
    record = json.loads(folder.read("_run/manifest.json"))
    folder.write("_run/manifest.json", json.dumps(record | {"files": files}).encode())
    with pytest.raises(StorageError, match=r"manifest\.json is damaged \(files is "):
        Manifest.load(folder)


def test_a_damaged_manifest_is_told(tmp_path):
    Folder(tmp_path).write("_run/manifest.json", b"{")
    with pytest.raises(StorageError, match="manifest.json is damaged"):
        Manifest.load(Folder(tmp_path))


LACKING = {
    "a column is gone": lambda table: table.drop_columns("path"),
    "keys of another type": lambda table: table.set_column(0, "key", pa.array(range(len(table)))),
    "versions of another type": lambda table: table.set_column(5, "version", pa.array(range(len(table)))),
    "no uri": lambda table: table.set_column(1, "uri", pa.nulls(len(table), pa.string())),
    "a row too few": lambda table: table.slice(1),
}


@pytest.mark.parametrize("change", LACKING)
def test_columns_that_are_not_what_was_written_are_a_sentence(tmp_path, change):
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, tree(*range(3)), 4)
    (path,) = tmp_path.glob("_run/manifest/*.parquet")
    pq.write_table(LACKING[change](pq.read_table(path)), path)
    for look in (lambda: manifest.read_shard(0), lambda: refresh_manifest(folder, manifest, tree(*range(4)))):
        with pytest.raises(UsageError, match=r"-00000\.parquet is damaged \(.*shard 0"):
            look()


def test_a_manifest_of_the_first_versions_knows_neither_size_nor_version(tmp_path):
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, tree(*range(3)), 4)
    (path,) = tmp_path.glob("_run/manifest/*.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["size", "version"]), path)
    assert {(row.size, row.version) for row in manifest.rows()} == {(None, None)}
    assert refresh_manifest(folder, manifest, tree(*range(4)))[1] == (1, 0, 0, 0, 0)


def test_nothing_to_list(folder):
    manifest = write_manifest(folder, [], 4)
    assert (manifest.images, manifest.shards, manifest.labels) == (0, 0, ())
    assert Manifest.load(folder).images == 0


@pytest.mark.parametrize(("limit", "images", "complete"), [(0, 0, False), (3, 3, False), (5, 5, True), (9, 5, True)])
def test_limit(tmp_path, limit, images, complete):
    manifest = write_manifest(Folder(tmp_path), tree(*range(5)), 2, limit=limit)
    assert (manifest.images, manifest.complete, manifest.limit) == (images, complete, limit)


def test_many_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARDS_PER_PART", 2)
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, tree(*range(0, 22, 2)), 2)
    assert manifest.shards == 6
    assert len(folder.list("_run/manifest")) == 3
    manifest, _ = refresh_manifest(folder, manifest, tree(*range(25)))
    assert manifest.listings == (11, 14)
    manifest, _ = refresh_manifest(folder, Manifest.load(folder), tree(*range(27)))
    assert manifest.listings == (11, 14, 2)
    assert manifest.shards == 6 + 7 + 1
    assert [key for shard in keys_of(manifest) for key in shard] == [
        row.key for part in (range(0, 22, 2), [*range(1, 22, 2), 22, 23, 24], [25, 26]) for row in tree(*part)
    ]
    assert [manifest.shard_start(shard) for shard in (0, 5, 6, 12, 13)] == [0, 10, 11, 23, 25]
    assert [manifest.shard_images(shard) for shard in (0, 5, 6, 12, 13)] == [2, 1, 2, 2, 2]


@pytest.mark.parametrize("in_memory", [2, 1000])
def test_a_manifest_file_in_any_order(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(sorting, "ITEMS_IN_MEMORY", in_memory)
    folder = Folder(tmp_path)
    manifest = write_manifest(folder, listed("d", "é", "a", "c", "a", "b"), 10)
    assert keys_of(manifest) == [["a", "b", "c", "d", "é"]]
    manifest, _ = refresh_manifest(folder, manifest, listed("z", "c", "a", "0"))
    assert keys_of(manifest) == [["a", "b", "c", "d", "é"], ["0", "z"]]
    assert manifest.read_shard(0)["path"].null_count == 5


def test_two_images_of_one_key(tmp_path):
    rows = [ManifestRow("k", "s3://b/x", None, None), ManifestRow("k", "s3://b/y", None, None)]
    with pytest.raises(UsageError, match="key 'k': s3://b/x and s3://b/y"):
        write_manifest(Folder(tmp_path), rows, 10)


def test_too_many_labels_are_cut_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LABELS", 2)
    monkeypatch.setattr(rows, "MAX_LABELS", 2)
    manifest = write_manifest(Folder(tmp_path), tree(*range(10)), 3)
    assert manifest.labels == ("c0", "c1")
    assert not manifest.labels_complete


def test_too_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SHARDS", 2)
    with pytest.raises(UsageError, match="larger --shard-size"):
        write_manifest(Folder(tmp_path), tree(*range(7)), 3)
    with pytest.raises(UsageError, match="shard size"):
        write_manifest(Folder(tmp_path), tree(1), 0)


MEMORY = """
import resource, sys
from vbp.storage.files import Folder
from vbp.storage.manifest.manifest import ManifestRow, write_manifest
from vbp.storage.manifest.refresh import refresh_manifest

def rows(count, step):
    for n in range(0, count, step):
        path = f"class{n // 1000:05d}/image{n:09d}.jpg"
        yield ManifestRow(path, "s3://bucket/photos/" + path, path.encode(), path[:10], n, f"etag{n}")

count = int(sys.argv[1])
output = Folder(sys.argv[2])
manifest = write_manifest(output, rows(count, 2), 1024)
manifest, _ = refresh_manifest(output, manifest, rows(count, 1))
assert manifest.images == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_collection(tmp_path):
    def peak(count):
        argv = [sys.executable, "-c", MEMORY, str(count), str(tmp_path / str(count))]
        return int(subprocess.run(argv, capture_output=True, check=True).stdout)

    small, large = peak(20_000), peak(200_000)
    print(f"peak memory: {small // 1024} MB for 20,000 images, {large // 1024} MB for 200,000")  # noqa: T201
    assert large < small + 60 * 1024


def test_images_that_differ_by_the_query_alone_need_keys_and_a_version_is_kept(tmp_path):
    path = tmp_path / "images.txt"
    path.write_text("https://h/a.jpg?versionId=7&sig=word\nhttps://h/b.jpg?id=1\n")
    rows = list(read_manifest_input(str(path)))
    assert [(row.key, row.version) for row in rows] == [("h/a.jpg", "7"), ("h/b.jpg", None)]
    assert rows[0].uri.endswith("?versionId=7&sig=word")  # it is read by
    path.write_text("https://h/a.jpg?id=1&sig=word\nhttps://h/a.jpg?id=2&sig=word\n")
    with pytest.raises(UsageError, match=r"'h/a.jpg': https://h/a.jpg with two queries.*give each a key") as caught:
        write_manifest(Folder(tmp_path / "out"), read_manifest_input(str(path)), 10)
    assert "word" not in str(caught.value)
