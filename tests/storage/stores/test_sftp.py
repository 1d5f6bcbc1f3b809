"""SFTP on OpenSSH's server: what goes beyond the contract of every store."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from vbp.errors import StorageError, UsageError
from vbp.storage.files import Folder, _open


@pytest.fixture
def place(sftp_server, monkeypatch):
    """A new folder, and where it lies on the disk."""
    monkeypatch.setenv("HOME", str(sftp_server.home))
    _open.cache_clear()
    folder = Folder(sftp_server.new_url())
    path = sftp_server.folder / folder.url.rpartition("/")[2]
    path.mkdir()
    return folder, path


def sessions(sftp_server):
    return psutil.Process(sftp_server.server.process.pid).children()


def test_many_threads_share_few_connections(place, sftp_server):
    folder, _ = place
    names = [f"{number % 7}/{number}" for number in range(100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: folder.write(name, name.encode() * 10_000), names))
        assert list(pool.map(folder.read, names)) == [name.encode() * 10_000 for name in names]
    assert 1 <= len(folder._store._idle) <= 8


def test_a_lost_connection_is_made_again(place, sftp_server):
    folder, _ = place
    folder.write("a", b"1")
    for _ in range(2):
        for process in sessions(sftp_server):
            for child in process.children(recursive=True):
                child.kill()
            process.kill()
        assert folder.read("a") == b"1"
        folder.write("a", b"1")


def test_nothing_of_a_failed_write_stays(place):
    folder, path = place
    (path / "taken").mkdir()
    with pytest.raises(StorageError, match=r"cannot write sftp://127.0.0.1:\d+/.*/taken"):
        folder.write("taken", b"x")
    assert os.listdir(path) == ["taken"]
    folder.write("file", b"x")
    with pytest.raises(StorageError):
        folder.write("file/below", b"x")
    assert sorted(os.listdir(path)) == ["file", "taken"]


def test_create_leaves_the_first_and_nothing_else(place):
    folder, path = place
    assert folder.create("a/b", b"1")
    assert not folder.create("a/b", b"2")
    assert folder.create("a/b", b"1")
    assert folder.read("a/b") == b"1"
    assert os.listdir(path / "a") == ["b"]


def test_unfinished_writes_are_not_listed(place):
    folder, path = place
    (path / ".vbp-0123.tmp").write_bytes(b"half")
    (path / "a").mkdir()
    (path / "a" / ".vbp-4567.tmp").write_bytes(b"half")
    assert folder.list() == []
    assert folder.first() is None


def test_links(place):
    folder, path = place
    (path / "a").mkdir()
    (path / "a" / "x").write_bytes(b"123")
    (path / "a" / "loop").symlink_to(path)
    (path / "b").symlink_to(path / "a")
    (path / "c").symlink_to(path / "a" / "x")
    (path / "d").symlink_to(path / "nowhere")
    os.mkfifo(path / "e")
    assert [(file.path, file.size) for file in folder.walk()] == [("a/x", 3), ("b/x", 3), ("c", 3), ("d", None)]
    with pytest.raises(FileNotFoundError):
        folder.read("d")


def test_missing_folders(place):
    folder, _ = place
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(folder.child("nowhere").walk())
    assert folder.list("nowhere") == []


def test_unknown_servers_are_not_believed(place, sftp_server, tmp_path, monkeypatch):
    shutil.copytree(sftp_server.home / ".ssh", tmp_path / ".ssh")
    (tmp_path / ".ssh" / "known_hosts").unlink()
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(PermissionError, match="is not in ~/.ssh/known_hosts"):
        place[0].read("a")


def test_another_key_than_known(place, sftp_server, tmp_path, monkeypatch):
    shutil.copytree(sftp_server.home / ".ssh", tmp_path / ".ssh")
    own = (tmp_path / ".ssh" / "id_ed25519.pub").read_text()
    (tmp_path / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{sftp_server.server.port} {own}")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(PermissionError, match="another key"):
        place[0].read("a")


def test_no_key_of_the_user(place, sftp_server, tmp_path, monkeypatch):
    shutil.copytree(sftp_server.home / ".ssh", tmp_path / ".ssh")
    (tmp_path / ".ssh" / "id_ed25519").unlink()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(PermissionError, match="no key found"):
        place[0].read("a")


def test_a_key_that_the_server_does_not_know(place, sftp_server, tmp_path, monkeypatch):
    shutil.copytree(sftp_server.home / ".ssh", tmp_path / ".ssh")
    shutil.copy(sftp_server.folder.parent / "host_key", tmp_path / ".ssh" / "id_ed25519")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(PermissionError, match="refuses user and keys"):
        place[0].read("a")


@pytest.mark.parametrize("field", ["password", "passphrase"])
def test_secrets_are_no_options(field):
    with pytest.raises(UsageError, match=r"a key in ~/\.ssh, or ssh-agent"):
        Folder("sftp://host/folder", {"sftp://host": {field: "hush"}})
