"""The wheel holds the program and all that it carries, and works away from the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "vbp", source / "vbp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "jobs", source / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.long
def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vbp", "visualbackprop"}
    needed_files = (
        "vbp/py.typed", "vbp/cli.py", "vbp/demo/vgg16_demo.safetensors", "vbp/networks/imagenet_wnids.txt",
        "vbp/review/report.html.jinja",
        "vbp/review/reference.json",
    )  # fmt: skip
    for needed in needed_files:
        assert needed in names


@pytest.mark.long
def test_the_distribution_has_a_name_that_is_ours_and_brings_the_command_vbp(wheel):
    assert wheel.name.startswith("visualbackprop-")
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    assert "\nName: visualbackprop\n" in metadata
    (scripts,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "vbp = vbp.cli:main" in scripts


def test_the_demo_runs_elsewhere(wheel, tmp_path, own_ray):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    where = subprocess.run(
        [sys.executable, "-c", "import vbp; print(vbp.__file__)"], capture_output=True, text=True, check=True,
        env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert where.stdout.startswith(str(tmp_path / "site"))
    done = subprocess.run(
        [sys.executable, "-m", "vbp.cli", "demo", "--scenes", "12"], capture_output=True, text=True, timeout=500,
        env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, score, further = done.stdout.splitlines()
    assert score.startswith("peaks inside: ")
    assert " of 12 (" in score
    for rival in ("random weights:", "image centre:", "strongest edge:"):
        assert rival in score
    assert "vbp explain" in further
    assert len(list((tmp_path / "vbp-demo" / "results" / "overlays").rglob("*.jpg"))) == 12
    assert "Warning" not in done.stderr
