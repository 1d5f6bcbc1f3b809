"""A tree that several workers list gives the manifest that one process gives, whatever the workers do."""

import json
import os
import random
from pathlib import Path

import pytest

from tests.spreads import wildly
from vbp.errors import StorageError, UsageError
from vbp.storage.collections.tree import IMAGE_SUFFIXES, list_tree
from vbp.storage.files import Folder
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest import manifest as manifest_module
from vbp.storage.manifest import stretches as module
from vbp.storage.manifest.manifest import Manifest, write_manifest
from vbp.storage.manifest.refresh import refresh_manifest
from vbp.storage.manifest.stretches import Piece, Rest
from vbp.storage.spreading import here, ignored
from vbp.storage.stores import branches, local

NAMES = (
    b"a",
    b"a.b",
    b"a-",
    b"a0",
    b"A",
    b"\xe9",
    "é".encode(),
    b"\xff\xfe",
    b"~",
    b" ",
    b"z" * 200,
    b".x",
    b"lost+found",
)
ENDS = (b".jpg", b".PNG", b".txt", b"", b".0001", b".0002", b".heic")


class Killed(BaseException):
    """As SIGKILL, nothing may be done about it."""


def grown(folder, rng, depth=3, above=None):
    """Files and folders with names that sort around the slash, empty folders, and links to folders and to oneself."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in rng.sample(NAMES, rng.randint(0, 7)):
        place = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        if depth and rng.random() < 0.5:
            grown(place, rng, depth - 1, folder)
        elif rng.random() < 0.1:
            place.symlink_to(rng.choice([folder, above or folder, folder / "nowhere", "."]))
    for number in range(rng.choice([0, 1, 3, 20])):
        name = b"%s%d%s" % (rng.choice(NAMES)[:5], number, rng.choice(ENDS[:3] if rng.random() < 0.9 else ENDS))
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"." * number)


def unchecked(rows):
    return rows


def rest_of(tree, output, left_out, spread, check=unchecked, told=lambda images: None, stop=lambda: None):
    return Rest(spread, Folder(tree), output, IMAGE_SUFFIXES, check, left_out, told, stop)


def rows_of(tree, left_out):
    return list_tree(Folder(tree), left_out=left_out)


@pytest.fixture
def small(monkeypatch):
    """Small numbers for everything, so that small trees are cut often."""

    def shrink(rng):
        monkeypatch.setattr(module, "ALONE", rng.choice([1, 4, 9]))
        monkeypatch.setattr(module, "TASKS", rng.choice([2, 5, 100]))
        monkeypatch.setattr(module, "_ROWS_AT_ONCE", rng.choice([1, 3, 100]))
        monkeypatch.setattr(module, "_GROUPS_IN_FILE", rng.choice([1, 2]))
        monkeypatch.setattr(branches, "ENOUGH", rng.choice([2, 10, 100]))
        monkeypatch.setattr(local, "LOOSE", rng.choice([4, 100]))
        monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", rng.choice([1, 2]))

    return shrink


def content(output):
    """All that a listing leaves, without its random names and its time."""
    record = json.loads(output.read("_run/manifest.json"))
    names = record.pop("files")
    files = [output.read(f"_run/manifest/{name}") for name in names]
    assert sorted(f"_run/manifest/{name}" for name in names) == output.list("_run/manifest")
    return {name: value for name, value in record.items() if name not in ("id", "listed_at")}, files


def changed(tree, rng):
    """Images that come, go, and change."""
    found = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in rng.sample(found, len(found) // 3):
        path.unlink() if rng.random() < 0.5 else path.write_bytes(b"another")
    grown(tree / "new", rng, 1)


@pytest.mark.parametrize("seed", range(12))
def test_the_manifest_is_that_of_one_process(tmp_path, small, seed):
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    small(rng)
    tree, size = tmp_path / "tree", rng.choice([1, 2, 5])
    grown(tree, rng)
    one, other = Folder(tmp_path / "one"), Folder(tmp_path / "other")

    for round_ in range(2):
        found = {}
        for output in (one, other):
            left_out = LeftOut()
            rest = rest_of(tree, output, left_out, wildly(rng)) if output is other else None
            rows = rows_of(tree, left_out)
            if not round_:
                write_manifest(output, rows, size, left_out=left_out, rest=rest)
                found[output] = content(output)
            else:
                rows = rows if rest is None else rest.rows(rows)
                forgotten = []
                _, changes = refresh_manifest(
                    output,
                    Manifest.load(output),
                    rows,
                    forget=lambda shard, rows, forgotten=forgotten: forgotten.append((shard, dict(rows))),
                    left_out=left_out,
                )
                found[output] = content(output), changes, sorted(forgotten, key=repr)
        assert found[one] == found[other]
        changed(tree, rng)
    labels = {row.label for row in rows_of(tree, LeftOut())} - {None}
    assert rest_of(tree, other, LeftOut(), wildly(rng)).labels(rows_of(tree, LeftOut())) == labels


def test_on_any_store(folder, monkeypatch):
    monkeypatch.setattr(module, "ALONE", 2)
    monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", 2)
    tree = folder.child("in")
    for name in ("a/1", "a.b/1", "a.b/2", "c/d/1", "c/e/1", "c/e/2", "f"):
        tree.write(f"{name}.jpg", b"1")
        tree.write(f"{name}.txt", b"1")
    found = []
    for output in (folder.child("one"), folder.child("other")):
        left_out = LeftOut()
        rest = Rest(here, tree, output, IMAGE_SUFFIXES, unchecked, left_out, ignored, lambda: None) if found else None
        rows = list_tree(tree, left_out=left_out)
        manifest = write_manifest(output, rows, 1, left_out=left_out, rest=rest)
        found.append((content(output), manifest.images, manifest.left_out))
    assert found[0] == found[1]
    assert found[0][1:] == (7, {".txt": 7})


def test_it_is_cut_up_and_told_and_the_listing_here_ends(tmp_path, monkeypatch):
    """The other tests would pass too if one process listed all."""
    monkeypatch.setattr(module, "ALONE", 2)
    monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", 1)
    for folder in ("a", "b", "c"):
        for number in range(3):
            Folder(tmp_path / "in").write(f"{folder}/{number}.jpg", b"1")
    calls, told, ended = [], [], []

    def spread(function, arguments, done=None):
        for argument in arguments:
            calls.append((function.__name__, argument))
            result = function(argument)
            if done:
                done(result)
            yield result

    rest = rest_of(
        tmp_path / "in", Folder(tmp_path / "out"), LeftOut(), spread, told=told.append, stop=lambda: ended.append(1)
    )
    manifest = write_manifest(Folder(tmp_path / "out"), rows_of(tmp_path / "in", LeftOut()), 2, rest=rest)
    assert [row.key for row in manifest.rows()] == [f"{folder}/{number}.jpg" for folder in "abc" for number in range(3)]
    names = [name for name, _ in calls]
    assert names.count("list_stretch") == 3
    assert names.count("make_file") == 4 == len(manifest.names) - 1
    assert told == [3, 6, 9]
    assert ended == [1]


def test_killed_at_any_point_nothing_half_counts_and_the_next_listing_cleans_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ALONE", 1)
    monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", 1)
    for name in ("a/1", "b/1", "b/2", "c/1", "c/2", "c/3"):
        Folder(tmp_path / "in").write(f"{name}.jpg", b"1")
    output, expected = Folder(tmp_path / "out"), Folder(tmp_path / "expected")
    write_manifest(expected, rows_of(tmp_path / "in", LeftOut()), 2)
    for calls in range(100):
        left = iter(range(calls))

        def spread(function, arguments, done=None, left=left):
            for argument in arguments:
                result = function(argument)  # a worker may have done it when the driver is killed
                if next(left, None) is None:
                    raise Killed
                yield result

        try:
            rest = rest_of(tmp_path / "in", output, LeftOut(), spread)
            write_manifest(output, rows_of(tmp_path / "in", LeftOut()), 2, rest=rest)
        except Killed:
            assert Manifest.load(output) is None
            assert len(output.list("_run/manifest")) > calls
        else:
            break
    assert calls == 4  # two stretches behind the first file, and two files
    assert content(output) == content(expected)


def test_a_folder_that_is_gone_or_forbidden_is_named_as_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ALONE", 1)
    monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", 1)
    for folder in ("a", "b", "c/d", "e"):
        Folder(tmp_path / "in").write(f"{folder}/1.jpg", b"1")
    said = []
    for output in (Folder(tmp_path / "one"), Folder(tmp_path / "other")):
        rows = rows_of(tmp_path / "in", LeftOut())
        rest = rest_of(tmp_path / "in", output, LeftOut(), lost) if output.url.endswith("other") else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "scandir", forbidding(b"/in/c/d/"))
            with pytest.raises(StorageError) as caught:
                write_manifest(output, rows, 1, rest=rest)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert said[0].endswith("/in/c/d: Permission denied")


def lost(function, arguments, done=None):
    return map(function, arguments)


def forbidding(end):
    scandir = os.scandir

    def look(path):
        if os.fsencode(path).endswith(end):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    return look


def test_an_image_that_is_refused_is_refused_by_a_worker_too(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ALONE", 1)
    monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", 1)
    for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg"):
        Folder(tmp_path / "in").write(name, b"1")

    def check(rows):
        for row in rows:
            if row.key == "b/2.jpg":
                raise UsageError(f"{row.key} lies among the results")
            yield row

    output = Folder(tmp_path / "out")
    rest = rest_of(tmp_path / "in", output, LeftOut(), lost, check)
    with pytest.raises(UsageError, match=r"b/2\.jpg lies"):
        write_manifest(output, check(rows_of(tmp_path / "in", LeftOut())), 1, rest=rest)
    with pytest.raises(UsageError, match=r"b/2\.jpg lies"):
        rest.labels(check(rows_of(tmp_path / "in", LeftOut())))
    assert Manifest.load(output) is None


def test_a_tree_that_is_one_folder_of_a_few_files_is_listed_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ALONE", 1)
    for number in range(5):
        Folder(tmp_path / "in").write(f"{number}.jpg", b"1")
    rest = rest_of(tmp_path / "in", Folder(tmp_path / "out"), LeftOut(), None)
    assert write_manifest(Folder(tmp_path / "out"), rows_of(tmp_path / "in", LeftOut()), 1, rest=rest).images == 5
    assert len(list(rest.rows(rows_of(tmp_path / "in", LeftOut())))) == 5
    assert len(rest.labels(rows_of(tmp_path / "in", LeftOut()))) == 0


def test_suffixes_are_counted_one_by_one_as_by_one_process(tmp_path, monkeypatch):
    """The first forty kinds count, in the order of the listing, which no worker knows."""
    monkeypatch.setattr(module, "ALONE", 1)
    monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", 1)
    rng, folder = random.Random(5), Folder(tmp_path / "in")
    for number in range(12):
        folder.write(f"{number:02d}/0.jpg", b"1")
        for _ in range(20):
            folder.write(f"{number:02d}/{rng.random()}.s{rng.randrange(60)}", b"1")
    counts = []
    for output in (Folder(tmp_path / "one"), Folder(tmp_path / "other")):
        left_out = LeftOut()
        rest = rest_of(tmp_path / "in", output, left_out, lost) if counts else None
        counts.append(
            write_manifest(output, rows_of(tmp_path / "in", left_out), 1, left_out=left_out, rest=rest).left_out
        )
    assert counts[0] == counts[1]
    assert "others" in counts[0]


def test_too_many_shards_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ALONE", 1)
    monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", 1)
    monkeypatch.setattr(manifest_module, "MAX_SHARDS", 3)
    for name in "abcde":
        Folder(tmp_path / "in").write(f"{name}/1.jpg", b"1")
    output = Folder(tmp_path / "out")
    with pytest.raises(UsageError, match="more than 3 shards of 1 images"):
        write_manifest(
            output, rows_of(tmp_path / "in", LeftOut()), 1, rest=rest_of(tmp_path / "in", output, LeftOut(), lost)
        )


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_cut_where_files_begin(seed):
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    pieces = [Piece(str(number), 0, rng.randint(0, 9)) for number in range(9)]
    rows = [(piece.path, row) for piece in pieces for row in range(piece.end)]
    size = rng.randint(1, 12)
    files = list(module._in_files(pieces, size))
    flat = [[(path, row) for path, start, end in file for row in range(start, end)] for file in files]
    assert [row for file in flat for row in file] == rows
    assert [len(file) for file in flat[:-1]] == [size] * (len(files) - 1)


def test_a_stretch_that_was_cut_short_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ALONE", 1)
    monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", 1)
    for name in "abc":
        Folder(tmp_path / "in").write(f"{name}/1.jpg", b"1")
    output = Folder(tmp_path / "out")

    def lying(function, arguments, done=None):
        for result in map(function, arguments):
            yield result._replace(pieces=[piece._replace(end=2) for piece in result.pieces]) if done else result

    with pytest.raises(UsageError, match=r"parquet is damaged \(it has 1 rows, not 2\)"):
        write_manifest(
            output, rows_of(tmp_path / "in", LeftOut()), 1, rest=rest_of(tmp_path / "in", output, LeftOut(), lying)
        )
