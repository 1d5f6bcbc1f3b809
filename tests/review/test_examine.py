"""The ranges of an output, examined anywhere and in any order: the findings are those of one range that holds all."""

import contextlib
import random
from pathlib import Path

import pyarrow as pa
import pytest

from tests.review import test_validate as damages
from tests.spreads import wildly
from vbp.errors import UsageError
from vbp.review.examine import Findings, Request, examine
from vbp.review.existing import Stretch, compare_stretch
from vbp.review.output import Output
from vbp.review.validate import validate
from vbp.storage.ledger import compaction
from vbp.storage.ledger.compaction import ranges
from vbp.storage.spreading import here

DAMAGES = [
    damages.lose_a_row, damages.name_another_image, damages.come_late, damages.cut_a_part, damages.rename_a_part,
    damages.lose_an_index_file, damages.cut_an_index_file, damages.double_an_index_file, damages.change_an_index_row,
    damages.forget_where_a_mask_is, damages.lose_files, damages.lose_all_files, damages.empty_a_file,
    damages.swap_masks, damages.cut_a_mask, damages.flip_bits,
]  # fmt: skip
ROWS = 4


def seeded():
    seed = random.randrange(10**6)
    print("seed", seed)  # noqa: T201
    return random.Random(seed)


@pytest.mark.parametrize("made", [damages.Made.finish, damages.Made.promise], ids=["an older promise", "promised"])
@pytest.mark.parametrize("number", range(12))
def test_any_division_finds_the_same(make, monkeypatch, made, number):
    """Damaged in some of the ways of `test_validate`, of which every kind is found there."""
    rng = seeded()
    monkeypatch.setattr(compaction, "ROWS_A_FILE", ROWS)
    output = make()
    for numbers in ([0, 1, 2, 3], [4, 5], [6, 7], [8, 9]):
        output.commit(numbers, seconds=numbers[0])
    made(output)
    assert len(output.folder.list("index")) == 3
    for damage in rng.sample(DAMAGES, rng.randrange(3) if number else 0):
        with contextlib.suppress(OSError, pa.ArrowException):  # what it damages is lost already
            damage(output)
    asked = {"sample": rng.choice([0, 3, 20]), "deep": rng.random() < 0.5}
    one = validate(Output.open(output.url), **asked)
    assert number or one.findings == ()
    assert validate(Output.open(output.url), **asked, spread=wildly(rng)) == one
    monkeypatch.setattr(compaction, "ROWS_A_FILE", 1000)
    assert validate(Output.open(output.url), **asked) == one
    monkeypatch.setattr(compaction, "ROWS_A_FILE", ROWS)
    repaired = validate(Output.open(output.url), deep=True, spread=wildly(rng), repair=True)
    assert {finding.kind for finding in repaired.findings} >= {finding.kind for finding in one.findings}
    assert validate(Output.open(output.url), deep=True).findings == ()


def test_the_index_of_an_older_vbp_which_divided_otherwise_is_sound(finished, monkeypatch):
    assert finished.folder.list("index") == ["index/part-00000.parquet"]
    monkeypatch.setattr(compaction, "ROWS_A_FILE", ROWS)
    assert validate(Output.open(finished.url), spread=wildly(seeded())).is_sound
    finished.folder.write("index/part-00002.parquet", finished.folder.read("index/part-00000.parquet"))
    (found,) = validate(Output.open(finished.url)).findings
    assert (found.kind, found.count) == ("index row doubled", 10)


def test_workers_that_are_asked_for_examine_a_small_output_too(finished):
    carried_out = []

    def spread(function, arguments, done=None, most=None):
        carried_out.append(function.func)
        return map(function, arguments)

    assert validate(Output.open(finished.url), spread=spread).is_sound
    assert carried_out == [examine, compare_stretch]


def test_a_sound_index_is_read_once_and_not_row_by_row(finished, monkeypatch):
    monkeypatch.setattr("vbp.review.validate.read_index", pytest.fail)
    assert validate(Output.open(finished.url)).is_sound


def test_where_the_output_is_not_seen_nothing_is_lost(finished, tmp_path):
    """As on a node of Ray that has no such disk."""
    output = Output.open(finished.url)
    Path(finished.url).rename(tmp_path / "moved")
    (part,) = ranges(output.manifest)
    for look in (
        lambda: examine(Request(output, 0, 0, False), part),
        lambda: compare_stretch(output.folder, Stretch("masks", None, [])),
    ):
        with pytest.raises(UsageError, match=r"holds no run where it is looked at, on .*--runner local"):
            look()


def test_the_first_faults_are_the_examples():
    first, later = Findings(), Findings()
    for number in range(4):
        first.add("file lost", f"a{number}", 1, number)
        later.add("file lost", f"b{number}", 0, number)
    later.add("output moved", "c", count=7)
    first.extend(later)
    assert first.counts == {"file lost": 8, "output moved": 7}
    assert (first.examples("file lost"), first.examples("row lost")) == (("a0", "a1", "a2", "a3", "b0"), ())
    assert first.redo == [(shard, position) for shard in (0, 1) for position in range(4)]


def test_progress_is_told(finished, monkeypatch):
    monkeypatch.setattr(compaction, "ROWS_A_FILE", ROWS)
    monkeypatch.setattr("vbp.review.existing._FILES_A_WORD", 15)
    told = []
    validate(Output.open(finished.url), on_progress=told.append, spread=here)
    assert told == [*(f"{rows} rows examined" for rows in (4, 8, 10)), "15 files compared", "20 files compared"]
