"""One version of each thing in all files of `cluster/`: that of the lock, of pyproject.toml, of vbp."""

import re
import tomllib
from pathlib import Path

import pytest

import vbp

ROOT = Path(__file__).parents[2]
LOCK = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
FILES = sorted(path for path in (ROOT / "cluster").rglob("*") if path.is_file() and path.suffix != ".pyc")
PATTERNS = {  # what stands in front of a version: which version that is
    r"rayVersion: \"?": LOCK["ray"],
    r"\b(?:ray|Ray)(?:\[\w+\])?(?:==| )": LOCK["ray"],
    r"\btorch==": LOCK["torch"],
    r"\btorchvision==": LOCK["torchvision"],
    r"\buv==": LOCK["uv"],
    r"\bboto3==": LOCK["botocore"],  # they are released together
    r"/vbp:": vbp.__version__,
    r"\bPYTHON=": "3.11",  # the lock is made for it, and may be used with newer ones
    r"--python ": "3.11",
    r"\bpython:": "3.11",
}


def mismatches(text):
    """Every version in a text that is not the one that it must be."""
    found = []
    for before, version in PATTERNS.items():
        for stated in re.findall(rf"{before}(\d[\w.]*)", text):
            short = version.count(".") == 1
            if (".".join(stated.split(".")[:2]) if short else stated.rstrip(".")) != version:
                found.append(f"{before}{stated} should be {version}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_versions_are_those_of_the_lock(path):
    assert mismatches(path.read_text()) == []


def test_the_lock_is_made_for_the_python_of_the_image():
    assert "--python-version 3.11" in (ROOT / "Makefile").read_text()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11"


def test_versions_are_stated_at_all():
    text = "\n".join(path.read_text() for path in FILES)
    for before in (r"rayVersion: \"?", r"\bboto3==", r"/vbp:", r"\bPYTHON=", r"--python "):
        assert re.search(rf"{before}\d", text), before


@pytest.mark.parametrize(
    "text",
    ['rayVersion: "2.59.0"', "ray==2.60.1", "ray[default]==2.6", "torch==2.14.0", "registry/vbp:0.0.9", "boto3==1.4.8",
     "ARG PYTHON=3.12.1", "uv venv --python 3.10", "python:3.13-slim"],
)  # fmt: skip
def test_another_version_is_noticed(text):
    assert mismatches(text)


def test_nothing_is_pulled_as_latest():
    for path in FILES:
        assert not re.search(r"[:@]latest\b", path.read_text()), path
