"""What a run writes into its record, and how a later run uses it."""

import dataclasses
import json

import pytest

from vbp.errors import UsageError
from vbp.pipeline import RunConfig, Summary
from vbp.pipeline.classes import ClassMap
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.record import Record, fingerprint
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder
from vbp.storage.manifest.manifest import write_manifest
from vbp.storage.record import is_complete


@pytest.fixture
def output(tmp_path):
    return Folder(tmp_path / "out")


@pytest.fixture
def recipe(output):
    def recipe(sha256="a" * 64, precision="float32", **changes):
        config = RunConfig(input="photos", output=output.url, weights="w.pth", **changes)
        facts = {"run_id": "first", "device": "cpu", "batch_size": 2, "generation": "g"}
        facts["preprocessing"] = config.preprocessing()
        return Recipe(config=config, weights_sha256=sha256, precision=precision, **facts)

    return recipe


def summary_of(output, **changes):
    facts = {"images": 3, "ok": 3, "error": 0, "computed": 3, "failures_allowed": 0, "seconds": 1.0}
    facts |= {"runner": "local", "device": "cpu", "precision": "float32", "batch_size": 2, "workers": 1}
    return Summary(run_id="first", output=output.url, **facts | changes)


def test_what_is_begun_is_read_back(output, recipe):
    Record(output, {}).begin(recipe(size=64))
    facts = Record.load(output).facts
    assert (facts["run_id"], facts["input"], facts["device"], facts["batch_size"]) == ("first", "photos", "cpu", 2)
    assert (facts["config"]["size"], facts["fingerprint"]["weights"]) == (64, "a" * 64)
    assert {"python", "vbp", "torch", "ray"} <= set(facts["versions"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": 96}, "size was 224, now 96"),
        ({"outputs": ("mask",)}, "outputs was ['mask', 'overlay'], now ['mask']"),
        ({"precision": "bfloat16"}, "precision was 'float32', now 'bfloat16'"),
        ({"sha256": "b" * 64}, "weights was w.pth (SHA-256 aaaaaaaa...), now w.pth (SHA-256 bbbbbbbb...)"),
        ({"smooth": 2}, "smooth was 0, now 2"),
    ],
)
def test_another_configuration_is_refused_by_the_field(output, recipe, changes, said):
    Record(output, {}).begin(recipe())
    with pytest.raises(UsageError) as refused:
        Record.load(output).refuse_other(recipe(**changes))
    assert said in str(refused.value)
    assert "Use the old values, another OUTPUT, or --resume-mode overwrite." in str(refused.value)


@pytest.mark.parametrize("changes", [{}, {"workers": 3}, {"limit": 5}, {"max_failures": "9"}, {"runner": "ray"}])
def test_what_changes_no_result_is_no_other_configuration(output, recipe, changes):
    Record(output, {}).begin(recipe())
    record = Record.load(output)
    record.refuse_other(recipe(**changes))
    assert record.is_of(recipe(**changes).config, "a" * 64, {})
    assert not record.is_of(recipe(size=96).config, "a" * 64, {})


def test_what_an_older_vbp_did_not_ask_for_was_as_the_defaults_are(output, recipe):
    kept = {name: value for name, value in fingerprint(recipe()).items() if name not in ("pooling", "channels")}
    record = Record(output, {"fingerprint": kept, "config": {}})
    record.refuse_other(recipe())
    with pytest.raises(UsageError, match="pooling was 'exact', now 'unpool'"):
        record.refuse_other(recipe(pooling="unpool"))


def test_a_folder_stands_for_one_class(output):
    record = Record(output, {"classes": {"cat": 0, "dog": 1}})
    record.refuse_other_classes(ClassMap({"cat": 0, "dog": 1, "bird": 2}, None, "names"))
    with pytest.raises(UsageError, match="folder 'dog' stood for class 1, now for 2"):
        record.refuse_other_classes(ClassMap({"cat": 0, "dog": 2}, None, "names"))


def test_the_promise_is_made_at_the_end_and_withdrawn_at_the_beginning(output, recipe):
    record = Record(output, {})
    record.begin(recipe())
    record.end(summary_of(output, error=1, ok=2), {})
    assert not is_complete(output)  # more failures than allowed
    record.end(summary_of(output), {})
    assert is_complete(output)
    Record.load(output).begin(recipe())
    assert not is_complete(output)


def test_a_finished_run_is_finished_for_as_many_images_alone(output, recipe):
    record = Record(output, {})
    record.begin(recipe())
    record.end(summary_of(output), {})
    config = recipe().config
    found = Record.load(output).finished(3, config)
    assert (found.images, found.computed, found.seconds) == (3, 0, 0.0)
    assert Record.load(output).finished(4, config) is None
    other = dataclasses.replace(recipe().config, max_failures="2")
    assert Record.load(output).finished(3, other).failures_allowed == 2


def test_a_run_that_allows_fewer_failures_is_not_finished(output, recipe):
    record = Record(output, {})
    record.begin(recipe())
    record.end(summary_of(output, error=1, ok=2, failures_allowed=1), {})
    allowing = {number: dataclasses.replace(recipe().config, max_failures=number) for number in ("1", "0")}
    assert Record.load(output).finished(3, allowing["1"]).succeeded
    assert Record.load(output).finished(3, allowing["0"]) is None


def test_the_manifest_is_of_the_same_input_or_none(output, recipe):
    row = ManifestRow("a.jpg", "/in/a.jpg", b"a.jpg", None)
    manifest = write_manifest(output, [row], 4, input="photos")
    Record(output, {}).begin(recipe())
    record = Record.load(output)
    assert record.manifest("photos").images == 1
    assert record.manifest("others") is None
    assert not record.fits(manifest)
    record.adopt(manifest)
    assert Record.load(output).fits(manifest)


def test_results_that_nobody_knows_the_configuration_of(output):
    assert Record.load(output).facts == {}
    output.write("_run/parts/000000/some.parquet", b"x")
    with pytest.raises(UsageError, match=r"run.json is gone, though _run/parts/000000/some.parquet is there"):
        Record.load(output)
    output.write("_run/run.json", b"{")
    with pytest.raises(UsageError, match="--resume-mode overwrite starts over here"):
        Record.load(output)
    output.write("_run/run.json", json.dumps({"run_id": "x"}).encode())
    assert Record.load(output).facts["run_id"] == "x"
