"""Sound outputs, damaged at random: every command ends in findings or a sentence, and what is mended is sound."""

import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vbp.errors import VBPError
from vbp.review.failures import failures
from vbp.review.output import Output
from vbp.review.report import render, report
from vbp.review.status import status
from vbp.review.validate import validate

SEEDS = [*range(10), 63, 138, 156, 208]
VALUES = [None, -1, 0, 1, 2**31 - 1, 2**62, "", "x", "../../etc/passwd", "masks/../x", "s3://b/k", 0.5, float("nan"),
          True, [], {}, "\u202e\x9b"]  # fmt: skip


def damage_bytes(chance, path):
    data = bytearray(path.read_bytes())
    how = chance.choice(["cut", "flip", "empty", "other"])
    if how == "cut":
        data = data[: chance.randrange(max(1, len(data)))]
    elif how == "flip" and data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data) if how in ("cut", "flip") else b"" if how == "empty" else b"PAR1 not ours PAR1")


def damage_table(chance, path):
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):
        return damage_bytes(chance, path)
    name = chance.choice(table.column_names)
    at = table.schema.get_field_index(name)
    if chance.random() < 0.3:
        table = table.remove_column(at)
    else:
        value = chance.choice(VALUES)
        if chance.random() < 0.6:
            column = table[name].to_pylist()
            if column:
                column[chance.randrange(len(column))] = value
        else:
            column = [value] * table.num_rows
        try:
            kind = table.schema.field(at).type if chance.random() < 0.7 else None
            table = table.set_column(at, name, pa.array(column, kind))
        except (pa.ArrowException, TypeError, OverflowError):
            return damage_bytes(chance, path)
    data = io.BytesIO()
    try:
        pq.write_table(table, data)
    except (pa.ArrowException, OSError):
        return damage_bytes(chance, path)
    path.write_bytes(data.getvalue())


def damage_json(chance, path):
    try:
        fields = json.loads(path.read_text())
    except (ValueError, OSError):
        return damage_bytes(chance, path)
    where = fields
    for _ in range(chance.randint(0, 1)):
        inner = [value for value in where.values() if isinstance(value, dict) and value] if where else []
        where = chance.choice(inner) if inner else where
    if not isinstance(where, dict) or not where:
        return damage_bytes(chance, path)
    name = chance.choice(list(where))
    if chance.random() < 0.4:
        del where[name]
    else:
        where[name] = chance.choice(VALUES)
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize("seed", SEEDS)
def test_damage_ends_in_findings_or_a_sentence(finished, tmp_path, seed):
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        files = [path for path in sorted((tmp_path / "out").rglob("*")) if path.suffix in (".parquet", ".json")]
        path = chance.choice(files)
        if chance.random() < 0.25:
            damage_bytes(chance, path)
        elif path.suffix == ".json":
            damage_json(chance, path)
        else:
            damage_table(chance, path)
    looks = (
        lambda: validate(Output.open(finished.url), deep=True),
        lambda: status(finished.url),
        lambda: failures(Output.open(finished.url)),
        lambda: render(report(Output.open(finished.url))),
    )
    sentences = [sentence_of(look) for look in looks]
    assert all(sentence is None or (sentence and "\n" not in sentence) for sentence in sentences), sentences
    refusal = sentence_of(lambda: validate(Output.open(finished.url), deep=True, repair=True))
    refusal = refusal or sentence_of(lambda: sound(validate(Output.open(finished.url), deep=True)))
    ways_out = ("restore it", "start over", "--resume-mode overwrite", "unknown to this version")
    assert refusal is None or any(words in refusal for words in ways_out), refusal


def sentence_of(look):
    """What it says where it refuses; None where it does not. Every other error is a failure."""
    try:
        look()
    except VBPError as error:
        return str(error)
    return None


def sound(found):
    assert found.is_sound, found
