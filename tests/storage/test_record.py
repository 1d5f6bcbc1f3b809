import pytest

from vbp.errors import StorageError
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
