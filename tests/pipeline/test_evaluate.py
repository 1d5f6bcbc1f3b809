"""The evaluation, whole: scores beside the results of a run, resumed, refused, promised."""

import dataclasses
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vbp.errors import UsageError
from vbp.pipeline.config import RunConfig
from vbp.pipeline.evaluation import Evaluation
from vbp.pipeline.job import run
from vbp.storage.files import Folder
from vbp.storage.record import is_complete

METHODS = ("vbp", "random-twin", "centre", "edge")
METRICS = ("pointing-game", "energy-inside")


@pytest.fixture(scope="module")
def truth(photos, tmp_path_factory):
    """A mask for each image but one: its left half."""
    root = tmp_path_factory.mktemp("truth")
    for path in sorted(photos.rglob("*.*"))[1:]:
        with Image.open(path) as image:
            drawn = np.zeros((image.height, image.width), np.uint8)
        drawn[:, : drawn.shape[1] // 2] = 255
        target = (root / path.relative_to(photos)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(target)
    return root


def config(photos, out, network_file, truth, **changes):
    evaluation = Evaluation(methods=METHODS, metrics=METRICS, truth=str(truth))
    fields = {"input": str(photos), "output": str(out), "weights": network_file, "size": 64, "fit": "stretch"}
    fields |= {"precision": "float32", "runner": "local", "batch_size": 4, "evaluation": evaluation}
    return RunConfig(**fields | changes)


def scores_of(out):
    rows = pq.read_table(out / "scores").to_pylist()
    found = {(row["key"], row["method"], row["metric"]): (row["value"], row["chance"]) for row in rows}
    assert len(found) == len(rows)
    return {name: numbers for name, numbers in found.items() if name[2] != "seconds"}


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory, network_file, truth):
    out = tmp_path_factory.mktemp("evaluated") / "out"
    assert run(config(photos, out, network_file, truth)).succeeded
    return out


def test_every_image_with_a_truth_has_every_score(finished, photos):
    scores, keys = scores_of(finished), sorted(str(path.relative_to(photos)) for path in photos.rglob("*.*"))
    assert set(scores) == {(key, method, metric) for key in keys[1:] for method in METHODS for metric in METRICS}
    assert all(0 <= value <= 1 and chance == pytest.approx(0.5, abs=0.02) for value, chance in scores.values())


def test_the_scores_are_those_of_the_written_masks(finished):
    """Computed once more from the PNGs: the truth is the left half of the frame."""
    scores, seen = scores_of(finished), 0
    for (key, method, metric), (value, _) in scores.items():
        mask = np.asarray(Image.open(finished / "masks" / f"{key}.png")) / 255
        if (method, metric) == ("vbp", "energy-inside") and mask.any():
            assert value == pytest.approx(mask[:, :32].sum() / mask.sum(), abs=0.03)
            seen += 1
    assert seen > 10


def test_the_cost_of_every_method_is_there(finished):
    rows = [row for row in pq.read_table(finished / "scores").to_pylist() if row["metric"] == "seconds"]
    assert {row["method"] for row in rows} == set(METHODS)
    assert all(row["value"] > 0 for row in rows)


def test_methods_differ(finished):
    scores = scores_of(finished)
    energy = {
        tuple(value for (_, *names), (value, _) in scores.items() if names == [method, "energy-inside"])
        for method in METHODS
    }
    assert len(energy) == len(METHODS)


def test_a_resumed_evaluation_loses_and_doubles_nothing(finished, photos, tmp_path, network_file, truth):
    out = tmp_path / "out"
    asked = config(photos, out, network_file, truth)
    assert run(dataclasses.replace(asked, limit=9)).images == 9
    assert len({key for key, _, _ in scores_of(out)}) == 8
    assert run(asked).computed == 13
    assert scores_of(out) == scores_of(finished)
    assert run(asked).computed == 0


def test_the_promise_covers_the_scores(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    folder = Folder(str(out))
    assert is_complete(folder)
    (out / "scores" / "part-00000.parquet").write_bytes(b"of somebody else")
    assert not is_complete(folder)


def test_a_start_over_removes_old_scores(finished, photos, tmp_path, network_file, truth):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    plain = config(photos, out, network_file, truth, evaluation=None)
    with pytest.raises(UsageError, match="truth was"):
        run(plain)
    run(dataclasses.replace(plain, resume_mode="overwrite"))
    assert not list((out / "scores").glob("*"))
    assert is_complete(Folder(str(out)))


def test_a_wrong_truth_is_an_error_row_of_its_image(photos, tmp_path, network_file, truth):
    wrong = tmp_path / "truth"
    shutil.copytree(truth, wrong)
    some = sorted(wrong.rglob("*.png"))
    Image.fromarray(np.ones((3, 5), np.uint8)).save(some[-1])
    some[-2].write_bytes(b"no image")
    out = tmp_path / "out"
    summary = run(config(photos, out, network_file, wrong, max_failures="2"))
    assert summary.reasons == {"evaluate: TruthError": 2}
    rows = [row for row in pq.read_table(out / "index").to_pylist() if row["status"] == "error"]
    assert {row["error_message"].partition("the truth is ")[2][:8] for row in rows} == {"of an im", "no image"}


def test_truths_of_other_images_are_refused_before_any_work(photos, tmp_path, network_file, truth):
    wrong = tmp_path / "truth"
    shutil.copytree(truth, wrong)
    for path in wrong.rglob("*.png"):
        Image.fromarray(np.ones((3, 5), np.uint8)).save(path)
    with pytest.raises(UsageError, match=r"--truth \(=.*\) does not fit the images: .*of an image of 5x3 pixels"):
        run(config(photos, tmp_path / "out", network_file, wrong))
    assert not (tmp_path / "out" / "index").exists()


def test_a_method_that_does_not_suit_is_refused_before_any_work(photos, tmp_path, network_file, truth):
    asked = Evaluation(methods=("gradcam",), truth=str(truth))
    backbone = config(photos, tmp_path / "out", network_file, truth, submodule="features", evaluation=asked)
    with pytest.raises(UsageError, match="--methods gradcam needs a network with a classifier"):
        run(backbone)
    assert not (tmp_path / "out" / "index").exists()
