"""A tree as a stream: in order, looked up ahead, but not too far."""

import random
import threading
import time

import pytest

from vbp.storage.stores import walk as module
from vbp.storage.stores.store import File
from vbp.storage.stores.walk import Level, walk


def level(tree, path="", looked=None):
    """A dict of dicts as a folder; its leaves are files."""

    def files(names):
        if looked is not None:
            looked.extend(names)
        return [File(name, 1, None) for name in names]

    pieces = []
    for name in sorted(name + "/" if isinstance(value, dict) else name for name, value in tree.items()):
        if name.endswith("/"):
            pieces.append(lambda name=name: level(tree[name[:-1]], path + name, looked))
        else:
            pieces.append(lambda name=name: files([path + name]))
    return Level(path, pieces)


def flat(tree, path=""):
    for name, value in tree.items():
        yield from flat(value, f"{path}{name}/") if isinstance(value, dict) else [path + name]


@pytest.mark.parametrize("seed", range(5))
def test_byte_order_of_whole_paths(seed):
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)

    def grow(depth):
        names = {
            "".join(rng.choices("aB-./é"[: 4 if rng.random() < 0.8 else 6], k=rng.randint(1, 3))) for _ in range(9)
        }
        return {name.replace("/", "_"): grow(depth - 1) if depth and rng.random() < 0.4 else 1 for name in names}

    tree = grow(3)
    assert [file.path for file in walk(level(tree))] == sorted(flat(tree), key=str.encode)


def test_nothing_and_one():
    assert list(walk(level({}))) == []
    assert list(walk(level({"a": {"b": {}}}))) == []
    assert [file.path for file in walk(level({"a": 1}))] == ["a"]


def test_no_more_is_looked_up_than_is_soon_needed():
    looked = []
    stream = walk(level({f"{n:04d}": 1 for n in range(1000)}, looked=looked))
    assert next(stream).path == "0000"
    assert len(looked) <= module.AHEAD + 1
    stream.close()


def test_many_are_looked_up_at_once():
    together = threading.Barrier(8, timeout=30)

    def slow(name):
        together.wait()  # breaks unless eight are here at the same time
        return [File(name, 1, None)]

    pieces = [lambda name=str(n): slow(name) for n in range(16)]
    assert [file.path for file in walk(Level("", pieces))] == [str(n) for n in range(16)]


def test_an_error_comes_in_its_turn():
    def broken():
        raise OSError("cannot list b")

    def late():
        time.sleep(0.1)
        return [File("a", 1, None)]

    stream = walk(Level("", [late, broken, lambda: [File("c", 1, None)]]))
    assert next(stream).path == "a"
    with pytest.raises(OSError, match="cannot list b"):
        next(stream)


def test_a_folder_within_itself_is_not_entered():
    def root():
        return Level("root", [root, lambda: [File("x", 1, None)]])

    assert [file.path for file in walk(root())] == ["x"]
