"""The commands and programs that README and the site show, run as they stand."""

import gc
import json
import re
import shlex
import shutil
import warnings
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from vbp.cli import main

ROOT = Path(__file__).parents[2]
WEIGHTS = ["--weights", "model.safetensors"]


def blocks(page):
    """The blocks of code in a page, each with its language."""
    return re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page):
    """Every line of a page that calls ``vbp``, as arguments."""
    lines = [line for kind, text in blocks(page) if not kind for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("vbp ")]


def invoke(*arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (arguments, result.output)
    return result


@pytest.fixture(scope="module")
def home(tmp_path_factory, photos, network_file):
    """A folder with what the pages take for granted: ``photos`` and ``model.safetensors``."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(photos, folder / "photos")
    Image.new("RGB", (40, 30), "teal").save(folder / "photos" / "dog" / "xxx.png")
    shutil.copy(network_file, folder / "model.safetensors")
    return folder


@pytest.fixture
def place(home, tmp_path, monkeypatch):
    """A copy of it, to be in."""
    for name in ("photos", "model.safetensors"):
        copy = shutil.copytree if (home / name).is_dir() else shutil.copy
        copy(home / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def done(home):
    """The same after ``vbp explain photos out``, to be left as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        invoke("explain", "photos", "out", *WEIGHTS)
    return home


@pytest.mark.parametrize("page", ["README.md", "docs/start.md", "docs/how-to/resume.md"])
def test_the_commands_of_a_page(page, place):
    """In their order; what explains is given small weights, and may fail for one image."""
    Path("photos", "cat", "broken.jpg").write_bytes(b"no image")
    shown = commands(page)
    plans = [arguments for arguments in shown if arguments[0] == "plan"]
    explains = [arguments for arguments in shown if arguments[0] == "explain"] or [["explain", "photos", "out"]]
    looks = [arguments for arguments in shown if arguments[0] not in ("plan", "explain")]
    for arguments in plans:
        invoke(*arguments)
        assert not Path("out").exists()
    for arguments in explains:
        invoke(*arguments, *WEIGHTS, "--max-failures", "1")
    for arguments in looks:
        invoke(*arguments)
    assert "broken.jpg" in Path("report.html").read_text()
    if page == "docs/how-to/resume.md":
        assert {"status", "failures", "validate", "report"} == {arguments[0] for arguments in looks}
        assert "broken.jpg" in Path("failed.csv").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/start.md", "docs/how-to/query.md"])
def test_the_programs_that_ask_the_index(page, done, monkeypatch):
    monkeypatch.chdir(done)
    names = {}
    programs = [text for kind, text in blocks(page) if kind == "python" and "VisualBackProp" not in text]
    for text in programs:
        exec(text, names)
    assert len(names["rows"]) == 23
    if page == "docs/how-to/query.md":
        assert names["mask_HW"].shape == (224, 224)
        assert 0 <= names["x"] <= 40
        assert 0 <= names["y"] <= 30


def test_the_questions_to_duckdb(done, monkeypatch):
    monkeypatch.chdir(done)
    questions = [text for kind, text in blocks("docs/how-to/query.md") if kind == "sql"]
    failed, by_class, mistakes, settings = [duckdb.sql(text).fetchall() for text in questions]
    assert failed == []
    assert {row[0] for row in by_class} == {"bird", "cat", "dog"}
    assert len(mistakes) <= 20
    assert [row[-1] for row in settings] == [23]


def test_the_tars(place):
    (explain,) = commands("docs/how-to/tars.md")
    invoke(*explain, *WEIGHTS)
    (program,) = [text for kind, text in blocks("docs/how-to/tars.md") if kind == "python"]
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the closing of its files to the collector
        exec(program, names)
        mask_HW, label = names["mask_HW"], names["label"]
        names.clear()  # else a later test gets the warning
        gc.collect()
    assert mask_HW.shape == (224, 224)
    assert label in ("bird", "cat", "dog")


def test_the_library(place):
    torch.manual_seed(5)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 300, 3), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    ).eval()  # fmt: skip
    names = {"model": model, "images_BCHW": torch.rand(2, 3, 32, 32), "pixels_BHWC": np.zeros((1, 32, 32, 3), np.uint8)}
    for text in [text for kind, text in blocks("docs/how-to/library.md") if kind == "python"]:
        small = text.replace('output="out", weights="demo"', 'output="out", weights="demo", size=32')
        exec(re.sub(r"^export.*", "", small, flags=re.MULTILINE), names)  # tests/saliency/test_export.py has these
    assert names["mask_B1HW"].shape == (2, 1, 32, 32)
    photos = [path for path in Path("photos").rglob("*.jpg")]
    drawn = {path.name for path in Path("masks").iterdir()}
    assert drawn == {f"{path.parent.name}-{path.stem}.png" for path in photos}
    assert torch.equal(names["mask_B1HW"], names["result"].mask)
    assert names["batch"].mask_BHW.shape == (1, 32, 32)
    assert (names["summary"].exit_code, names["masks_BHW"].shape) == (0, (2, 32, 32))


def test_the_library_of_readme():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    names = {"model": model, "images_BCHW": torch.rand(1, 3, 16, 16)}
    (program,) = [text for kind, text in blocks("README.md") if "VisualBackProp" in text]
    exec(program, names)
    assert names["mask_B1HW"].shape == (1, 1, 16, 16)


def test_the_sweep(place):
    (_, file), (_, lines) = blocks("docs/how-to/sweep.md")
    Path("sweep.yaml").write_text(file.replace("size: 224", "size: 32"))
    plan, sweep, status = [shlex.split(line, comments=True)[1:] for line in lines.splitlines()]
    planned = CliRunner().invoke(main, plan)
    assert planned.exit_code == 0, planned.output
    assert re.search(r"all together +69 +0 +69", planned.stdout)
    assert "The budget is 6.66667 h of work: it suffices." in planned.stdout
    assert not Path("sweep").exists()
    done = CliRunner().invoke(main, sweep)
    assert done.exit_code == 0, done.output
    for text in ("weights-random--preset-paper       finished  23", "preset  ", "correlation", "comparison.parquet"):
        assert text in done.stdout
    seen = CliRunner().invoke(main, status)
    assert "finished: every image has its row" in seen.stdout
    rows = pads.dataset("sweep/index").to_table(columns=["run_weights", "run_preset"]).to_pylist()
    assert Counter(map(tuple, map(dict.values, rows))) == dict.fromkeys(
        [("trained", "paper"), ("trained", "reference"), ("random", "paper")], 23
    )
    whole = CliRunner().invoke(main, ["status", "sweep"])
    assert (whole.exit_code, "a sweep's, of 3 runs, its index complete; give " in whole.stderr) == (2, True)
    again = CliRunner().invoke(main, [*sweep, "--json"])
    told = json.loads(again.stdout)
    assert [run["summary"]["computed"] for run in told["runs"]] == [0, 0, 0]
    assert len(told["comparison"]["pairs"]) == 3
    assert pq.read_table("sweep/comparison.parquet").num_rows == 3
