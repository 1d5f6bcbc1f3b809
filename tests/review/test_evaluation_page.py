"""The table and the page of an evaluation, by the command."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from vbp.cli import main


@pytest.fixture(scope="module")
def shown(photos, tmp_path_factory, network_file):
    root = tmp_path_factory.mktemp("evaluated")
    for path in photos.rglob("*.*"):
        with Image.open(path) as image:
            drawn = np.zeros((image.height, image.width), np.uint8)
        drawn[: drawn.shape[0] // 2] = 255
        target = (root / "truth" / path.relative_to(photos)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(target)
    asked = ["evaluate", str(photos), str(root / "out"), "--truth", str(root / "truth"), "--weights", network_file]
    asked += ["--size", "64", "--fit", "stretch", "--runner", "local", "--limit", "8", "--precision", "float32"]
    asked += ["--methods", "vbp,centre", "--metrics", "energy-inside,deletion"]
    first, again = (CliRunner().invoke(main, [*asked, *more]) for more in ([], ["--json"]))
    assert (first.exit_code, again.exit_code) == (0, 0), first.output + again.output
    return first, json.loads(again.stdout), (root / "out" / "evaluation.html").read_text()


def test_the_table_is_printed(shown):
    lines = shown[0].stdout.splitlines()
    assert any(line.startswith("energy-inside") and " vbp " in line for line in lines)
    assert any(line.startswith("deletion (less is better)") for line in lines)
    assert lines[-1].endswith("/evaluation.html")


def test_the_json_has_the_summary_and_the_tables(shown):
    found = shown[1]
    assert (found["images"], found["computed"]) == (8, 0)
    tables = {table["metric"]: table for table in found["evaluation"]["tables"]}
    assert list(tables) == ["energy-inside", "deletion"]
    assert [line["method"] for line in tables["deletion"]["lines"]] == ["vbp", "centre"]
    assert set(found["evaluation"]["seconds"]) == {"vbp", "centre"}
    assert tables["energy-inside"]["lines"][1]["mean"] == pytest.approx(0.5, abs=0.02)  # a centred bump over halves


def test_the_page_names_methods_metrics_and_settings(shown):
    page = shown[2]
    for text in ("energy-inside", "deletion", "vbp", "centre", "Score-CAM", "steps 16", "network", "seed 500"):
        assert text in page, text
