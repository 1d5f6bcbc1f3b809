import pytest

from vbp.errors import StorageError
from vbp.storage.files import Folder
from vbp.storage.parquet import Written
from vbp.storage.record import (
    is_complete,
    load_promise,
    load_record,
    mark_complete,
    mark_incomplete,
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


@pytest.fixture
def promised(folder):
    """An output whose promise fits: one attempt made the record, the index and the promise."""
    folder.write("index/part-00000.parquet", b"rows")
    save_record(folder, {"run_id": "one", "attempt": "one"})
    mark_complete(folder, "one", {"index/part-00000.parquet": Written(4, "abc")}, images=3)
    return folder


def test_success(promised):
    assert is_complete(promised)
    assert load_promise(promised) == {
        "attempt": "one", "images": 3, "index": {"index/part-00000.parquet": {"bytes": 4, "sha256": "abc"}},
    }  # fmt: skip
    mark_incomplete(promised)
    assert not is_complete(promised)
    mark_incomplete(promised)


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("_run/run.json", b'{"attempt": "another"}'),
        ("_run/run.json", b"{}"),
        ("index/part-00000.parquet", b"others"),
        ("index/part-00001.parquet", b"more"),
        ("_SUCCESS", b"{"),
        ("_SUCCESS", b"[]"),
        ("_SUCCESS", b'{"attempt": "one", "index": {}}'),
        ("_SUCCESS", b""),
    ],
)
def test_a_promise_that_does_not_fit_is_none(promised, path, data):
    promised.write(path, data)
    assert not is_complete(promised)


def test_a_promise_over_a_lost_index_is_none(promised):
    promised.delete("index/part-00000.parquet")
    assert not is_complete(promised)


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
