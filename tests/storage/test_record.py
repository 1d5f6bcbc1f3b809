import pytest

from vbp.errors import StorageError
from vbp.storage.files import Folder
from vbp.storage.record import is_complete, load_record, mark_complete, mark_incomplete, save_record


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


def test_success(folder):
    mark_incomplete(folder)
    assert not is_complete(folder)
    mark_complete(folder)
    assert is_complete(folder)
    assert folder.list() == ["_SUCCESS"]
    mark_incomplete(folder)
    assert not is_complete(folder)


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
