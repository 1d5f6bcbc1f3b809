"""The table of columns, and the errors of a step whose columns differ from it."""

import pyarrow as pa
import pytest

from vbp.columns import (
    COLUMNS,
    INDEX_COLUMNS,
    INDEX_SCHEMA,
    MANIFEST_SCHEMA,
    PART_SCHEMA,
    SAMPLE,
    ColumnError,
    Contract,
    dropped_by,
    made_by,
)

STEPS = ("list", "source", "fetch", "decode", "explain", "evaluate", "encode", "write", "index")
GIVEN = {"key", "uri", "path", "mine"}
MADE = GIVEN - {"path"} | made_by("fetch")


def test_a_column_is_declared_once_and_lives_from_one_step_to_a_later_one():
    names = [column.name for column in COLUMNS]
    assert len(set(names)) == len(names)
    for column in COLUMNS:
        end = len(STEPS) if column.dropped_by is None else STEPS.index(column.dropped_by)
        assert STEPS.index(column.made_by) < end, column.name
        assert column.meaning.endswith("."), column.name


def test_the_index_is_what_no_step_drops():
    assert INDEX_SCHEMA.names == [column.name for column in INDEX_COLUMNS]
    assert set(PART_SCHEMA.names) - set(INDEX_SCHEMA.names) == {"shard", "position", "scores"} == dropped_by("index")
    assert [field.name for field in PART_SCHEMA if not field.nullable] == [
        *("key", "uri", "status", "finished_at", "shard", "position")
    ]
    assert MANIFEST_SCHEMA.field("path") == pa.field("path", pa.binary())
    assert set(MANIFEST_SCHEMA.names) == made_by("list")
    assert [name for name in INDEX_SCHEMA.names if name in SAMPLE] == list(SAMPLE)


@pytest.fixture
def fetch():
    return Contract.of("fetch", {"key", "uri"})


def test_a_step_that_keeps_its_word_passes(fetch):
    fetch.check_given(GIVEN)
    fetch.check_made(GIVEN, MADE)
    fetch.check_made(GIVEN - {"path"}, MADE)
    fetch.check_made(GIVEN | {"error_stage"}, MADE)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (MADE | {"sha526"}, r"fetch makes the columns \['sha526'\]"),
        (MADE - {"sha256"}, r"fetch does not make the columns \['sha256'\]"),
        (MADE - {"uri"}, r"fetch loses the columns \['uri'\]"),
        (MADE - {"mine"}, r"fetch loses the columns \['mine'\]"),
        (MADE | {"path"}, r"fetch leaves the columns \['path'\]"),
        (MADE | {"pixels"}, r"fetch makes the columns \['pixels'\]"),
    ],
    ids=["undeclared", "missing", "lost", "lost of one's own", "left over", "of another step"],
)
def test_a_step_that_does_not_is_named(fetch, found, said):
    with pytest.raises(ColumnError, match=said):
        fetch.check_made(GIVEN, found)


def test_a_misspelt_column_is_missing(fetch):
    with pytest.raises(ColumnError, match=r"fetch needs the columns \['uri'\]; the batch has \['key', 'url'\]"):
        fetch.check_given({"key": 1, "url": 2})


def test_a_step_that_is_set_up_otherwise_says_so():
    decode = Contract.of("decode", {"data"}, keeps={"data"})
    decode.check_made({"data"}, made_by("decode") | {"data"})
    encode = Contract.of("encode", {"mask"}, without={"file_maps"}, also_drops={"data"})
    encode.check_made({"mask", "data"}, made_by("encode") - {"file_maps"})
    with pytest.raises(ColumnError, match="leaves the columns .'data'"):
        encode.check_made({"mask", "data"}, made_by("encode") - {"file_maps"} | {"data"})


def test_numbered_columns_are_as_many_as_there_are():
    explain, numbered = Contract.of("explain", {"pixels"}), {"map_NN", "submask_NN"}
    plain = made_by("explain") - numbered
    explain.check_made({"pixels"}, plain | {"pixels"})
    explain.check_made({"pixels"}, plain | {"pixels", "map_00", "map_12", "submask_00"})
    with pytest.raises(ColumnError, match=r"makes the columns \['maps_NN'\]"):
        explain.check_made({"pixels"}, plain | {"pixels", "maps_00"})
    with pytest.raises(ColumnError, match=r"encode leaves the columns \['map_07'\]"):
        Contract.of("encode", {"mask"}).check_made({"map_07"}, made_by("encode") | {"map_07"})
