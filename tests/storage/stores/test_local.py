import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vbp.errors import FileTooLargeError, StorageError
from vbp.storage.files import File, Folder
from vbp.storage.stores.local import LocalStore

NOBODY = 65534
WRITER = """
import sys
from vbp.storage.files import Folder
folder, fill = Folder(sys.argv[1]), 0
print("writing", flush=True)
while True:
    fill = (fill + 1) % 256
    folder.write(f"file{fill % 3}", bytes([fill]) * 3_000_000)
"""


@pytest.fixture
def open_folder():
    """A folder that every user may reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="vbp-test-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def unprivileged():
    """As a user whom permissions bind: root passes every one."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(me)


def test_names_that_are_not_utf8(tmp_path):
    raw = os.fsencode(tmp_path) + b"/\xff album"
    os.mkdir(raw)
    Path(os.fsdecode(raw + b"/caf\xe9.jpg")).write_bytes(b"1")
    folder = Folder(tmp_path)
    (file,) = folder.walk()
    assert os.fsencode(file.path) == b"\xff album/caf\xe9.jpg"
    assert folder.read(file.path) == b"1"
    assert folder.uri(file.path) == f"{tmp_path}/%FF album/caf%E9.jpg"
    inside = Folder(os.fsdecode(raw))
    assert inside.list() == ["caf\udce9.jpg"]
    assert repr(inside).isprintable()


def test_linked_folders_are_followed_once_around(tmp_path):
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "real" / "a.jpg").write_bytes(b"1")
    (tmp_path / "real" / "sub" / "up").symlink_to(tmp_path / "real")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real" / "a.jpg")
    os.mkfifo(tmp_path / "fifo.jpg")
    files = {file.path: file.size for file in Folder(tmp_path).walk()}
    assert files == {"broken.jpg": None, "link.jpg": 1, "linked/a.jpg": 1, "real/a.jpg": 1, "self": None}


def test_a_very_deep_tree(tmp_path):
    deep = "/".join(["d"] * 1200)
    for length in range(1, len(deep) + 1, 2):
        os.mkdir(f"{tmp_path}/{deep[:length]}")
    Path(f"{tmp_path}/{deep}/a.jpg").write_bytes(b"1")
    assert Folder(tmp_path).list() == [f"{deep}/a.jpg"]
    os.unlink(f"{tmp_path}/{deep}/a.jpg")
    os.removedirs(f"{tmp_path}/{deep}")  # pytest could not: its removal recurses
    tmp_path.mkdir(exist_ok=True)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none"):
        list(Folder(tmp_path / "none").walk())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=f"{tmp_path}/file: Not a directory"):
        list(Folder(tmp_path / "file").walk())


def test_an_unreadable_folder_is_an_error_that_names_it(open_folder):
    (open_folder / "good").mkdir()
    (open_folder / "private").mkdir(mode=0o700)
    with unprivileged(), pytest.raises(StorageError, match=f"{open_folder}/private: Permission denied"):
        list(Folder(open_folder).walk())


def test_an_unreadable_folder_of_the_system_stops_nothing(open_folder):
    (open_folder / "lost+found").mkdir(mode=0o700)
    (open_folder / "a.jpg").write_bytes(b"1")
    with unprivileged():
        assert [file.path for file in Folder(open_folder).walk()] == ["a.jpg"]


def test_forbidden_files(open_folder):
    (open_folder / "secret.jpg").write_bytes(b"1")
    (open_folder / "secret.jpg").chmod(0o600)
    (open_folder / "shut").mkdir(mode=0o755)
    folder = Folder(open_folder)
    with unprivileged():
        with pytest.raises(PermissionError, match=r"secret.jpg: Permission denied"):
            folder.read("secret.jpg")
        for write in (folder.write, folder.create):
            with pytest.raises(StorageError, match=f"cannot write {open_folder}/shut/a: Permission denied"):
                write("shut/a", b"")
        with pytest.raises(StorageError, match=f"cannot write {open_folder}/shut/new/a: Permission denied"):
            folder.write("shut/new/a", b"")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    folder = Folder(tmp_path)
    folder.write("a", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match=f"cannot write {tmp_path}/a: File too large"):
            folder.write("a", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folder.read("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_in_the_way(tmp_path):
    folder = Folder(tmp_path)
    folder.write("a", b"")
    with pytest.raises(StorageError, match=r"cannot write .*/a/b"):
        folder.write("a/b", b"")
    with pytest.raises(StorageError, match=r"cannot write .*/a/b/c"):
        folder.create("a/b/c", b"")
    folder.write("d/e", b"")
    with pytest.raises(StorageError, match="cannot write .*/d: Is a directory"):
        folder.write("d", b"")
    assert sorted(os.listdir(tmp_path)) == ["a", "d"]


def test_names_may_fill_the_limit_of_the_disk(tmp_path):
    folder = Folder(tmp_path)
    for name in ("x" * 255, "é" * 127):
        folder.write(name, b"1")
        assert folder.read(name) == b"1"
    assert folder.create("y" * 255, b"1")
    with pytest.raises(StorageError, match="File name too long"):
        folder.write("x" * 256, b"1")


def test_permissions_are_those_of_any_new_file(tmp_path):
    umask = os.umask(0o027)
    try:
        Folder(tmp_path).write("a/b", b"")
    finally:
        os.umask(umask)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "a\0b", ".."])
def test_no_path_leaves_the_folder(tmp_path, path):
    folder = Folder(tmp_path / "inner")
    for operation in (folder.read, folder.exists, folder.delete, lambda path: folder.write(path, b"")):
        with pytest.raises(StorageError, match="does not lie within"):
            operation(path)
    assert os.listdir(tmp_path) == []


def test_killed_writer_leaves_no_torn_file(tmp_path):
    for moment in range(4):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(0.05 + 0.037 * moment)
            writer.send_signal(signal.SIGKILL)
        folder = Folder(tmp_path)
        assert set(folder.list()) <= {"file0", "file1", "file2"}
        for name in folder.list():
            data = folder.read(name)
            assert len(data) == 3_000_000
            assert data == data[:1] * 3_000_000


def test_create_on_a_disk_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = Folder(tmp_path)
    assert folder.create("a", b"1")
    assert not folder.create("a", b"2")
    assert folder.read("a") == b"1"
    assert os.listdir(tmp_path) == ["a"]


def test_a_vanished_folder_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"")
    for number in range(100):  # more than are looked up ahead
        (tmp_path / f"b{number:02d}").mkdir()
    walk = Folder(tmp_path).walk()
    assert isinstance(next(walk), File)
    (tmp_path / "b99").rmdir()
    with pytest.raises(StorageError, match=f"{tmp_path}/b99: No such file"):
        next(walk)


def test_a_limit_refuses_what_is_longer_or_never_ends(tmp_path):
    store, path = LocalStore(), str(tmp_path / "a")
    store.write(path, b"12345")
    assert store.read(path, limit=5) == b"12345"
    with pytest.raises(FileTooLargeError, match=f"{path} has 5 bytes or more, and --max-bytes allows 4"):
        store.read(path, limit=4)
    os.mkfifo(tmp_path / "pipe")
    for endless in ("/dev/zero", str(tmp_path / "pipe"), str(tmp_path)):
        with pytest.raises(StorageError, match=f"cannot read {endless}: it is no regular file"):
            store.read(endless, limit=5)
