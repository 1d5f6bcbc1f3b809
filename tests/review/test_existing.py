"""Existing and expected files: compared in stretches, in any order, they are what one stream of them shows."""

import pickle
import random
from functools import partial

import pytest

from vbp.review import existing as module
from vbp.review.examine import EXPECTED_SCHEMA, Expected
from vbp.review.existing import compare, compare_stretch, existing, stretches
from vbp.storage.files import Folder
from vbp.storage.sorting import Sorter, as_table

FOLDERS = ("masks", "overlays", "inputs", "maps")


def names(rng, count):
    """Paths of any depth, whose order by bytes is not that of their parts."""
    found = set()
    while len(found) < count:
        parts = ["".join(rng.choices("ab.-é", k=rng.randint(1, 2))) for _ in range(rng.randint(1, 3))]
        found.add("/".join(part.strip(".") + "x" for part in parts))
    return found


def told(found):
    kinds = sorted(found.findings.counts)
    return found.files, found.strays, found.findings.redo, [(kind, found.findings.examples(kind)) for kind in kinds]


@pytest.mark.parametrize("number", range(8))
def test_stretches_are_as_one_stream(tmp_path, monkeypatch, number):
    seed = random.randrange(10**6)
    print("seed", seed)  # noqa: T201
    rng, output = random.Random(seed), Folder(tmp_path)
    output.write("_run/run.json", b"{}")
    kinds = rng.sample(FOLDERS, rng.randint(0, 3))
    paths = [f"{kind}/{name}.png" for kind in kinds for name in names(rng, rng.randint(1, 40))]
    expected = [
        Expected(path.encode(), rng.randint(0, 3), path, rng.randrange(9), rng.randrange(9))
        for path in rng.choices([*paths, *(f"{kind}/{name}.png" for kind in FOLDERS for name in names(rng, 3))], k=60)
    ]
    for path in paths:
        if rng.random() < 0.8:
            output.write(path, bytes(rng.randint(0, 3)))
    wanted = compare(sorted(expected), existing(output, FOLDERS))
    monkeypatch.setattr(module, "_TASKS", rng.choice([2, 1000]))
    with Sorter(Expected, EXPECTED_SCHEMA) as sorter:
        for start in range(0, 50, 10):
            sorter.add_sorted(as_table(sorted(expected[start : start + 10]), EXPECTED_SCHEMA))
        for each in expected[50:]:
            sorter.add(each)
        tasks = [pickle.dumps(task) for task in stretches(output, FOLDERS, sorter)]
    assert len(tasks) >= len(FOLDERS)
    work = pickle.loads(pickle.dumps(partial(compare_stretch, output)))
    made = {number: work(pickle.loads(tasks[number])) for number in rng.sample(range(len(tasks)), len(tasks))}
    found = module.Compared()
    for number in range(len(tasks)):
        found.findings.extend(made[number].findings)
        found.files += made[number].files
        found.strays += made[number].strays
    assert told(found) == told(wanted)
    assert found.findings.counts == wanted.findings.counts


def test_what_a_worker_cannot_hold_is_not_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FILES", 2)
    with Sorter(Expected, EXPECTED_SCHEMA) as sorter:
        sorter.add_sorted(as_table([Expected(b"masks/%d" % n, 1, "", 0, n) for n in range(3)], EXPECTED_SCHEMA))
        assert stretches(Folder(tmp_path), FOLDERS, sorter) is None
