"""The card, by the command: its page, its JSON, a sample, a resumed run, a wrong truth."""

import json
from importlib.util import find_spec

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from vbp.cli import main
from vbp.evaluation.saliencies import MAKERS

SMALL = ["--size", "64", "--fit", "stretch", "--runner", "local", "--precision", "float32"]


def card(*arguments):
    return CliRunner().invoke(main, ["card", *map(str, arguments), *SMALL])


@pytest.fixture(scope="module")
def truth(photos, tmp_path_factory):
    """The upper half of every image."""
    root = tmp_path_factory.mktemp("truth")
    for path in photos.rglob("*.*"):
        with Image.open(path) as image:
            drawn = np.zeros((image.height, image.width), np.uint8)
        drawn[: drawn.shape[0] // 2] = 255
        target = (root / path.relative_to(photos)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(target)
    return root


@pytest.fixture(scope="module")
def shown(photos, truth, tmp_path_factory, network_file):
    out = tmp_path_factory.mktemp("carded") / "out"
    asked = photos, out, "--truth", truth, "--weights", network_file, "--sample", "6"
    first, again = card(*asked), card(*asked, "--json")
    assert (first.exit_code, again.exit_code) == (0, 0), first.output + again.output
    return first, json.loads(again.stdout), out


def test_the_answers_are_printed(shown):
    lines = shown[0].stdout.splitlines()
    for question in ("Does the mask find objects?", "Does training matter?", "Is it stable?", "What does it cost?"):
        assert any(line.startswith(question) for line in lines)
    assert lines[-1].endswith("/card.html")


def test_the_sample_alone_is_looked_at_and_resumed(shown, photos):
    summary = shown[1]
    assert (summary["images"], summary["computed"]) == (6, 0)
    keys = {str(path.relative_to(photos)) for path in photos.rglob("*.*")}
    chosen = set(pq.read_table(shown[2] / "scores")["key"].to_pylist())
    assert len(chosen) == 6 < len(keys)
    assert chosen <= keys


def test_the_json_has_the_answers_and_all_figures(shown):
    found = json.loads((shown[2] / "card.json").read_text())
    assert found == shown[1]["card"]
    assert [answer["verdict"] for answer in found["answers"]][-1] == ""
    tables = {table["metric"]: {line["method"] for line in table["lines"]} for table in found["tables"]}
    assert {"vbp", "random-twin", "eigencam", "gradcam", "centre", "chance"} <= tables["energy-inside"]
    costly = {"vbp", "random-twin", "chance"}
    assert tables["insertion"] == tables["deletion"] == tables["mprt-last-ssim"] == tables["noise-ssim"] == costly


def test_the_page_has_the_published_figures_beside(shown):
    page = (shown[2] / "card.html").read_text()
    for text in ("Does training matter?", "VGG16, photographs of raccoons, 200 images", "generated scenes", "steps 1"):
        assert text in page, text


def test_without_truth_it_says_what_to_give(photos, tmp_path, network_file):
    done = card(photos, tmp_path / "out", "--weights", network_file, "--sample", "2", "--submodule", "features")
    assert done.exit_code == 0, done.output
    told = " ".join(done.stdout.split())
    assert "Does the mask find objects? Unknown: nobody said where they are." in told
    assert "give --truth, or weights with a classifier" in told


def test_another_sample_is_another_card(shown, photos, truth, network_file):
    done = card(photos, shown[2], "--truth", truth, "--weights", network_file, "--sample", "7")
    assert done.exit_code == 2
    assert "sample was 6, now 7" in done.stderr


def test_a_wrong_truth_is_refused_before_any_work(photos, truth, tmp_path, network_file):
    for path in truth.rglob("*.png"):
        target = tmp_path / "wrong" / path.relative_to(truth)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ones((3, 5), np.uint8)).save(target)
    done = card(photos, tmp_path / "out", "--truth", tmp_path / "wrong", "--weights", network_file)
    assert done.exit_code == 2
    assert "does not fit the images" in done.stderr
    assert not (tmp_path / "out" / "card.html").exists()


def test_a_rival_that_does_not_suit_the_network_is_left_out(photos, tmp_path, network_file, monkeypatch):
    """Nobody can leave it out by hand: a card has no --methods."""

    def unfit(subject):
        raise RuntimeError("no such layer")

    monkeypatch.setattr("vbp.evaluation.saliencies.MAKERS", {**MAKERS, "gradcam": unfit})
    done = card(photos, tmp_path / "out", "--weights", network_file, "--sample", "2")
    assert done.exit_code == 0, done.output
    found = set(pq.read_table(tmp_path / "out" / "scores")["method"].to_pylist())
    assert found == {"vbp", "random-twin", "eigencam", "centre", "edge", "uniform"}


def test_a_rival_s_missing_package_is_named(photos, tmp_path, network_file, monkeypatch):
    monkeypatch.setattr("vbp.pipeline.evaluate.find_spec", lambda name: None if "cam" in name else find_spec(name))
    monkeypatch.setattr("vbp.evaluation.saliencies.find_spec", lambda name: None if "cam" in name else find_spec(name))
    done = card(photos, tmp_path / "out", "--weights", network_file, "--sample", "2")
    assert done.exit_code == 2
    assert "pip install 'visualbackprop[eval]'" in done.stderr
