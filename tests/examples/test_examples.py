"""The programs in ``examples/``, run as their first lines say."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from vbp.cli import main
from vbp.images.encode import decode_mask

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(photos, tmp_path, monkeypatch, capsys):
    """Do what an example's docstring shows, in a folder with ``photos`` and ``photo.jpg``; returns what it says."""
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(photos)
    Path("photo.jpg").symlink_to(photos / "cat" / "04.jpg")

    def run(name):
        text = (EXAMPLES / name).read_text().split('"""')[1]
        commands = [shlex.split(line) for line in re.findall(r"^    ((?:vbp|python) .*)$", text, re.MULTILINE)]
        *before, (python, path, *arguments) = commands
        assert (python, path) == ("python", f"examples/{name}")
        for _, *words in before:
            done = CliRunner().invoke(main, [*words, "--size", "64"])
            assert done.exit_code == 0, done.output
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_one_image(run):
    said = run("one_image.py")
    x, y = map(int, re.search(r"photo.jpg: brightest at \((\d+), (\d+)\) of 224 x 224", said).groups())
    assert decode_mask(Path("mask.png").read_bytes())[y, x] == 1
    assert size_of("overlay.jpg") == (224, 224)


def test_own_network(run):
    said = run("own_network.py")
    assert "mask: (1, 1, 64, 96) from 0.0 to 1.0" in said
    assert re.search(r"stages multiplied, first to last: .+, .+\n", said)
    assert re.search(r"class: \d\n", said)


def test_ray_dataset(run, ray_session, photos):
    Path("photos").unlink()
    shutil.copytree(photos, "photos")
    shutil.copy(photos / "cat" / "04.jpg", Path("photos", "cat", "IMG_1.JPG"))
    said = run("ray_dataset.py")
    images = [path for path in Path("photos").rglob("*") if path.suffix in (".jpg", ".jpeg", ".png", ".JPG")]
    names = {f"{path.parent.name}-{path.name}.png" for path in images}
    assert "cat-IMG_1.JPG.png" in names
    assert {path.name for path in Path("masks").iterdir()} == names
    assert {size_of(path) for path in Path("masks").iterdir()} == {(96, 96)}
    assert "error" not in said


def test_read_index(run):
    said = run("read_index.py")
    for label in ("bird", "cat", "dog"):
        assert label in said
    assert size_of("strongest.jpg")[0] >= 70
    assert "drawn in strongest.jpg" in said


def test_masks_from_tars(run):
    said = run("masks_from_tars.py")
    assert "64 x 64, mean 0." in said
    assert "22 masks in tars" in said


def test_every_example_has_its_test():
    tested = set(re.findall(r'run\("(\w+\.py)"\)', Path(__file__).read_text()))
    assert tested == {path.name for path in EXAMPLES.glob("*.py")}
