import hashlib

import pytest

from vbp.errors import StorageError
from vbp.storage.files import Folder
from vbp.storage.parquet import Written
from vbp.storage.record import (
    SWEEP,
    broken_promise,
    changed_files,
    is_complete,
    load_promise,
    load_record,
    mark_complete,
    mark_incomplete,
    promises_of,
    save_record,
)


def test_record(folder):
    assert load_record(folder) is None
    save_record(folder, {"model": "vgg16", "name": "é"})
    save_record(folder, {"model": "vgg19", "name": "é"})
    assert load_record(folder) == {"model": "vgg19", "name": "é"}
    assert folder.list() == ["_run/run.json"]


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff"])
def test_damaged_record(folder, data):
    folder.write("_run/run.json", data)
    with pytest.raises(StorageError, match="run.json is damaged"):
        load_record(folder)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def promised(folder):
    """An output whose promise fits: one attempt made the record, the index and the promise."""
    folder.write("index/part-00000.parquet", b"rows")
    save_record(folder, {"run_id": "one", "attempt": "one"})
    mark_complete(folder, "one", {"index/part-00000.parquet": Written(4, sha256(b"rows"))}, {"images": 3})
    return folder


def test_success(promised):
    assert is_complete(promised)
    assert broken_promise(promised) is None
    assert list(changed_files(promised)) == []
    assert load_promise(promised) == {
        "attempt": "one", "images": 3,
        "index": {"index/part-00000.parquet": {"bytes": 4, "sha256": sha256(b"rows")}},
    }  # fmt: skip
    mark_incomplete(promised)
    assert not is_complete(promised)
    assert broken_promise(promised) is None
    mark_incomplete(promised)


INDEX = b'{"attempt": "one", "index": {"index/part-00000.parquet": {"bytes": 4}}}'


@pytest.mark.parametrize(
    ("path", "data", "why"),
    [
        ("_run/run.json", b'{"attempt": "another"}', "_run/run.json is of attempt another, not of one"),
        ("_run/run.json", b"{}", "_run/run.json is of attempt None, not of one"),
        ("index/part-00000.parquet", b"others", "index/part-00000.parquet has 6 bytes, not 4 bytes"),
        ("index/part-00001.parquet", b"more", "index/part-00001.parquet has 4 bytes, not none"),
        ("_SUCCESS", b'{"attempt": "one", "index": {}}', "index/part-00000.parquet has 4 bytes, not none"),
        ("_SUCCESS", b"", "_run/run.json is of attempt one, not of None"),
        *(("_SUCCESS", data, "it is not what was written") for data in
          (b"{", b"[]", b'{"attempt": "one", "index": []}', b'{"attempt": 1, "index": {}}', INDEX,
           b'{"attempt": "one", "index": {}, "runs": []}', b'{"attempt": "one", "index": {"a": 1}}')),
    ],
)  # fmt: skip
def test_a_promise_that_does_not_fit_is_none(promised, path, data, why):
    promised.write(path, data)
    assert not is_complete(promised)
    assert broken_promise(promised) == why


def test_a_promise_over_a_lost_index_is_none(promised):
    promised.delete("index/part-00000.parquet")
    assert not is_complete(promised)


def test_the_same_size_is_not_the_same_file(promised):
    """A quick look takes it for the same; who reads the bytes sees it."""
    promised.write("index/part-00000.parquet", b"ROWS")
    assert is_complete(promised)
    assert list(changed_files(promised)) == ["index/part-00000.parquet"]


def test_files_of_others_beside_the_index_do_not_matter(promised):
    promised.write("index/_notes.txt", b"mine")
    assert is_complete(promised)


def test_the_promise_of_an_older_version_counts(folder):
    save_record(folder, {"run_id": "one"})
    folder.write("_SUCCESS", b"")
    assert is_complete(folder)


def test_a_run_of_a_sweep_takes_the_promise_of_the_whole_back(tmp_path):
    """Its rows stand in the index of all runs."""
    sweep = Folder(tmp_path / "sweep")
    for name in ("_SUCCESS", "_run/sweep.json", "runs/one/_SUCCESS"):
        sweep.write(name, b"{}")
    mark_incomplete(sweep.child("runs/one/masks"))
    assert sweep.exists("_SUCCESS")
    mark_incomplete(sweep.child("runs/one"))
    assert not sweep.exists("_SUCCESS")
    assert not sweep.exists("runs/one/_SUCCESS")
    other = Folder(tmp_path / "no-sweep")
    other.write("_SUCCESS", b"")
    mark_incomplete(other.child("runs/one"))
    assert other.exists("_SUCCESS")


@pytest.mark.parametrize("change", [b'{"attempt": "another", "index": {}}', b"", None])
def test_a_sweep_promises_what_its_runs_promised(folder, change):
    for name in ("one", "two"):
        mark_complete(folder.child(f"runs/{name}"), name, {}, {"images": 3})
    save_record(folder, {"attempt": "sweep"}, SWEEP)
    mark_complete(folder, "sweep", {}, {"rows": 6}, promises_of(folder, ["one", "two"]))
    assert is_complete(folder, SWEEP)
    if change is None:
        folder.delete("runs/two/_SUCCESS")
    else:
        folder.write("runs/two/_SUCCESS", change)
    assert not is_complete(folder, SWEEP)
    assert broken_promise(folder, SWEEP) == "runs/two has changed since"
