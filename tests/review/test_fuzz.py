"""Sound outputs, damaged at random: every command ends with findings or a message, and a repaired output is sound."""

import random

import pytest

from tests.damaged import damage, damage_json
from vbp.errors import VBPError
from vbp.review.failures import failures
from vbp.review.output import Output
from vbp.review.report import render, report
from vbp.review.status import status
from vbp.review.validate import validate

SEEDS = [*range(10), 63, 138, 156, 208]


@pytest.mark.parametrize("seed", SEEDS)
def test_damage_ends_in_findings_or_a_sentence(finished, tmp_path, seed):
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        files = [path for path in sorted((tmp_path / "out").rglob("*")) if path.suffix in (".parquet", ".json")]
        damage(chance, chance.choice(files))
    assert_findings_or_sentences(finished)


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_promise_ends_in_findings(finished, tmp_path, seed):
    chance = random.Random(seed)
    finished.promise()
    damage_json(chance, tmp_path / "out" / "_SUCCESS")
    assert_findings_or_sentences(finished)


def assert_findings_or_sentences(finished):
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
