"""Listings of a bucket, its large folders side by side."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faultproxy import Fault
from vbp.storage.files import Folder
from vbp.storage.stores import branches, objects
from vbp.storage.stores import prefetch as ahead

SIZE = 3  # of a page, here


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    monkeypatch.setattr(objects, "PAGE", SIZE)
    monkeypatch.setattr(ahead, "PAGE", SIZE)


def filled(server, names, proxy=None):
    folder = Folder(server.new_url(), server.storage_options)
    # This server loses an object "a" (it answers 404 for it) that is written at the same time as the first "a/b".
    folders_too = [name for name in names if any(other.startswith(f"{name}/") for other in names)]
    for name in folders_too:
        folder.write(name, name.encode())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: folder.write(name, name.encode()), sorted({*names} - {*folders_too})))
    return Folder(folder.url, proxy.storage_options) if proxy else folder


def believe_its_order(folder, monkeypatch):
    """Nothing sorts behind the server in this test; the store is cached, so that later tests have the same one."""
    monkeypatch.setattr(folder._store, "_is_sorted", True)


def names_below(folders, count):
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(count)]


def alphabet(rng, longest):
    return "".join(rng.choices("aB-. é日😀+%~0", k=rng.randint(1, longest))).strip(". ") or "x"


@pytest.mark.parametrize("seed", range(3))
def test_branches_are_the_whole_tree(s3_server, monkeypatch, seed):
    """However the tree is cut, and however many branches are listed together."""
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    monkeypatch.setattr(objects, "PAGE", 1000)
    folders = [alphabet(rng, 2) for _ in range(6)]
    names = {"/".join([*rng.choices(folders, k=rng.randint(0, 3)), alphabet(rng, 3)]) + ".jpg" for _ in range(60)}
    folder = filled(s3_server, sorted(names))
    everything = list(folder.walk())
    assert len(everything) == len(names)
    for enough in (2, 10, 1000):
        monkeypatch.setattr(branches, "ENOUGH", enough)
        after = rng.choice([b"", everything[rng.randrange(9)].path.encode()])
        cut = folder.cut_up(after)
        assert len(cut) > 1
        left, found = list(cut), []
        while left:
            some = [left.pop(0) for _ in range(min(len(left), rng.randint(1, 3)))]
            found += folder.walk_branches(some)
        behind = [file for file in everything if file.path.encode() > after]
        assert found[len(found) - len(behind) :] == behind
        assert all(file in everything for file in found)
        assert after or found == behind


def test_a_folder_with_too_many_entries_is_not_cut(s3_server, monkeypatch):
    folder = filled(s3_server, names_below("ab", SIZE))
    assert [branch.folder for branch in folder.cut_up()] == ["a/", "b/"]  # which show a page of files each
    monkeypatch.setattr(objects, "_CUT_WITHIN", 0.0)
    assert folder.cut_up() is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("depth", [1, 3])
def test_byte_order_of_hostile_names(s3_server, monkeypatch, seed, depth):
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    folders = {alphabet(rng, 2) for _ in range(12)}
    names = {f"{folder}/{alphabet(rng, 3)}" for folder in folders for _ in range(rng.randint(1, 9))}
    for _ in range(depth - 1):
        names |= {f"{rng.choice(sorted(folders))}/d{alphabet(rng, 1)}/{alphabet(rng, 3)}" for _ in range(20)}
    names |= {f"{folder}{rest}" for folder in sorted(folders) for rest in ("-b", ".jpg", "0") if rng.random() < 0.4}
    folder = filled(s3_server, sorted(names))
    if depth == 1:  # the server sorts within a folder: no sorting behind us is needed
        believe_its_order(folder, monkeypatch)
    found = list(folder.walk())
    assert [file.path for file in found] == sorted(names, key=str.encode)
    assert [file.size for file in found] == [len(file.path.encode()) for file in found]
    assert all(file.version for file in found)


def test_large_folders_are_asked_one_by_one(s3_server, fault_proxy):
    names = [*names_below("abcdefgh", 5), "a-b", "b.jpg"]
    folder = filled(s3_server, names, fault_proxy)
    assert folder.list() == sorted(names)
    assert fault_proxy.counts["LIST"] == 1 + 1 + 8


@pytest.mark.parametrize("names", [[f"{n:03d}.jpg" for n in range(60)], names_below(map(str, range(100, 140)), 1)])
def test_single_files_and_small_folders_are_not(s3_server, fault_proxy, names, monkeypatch):
    for module in (objects, ahead):
        monkeypatch.setattr(module, "PAGE", 30)
    folder = filled(s3_server, names, fault_proxy)
    assert folder.list() == sorted(names)
    assert fault_proxy.counts["LIST"] == 1


def test_the_level_where_ways_part(s3_server, fault_proxy):
    names = names_below(["only/one/way/a", "only/one/way/b"], 5)
    folder = filled(s3_server, names, fault_proxy)
    assert folder.list() == names
    assert fault_proxy.counts["LIST"] == 1 + 4 + 2


def test_one_folder_of_files(s3_server):
    names = names_below(["only"], 2 * SIZE)
    assert filled(s3_server, names).list() == names


def test_a_level_too_large_is_listed_plainly(s3_server, fault_proxy, monkeypatch):
    monkeypatch.setattr(objects, "_LEVEL_WITHIN", 0.0)
    names = names_below("ab", 5)
    folder = filled(s3_server, names, fault_proxy)
    assert folder.list() == names
    assert fault_proxy.counts["LIST"] <= 2  # the second was given up, perhaps before it began


def in_branches(folder):
    cut = folder.cut_up()
    return [file.path for file in (folder.walk() if cut is None else folder.walk_branches(cut))]


@pytest.mark.parametrize("listed", [Folder.list, in_branches])
@pytest.mark.parametrize("odd", [["b/new\nline.jpg", "b/tab\t.jpg"], ["new\nline/x.jpg", "z/y.jpg"]])
def test_an_unspeakable_name_or_folder(s3_server, listed, odd):
    names = [*names_below("abc", 5), *odd]
    assert listed(filled(s3_server, names)) == sorted(names)


def test_an_error_in_one_folder(s3_server, fault_proxy, monkeypatch):
    folder = filled(s3_server, names_below("abc", 5), fault_proxy)
    believe_its_order(folder, monkeypatch)
    fault_proxy.faults = [Fault("denied", methods="LIST", path="/b/$")]
    stream = folder.walk()
    assert [next(stream).path for _ in range(5)] == names_below("a", 5)
    with pytest.raises(PermissionError, match=r"list s3://vbp-test/\w+/b"):
        next(stream)


@pytest.mark.parametrize("listed", [Folder.list, in_branches])
def test_a_throttled_folder_is_waited_for(s3_server, fault_proxy, listed):
    names = names_below("abc", 5)
    folder = filled(s3_server, names, fault_proxy)
    fault_proxy.faults = [Fault("slowdown", methods="LIST", path="/b/$", times=2)]
    assert listed(folder) == names


def test_who_leaves_early_leaves_no_thread(s3_server, monkeypatch):
    folder = filled(s3_server, names_below("abcdefgh", 5))
    believe_its_order(folder, monkeypatch)
    stream = folder.walk()
    assert next(stream).path == "a/0.jpg"
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vbp-list")]
