"""The file of one run: what is written asks for the same when it is read."""

import dataclasses

import pytest

from vbp.choices import choices_of
from vbp.errors import UsageError
from vbp.pipeline import RunConfig
from vbp.pipeline.runfile import _FIELDS, parse_run, save_run, text_of_run


def other_value(field, hint):
    """One that differs from the default."""
    if hint is bool:
        return not field.default
    if choices := choices_of(hint):
        return next(choice for choice in choices if choice != field.default)
    by_name = {"outputs": ("maps",), "suffixes": (".jpg", "none"), "max_failures": "7", "noise": 0.25}
    by_name |= {"storage_options": {"s3://b": {"endpoint_url": "http://h:1"}}, "node_labels": "zone=a"}
    by_name["model_args"] = {"depth": 18, "stem": {"width": 32}}
    by_name |= dict.fromkeys(("mean", "std"), (0.25, 0.5, 1.0))
    return by_name.get(field.name, 7 if hint in (int, int | None) else "5%é: 'x' #y")


def test_every_field_comes_back_as_it_was():
    from typing import get_type_hints

    hints = get_type_hints(RunConfig)
    for name, field in _FIELDS.items():
        values = {"input": "a b", "output": "s3://b/out"} | {name: other_value(field, hints[name])}
        config = RunConfig(**values)
        assert RunConfig(**parse_run(text_of_run(config))) == config, name


def test_only_what_differs_from_the_defaults_is_written():
    text = text_of_run(RunConfig(input="in", output="out", size=64, outputs=("overlay", "mask"), max_failures="2"))
    assert text == "input: in\noutput: out\nsize: 64\nmax_failures: '2'\n"


def test_an_empty_file_says_nothing():
    assert parse_run("") == {}
    assert parse_run("input: .\nsize: 32") == {"input": ".", "size": 32}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("size: big", "my.yaml: size (='big') must be a whole number or null (auto)."),
        ("preset: papper", "my.yaml: preset: --preset (=papper) must be one of paper, reference."),
        ("input: 3", "my.yaml: input (=3) must be text; put it in quotes."),
        ("outputs: [movie]", "my.yaml: outputs: --outputs (=movie) must be one of mask, overlay, input, maps."),
        ("photos", "my.yaml: the file (='photos') must be a mapping of names to values."),
    ],
)
def test_what_cannot_be_meant_is_refused(text, said):
    with pytest.raises(UsageError) as refused:
        parse_run(text, "my.yaml")
    assert str(refused.value) == said


def test_a_secret_is_written_nowhere(tmp_path):
    config = RunConfig(input="in", output="out", classes="https://me:word@h/classes.txt")
    with pytest.raises(UsageError, match=r"--classes \(=https://h/classes.txt\)"):
        save_run(config, str(tmp_path / "run.yaml"))
    secret = dataclasses.replace(config, classes=None, storage_options={"s3://b": {"x": {"sas": "word"}}})
    with pytest.raises(UsageError, match="environment"):
        save_run(secret, str(tmp_path / "run.yaml"))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--save-config \(=.*file/run.yaml\) cannot be written"):
        save_run(RunConfig(input="in", output="out"), str(tmp_path / "file" / "run.yaml"))
