"""Failed images by cause, and the list of them to run again."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from vbp.cli import main
from vbp.errors import UsageError
from vbp.review import failures as module
from vbp.review.failures import defused, export, failed_keys, failures, shortened
from vbp.review.output import Output
from vbp.storage.collections.manifestfile import read_manifest_input

HOSTILE = ["=1+1.jpg", "@x/a.jpg", "-2.jpg", "+3.jpg", "'=1+1.jpg", "a\nb.jpg", 'q"uote,.jpg', "ünï .jpg", "a::b.jpg"]


def look(made):
    return Output.open(made.url)


@pytest.fixture(params=["unfinished", "finished", "without a promise"])
def failed(make, request):
    """Ten images, of which 1, 4 and 6 fail for one reason and 8 for another; 2 failed once and was repaired."""
    made = make()
    made.commit([0, 3])
    made.commit([1], "error", error_message="cannot read /in/cat/00001.jpg: 17 bytes of b'abc'")
    made.commit([2], "error")
    made.commit([2], seconds=5)
    for number in (4, 6):
        made.commit([number], "error", error_message=f"cannot read /in/{made.keys[number]}: {number}99 bytes of b'x'")
    made.commit([8], "error", error_stage="fetch", error_type="StorageError", error_message="no answer")
    if request.param == "unfinished":
        return made
    made.commit([5, 7])
    made.commit([9])
    return made.finish(success=request.param == "finished")


def test_grouped_by_cause(failed):
    found = failures(look(failed))
    assert found.images == 4
    first, second = found.causes
    assert (first.stage, first.type, first.images) == ("decode", "CorruptImageError", 3)
    assert first.message == "cannot read …: N bytes of …"
    assert first.example == "cannot read /in/cat/00001.jpg: 17 bytes of b'abc'"
    assert first.keys == ("cat/00001.jpg", "cat/00004.jpg", "dog/00006.jpg")
    assert (second.stage, second.type, second.message, second.images) == ("fetch", "StorageError", "no answer", 1)
    assert list(failed_keys(look(failed))) == ["cat/00001.jpg", "cat/00004.jpg", "dog/00006.jpg", "dog/00008.jpg"]


def test_a_damaged_index_is_a_sentence(finished):
    index = Path(finished.url, "index", "part-00000.parquet")
    index.write_bytes(index.read_bytes()[:-40])
    result = CliRunner().invoke(main, ["failures", finished.url])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "vbp validate" in result.stderr


def test_no_failure(finished):
    assert failures(look(finished)).causes == ()


def test_causes_are_bounded(make, monkeypatch):
    monkeypatch.setattr(module, "_CAUSES", 2)
    made = make(8)
    for number, word in enumerate(["one", "two", "three", "four", "one", "two", "three", "four"]):
        made.commit([number], "error", error_message=word)
    assert [(cause.message, cause.images) for cause in failures(look(made)).causes] == [
        ("(other messages)", 4), ("one", 2), ("two", 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("message", "short"),
    [
        ("cannot read s3://b/k x.jpg: HTTP 503 after 6 tries", "cannot read …: HTTP N after N tries"),
        ("the file starts with b'\\x89PN', it's none of ours", "the file starts with …, it's none of ours"),
        ("sha deadbeefcafe at 0x7f3a,\n line 2.5", "sha N at N, line N"),
        ("x" * 500, "x" * 159 + "…"),
    ],
)
def test_messages_lose_what_is_of_one_image_alone(message, short):
    assert shortened(message, "s3://b/k x.jpg", "k x.jpg") == short


@pytest.mark.parametrize("suffix", ["csv", "parquet", "txt"])
def test_the_export_is_a_manifest_of_the_failed(failed, tmp_path, suffix):
    target = str(tmp_path / "exports" / f"again.{suffix}")
    assert export(look(failed), target) == 4
    rows = list(read_manifest_input(target))
    assert [row.uri for row in rows] == [f"/in/{key}" for key in failed_keys(look(failed))]
    if suffix != "txt":
        assert [row.key for row in rows] == list(failed_keys(look(failed)))
        assert [row.label for row in rows] == ["cat", "cat", "dog", "dog"]


@pytest.fixture
def hostile(make):
    made = make(HOSTILE)
    for number in range(len(HOSTILE)):
        made.commit([number], "error", error_message="=HYPERLINK(1)")
    return made


def test_a_csv_holds_no_formula_and_keys_stay_distinct(hostile, tmp_path):
    export(look(hostile), str(tmp_path / "again.csv"))
    with open(tmp_path / "again.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + len(HOSTILE)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    keys = [row[1] for row in rows[1:]]
    assert sorted(keys) == sorted(
        [
            "'=1+1.jpg",
            "'@x/a.jpg",
            "'-2.jpg",
            "'+3.jpg",
            "''=1+1.jpg",
            "a\nb.jpg",
            'q"uote,.jpg',
            "ünï .jpg",
            "a::b.jpg",
        ]
    )
    assert {row[5] for row in rows[1:]} == {"'=HYPERLINK(1)"}


def test_a_parquet_file_keeps_every_name(hostile, tmp_path):
    export(look(hostile), str(tmp_path / "again.parquet"))
    assert sorted(pq.read_table(tmp_path / "again.parquet")["key"].to_pylist()) == sorted(HOSTILE)
    rows = read_manifest_input(str(tmp_path / "again.parquet"))
    assert sorted(row.uri for row in rows) == sorted(f"/in/{key}" for key in HOSTILE)


def test_a_line_break_cannot_stand_in_a_text_file(hostile, tmp_path):
    with pytest.raises(UsageError, match=r"line break.*\.parquet"):
        export(look(hostile), str(tmp_path / "again.txt"))
    assert not (tmp_path / "again.txt").exists()


def test_other_formats_are_refused(finished, tmp_path):
    with pytest.raises(UsageError, match=r"again\.xlsx.*\.csv, \.parquet, \.txt"):
        export(look(finished), str(tmp_path / "again.xlsx"))


@pytest.mark.parametrize("cell", ["=x", "+x", "-x", "@x", "\tx", "\rx", "'x"])
def test_defused(cell):
    assert defused(cell) == "'" + cell


@pytest.mark.parametrize("cell", [None, "", "x=1", "/in/=x", "s3://b/k"])
def test_harmless_cells_stay(cell):
    assert defused(cell) == cell


def test_the_command(failed, tmp_path):
    def vbp(*arguments):
        result = CliRunner().invoke(main, ["failures", failed.url, *arguments])
        assert result.exit_code == 0, result.output
        return result

    shown = vbp().stdout
    for text in ("CorruptImageError", "cannot read …: N bytes of …", "cat/00001.jpg", "4 failed", "--retry-failed"):
        assert text in shown
    assert vbp("--keys").stdout == "cat/00001.jpg\ncat/00004.jpg\ndog/00006.jpg\ndog/00008.jpg\n"
    assert vbp("--keys", "--json").stdout.splitlines()[0] == '"cat/00001.jpg"'
    told = json.loads(vbp("--json", "--export", str(tmp_path / "again.csv")).stdout)
    assert (told["images"], [cause["images"] for cause in told["causes"]]) == (4, [3, 1])
    assert (tmp_path / "again.csv").exists()


def test_control_characters_never_reach_the_terminal(make):
    made = make(["\x1b[31mred\x07.jpg", "[bold]x[/bold].jpg"])
    made.commit([0], "error", error_message="\x1b]0;title\x07")
    made.commit([1], "error", error_message="other")
    shown = CliRunner().invoke(main, ["failures", made.url]).stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]x[/bold].jpg" in shown
