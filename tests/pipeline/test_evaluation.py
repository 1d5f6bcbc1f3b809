"""What an evaluation measures, and what it refuses."""

import pytest

from vbp.errors import UsageError
from vbp.pipeline.config import RunConfig
from vbp.pipeline.evaluation import Card, Evaluation
from vbp.pipeline.on_ray.submit import check_places
from vbp.pipeline.prepare import absolute, contents_sha256
from vbp.pipeline.recipe import rows_together


def test_names_are_in_one_order_and_once():
    asked = Evaluation(methods=("edge", "vbp", " edge"), metrics=("energy-inside", "pointing-game"), truth="boxes")
    assert asked.methods == ("vbp", "edge")
    assert asked.metrics == ("pointing-game", "energy-inside")


@pytest.mark.parametrize("field", ["methods", "metrics"])
def test_an_unknown_name_lists_the_known_ones(field):
    with pytest.raises(UsageError, match=rf"--{field} \(=nothing\) has no such name: give some of .*, "):
        Evaluation(**{field: ("nothing",)})


def test_a_near_name_is_suggested():
    with pytest.raises(UsageError, match=r"--metrics \(=pointing\) .* did you mean pointing-game\?"):
        Evaluation(metrics=("pointing",))


def test_what_is_not_asked_for_is_what_can_be_had():
    methods, metrics = Evaluation(truth="boxes").chosen(has_classifier=False)
    assert "vbp" in methods
    assert "gradcam" not in methods
    assert "pointing-game" in metrics
    assert "gradcam" in Evaluation(truth="boxes").chosen(has_classifier=True)[0]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"methods": ("gradcam",), "truth": "boxes"}, "--methods gradcam needs a network with a classifier"),
        ({"metrics": ("pointing-game",)}, "--metrics pointing-game needs --truth"),
        ({}, "None of the usual metrics can be had: they need --truth"),
    ],
    ids=["method", "metric", "nothing"],
)
def test_what_cannot_be_had_is_refused(asked, said):
    with pytest.raises(UsageError, match=said):
        Evaluation(**asked).chosen(has_classifier=False)


def test_the_fingerprint_holds_it_and_that_of_other_runs_does_not():
    def fingerprint(**fields):
        return RunConfig(input="photos", output="out", **fields).fingerprint()

    plain, evaluated = fingerprint(), fingerprint(evaluation=Evaluation(truth="boxes", methods=("vbp",)))
    assert evaluated == plain | {"truth": "boxes", "methods": ["vbp"], "metrics": [], "evaluation_seed": 500}


def test_its_flags_are_part_of_the_command_line():
    config = RunConfig(input="photos", output="out", evaluation=Evaluation(truth="boxes", methods=("vbp", "edge")))
    assert config.command == "evaluate"
    assert config.arguments() == ["--truth=boxes", "--methods=vbp,edge", "--", "photos", "out"]
    assert RunConfig(input="photos", output="out").command == "explain"


def test_a_truth_on_this_machine_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = absolute(RunConfig(input="photos", output="out", evaluation=Evaluation(truth="boxes")))
    assert asked.truth == str(tmp_path / "boxes")
    remote = absolute(RunConfig(input="photos", output="out", evaluation=Evaluation(truth="s3://b/boxes")))
    assert remote.truth == "s3://b/boxes"
    assert absolute(RunConfig(input="photos", output="out")).truth is None


def test_a_cluster_does_not_see_a_relative_truth():
    asked = RunConfig(input="s3://b/i", output="s3://b/o", weights="demo", evaluation=Evaluation(truth="boxes"))
    with pytest.raises(UsageError, match=r"--truth \(=boxes\) is a path of this machine"):
        check_places(asked, "http://head:8265")


def test_the_content_of_a_truth_that_is_one_file_counts(tmp_path):
    place = tmp_path / "coco.json"
    place.write_text("{}")
    asked = RunConfig(input="photos", output="out", evaluation=Evaluation(truth=str(place)))
    before = contents_sha256(asked)
    place.write_text("[]")
    assert before.keys() == {"truth_sha256"}
    assert contents_sha256(asked) != before
    assert contents_sha256(RunConfig(input="photos", output="out", evaluation=Evaluation(truth=str(tmp_path)))) == {}


def test_few_images_are_in_flight_because_each_takes_long():
    plain = RunConfig(input="photos", output="out")
    asked = RunConfig(input="photos", output="out", evaluation=Evaluation(truth="boxes"))
    assert rows_together(asked, "cpu", 2, threads=4) == 2 < rows_together(plain, "cpu", 2, threads=4)


def test_a_card_asks_for_all_that_can_be_had():
    with_all = Card(truth="boxes").chosen(has_classifier=True)
    assert set(with_all[1]) == {
        "pointing-game", "energy-inside", "rank-accuracy", "insertion", "deletion", "mprt-last-ssim",
        "mprt-last-spearman", "noise-ssim", "sparseness",
    }  # fmt: skip
    methods, metrics = Card().chosen(has_classifier=False)
    assert methods == ("vbp", "random-twin", "eigencam", "centre", "edge", "uniform")
    assert set(metrics) == {"mprt-last-ssim", "mprt-last-spearman", "noise-ssim", "sparseness"}


def test_a_card_is_a_command_of_its_own_and_its_choice_is_in_the_fingerprint():
    config = RunConfig(input="photos", output="out", evaluation=Card(truth="boxes", sample=40))
    assert (config.command, config.sample) == ("card", 40)
    assert config.arguments() == ["--truth=boxes", "--sample=40", "--", "photos", "out"]
    found = config.fingerprint()
    assert (found["sample"], found["methods"][:2]) == (40, ["vbp", "random-twin"])
    assert RunConfig(input="photos", output="out", evaluation=Evaluation(truth="boxes")).sample is None
    assert isinstance(absolute(config).evaluation, Card)


def test_an_empty_sample_is_refused():
    with pytest.raises(UsageError, match=r"--sample \(=0\) must be at least 1"):
        Card(sample=0)
