"""An attempt changes nothing after another one has taken the output over, even if that happens at the last moment."""

import os
import pickle

import pytest

from vbp.errors import LeaseLostError, StorageError
from vbp.storage.files import Folder
from vbp.storage.ledger.held import HOLDERS, HeldFolder
from vbp.storage.ledger.lease import Lease
from vbp.storage.ledger.staged import StagedStore
from vbp.storage.stores.objects import ObjectStore

QUICK = {"renew_every": 1000.0, "take_over_after": 0.2, "poll_every": 0.05}


def taken(folder, attempt):
    lease = Lease(folder, attempt, **QUICK)
    lease.acquire()
    return lease, HeldFolder.of(folder, attempt)


def others(folder):
    return [path for path in folder.list() if path != "_run/lease.json"]


def test_the_holder_changes_what_it_likes(folder):
    lease, mine = taken(folder, "one")
    mine.write("a/b", b"1")
    mine.write("a/b", b"2")
    assert folder.read("a/b") == b"2"
    assert not mine.create("a/b", b"3")
    assert mine.create("a/c", b"3")
    mine.delete("a/c")
    mine.delete("a/c")
    copy = pickle.loads(pickle.dumps(mine))
    copy.write("a/d", b"4")
    assert others(folder) == ["a/b", "a/d"]
    lease.release()
    for change in (lambda: mine.write("a/b", b"5"), lambda: mine.delete("a/b")):
        with pytest.raises(LeaseLostError, match="attempt one lost .*nobody has it now"):
            change()
    assert folder.read("a/b") == b"2"


@pytest.mark.parametrize("kind", ["write", "new", "delete"])
def test_at_the_last_moment_another_takes_over(folder, monkeypatch, kind):
    """On a disk at the rename, in an object store at the request, after every look. (A deletion there: no fence.)"""
    folder.write("a", b"old")
    _, mine = taken(folder, "one")
    made = []

    def taking_over(method):
        def change(*arguments):
            if not made:
                made.append(None)
                _, second = taken(folder, "two")
                second.write("a", b"of two")
                second.write("b", b"of two")
                second.delete("c")
            return method(*arguments)

        return change

    if folder.is_local:
        for name in ("_replace", "_remove"):
            monkeypatch.setattr(StagedStore, name, taking_over(getattr(StagedStore, name)))
    else:
        monkeypatch.setattr(ObjectStore, "put_if", taking_over(ObjectStore.put_if))
        if kind == "delete":
            pytest.skip("no object store that we speak to deletes on a condition")
    change = {
        "write": lambda: mine.write("a", b"late"),
        "new": lambda: mine.write("b", b"late"),
        "delete": lambda: mine.delete("a"),
    }
    with pytest.raises(LeaseLostError, match="attempt one lost .*attempt two on .* has it now"):
        change[kind]()
    assert [folder.read(path) for path in ("a", "b")] == [b"of two"] * 2


def test_workers_look_once_for_many_files(folder, monkeypatch):
    taken(folder, "one")
    worker, looks = HeldFolder(folder.url, folder.options, "one", looks=False), []
    read = Folder.read
    monkeypatch.setattr(Folder, "read", lambda self, path, *rest: looks.append(path) or read(self, path, *rest))
    for number in range(5):
        worker.write(f"masks/{number}", b"1")
    assert looks == []
    taken(folder, "two")
    with pytest.raises(LeaseLostError):
        worker.look()


def test_who_comes_next_removes_what_the_last_left(tmp_path):
    folder = Folder(tmp_path)
    taken(folder, "one")
    left = tmp_path / HOLDERS / "one" / ".vbp-0123.tmp"
    left.write_bytes(b"half")
    lease, _ = taken(folder, "two")
    assert os.listdir(tmp_path / HOLDERS) == ["two"]
    lease.release()
    assert os.listdir(tmp_path / HOLDERS) == []


def test_who_has_lost_removes_nobody(tmp_path, monkeypatch):
    """Frozen between the lease and the removal of the others' folders: the next one's stays."""
    folder = Folder(tmp_path)
    _, first = taken(folder, "one")
    _, second = taken(folder, "two")
    first.evict()
    second.write("a", b"1")
    assert folder.read("a") == b"1"


def test_an_output_that_was_removed_is_not_made_again(tmp_path):
    folder = Folder(tmp_path / "out")
    _, mine = taken(folder, "one")
    for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(StorageError, match="No such file"):
        mine.write("masks/a/b.png", b"1")
    assert not list((tmp_path / "out").rglob("*"))


def test_folders_on_another_disk(tmp_path, monkeypatch):
    """A linked folder may lead to where no rename goes: the copy is made there, after a look."""
    import errno

    folder = Folder(tmp_path / "out")
    (tmp_path / "away").mkdir()
    _, mine = taken(folder, "one")
    os.symlink(tmp_path / "away", tmp_path / "out" / "masks")

    def refusing(rename):
        def rename_within_a_disk(old, new):
            if ("/masks/" in str(old)) != ("/masks/" in str(new)):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return rename(old, new)

        return rename_within_a_disk

    monkeypatch.setattr(os, "replace", refusing(os.replace))
    monkeypatch.setattr(os, "rename", refusing(os.rename))
    mine.write("masks/a", b"1")
    mine.write("masks/a", b"2")
    mine.write("masks/b", b"3")
    mine.delete("masks/b")
    assert {path.name: path.read_bytes() for path in (tmp_path / "away").iterdir()} == {"a": b"2"}
    monkeypatch.undo()
    taken(folder, "two")
    with pytest.raises(LeaseLostError):
        mine.write("masks/a", b"late")
    assert (tmp_path / "away" / "a").read_bytes() == b"2"
