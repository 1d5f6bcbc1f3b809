"""The Dockerfile: linted, built from what its context holds, its packages those of the lock."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"


def lint(path):
    """What hadolint, with shellcheck inside, has against a Dockerfile."""
    linter = [Path(sys.executable).with_name("hadolint"), "--no-color", path]
    return subprocess.run(linter, capture_output=True, text=True, check=False).stdout


def test_the_linter_has_nothing_to_say():
    assert lint(DOCKERFILE) == ""


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("FROM python:${PYTHON}-slim-bookworm AS build", "FROM python AS build", "DL3006"),
        ("python:${PYTHON}-slim-bookworm AS build", "python:latest AS build", "DL3007"),
        ("--no-cache-dir ", "", "DL3042"),
        (" --yes", "", "DL3014"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
        ('"${WEIGHTS}"; \\\n    fi', '"${WEIGHTS}"; \\\n    if', "SC1"),
        ("USER 1000", "USER root", "DL3002"),
        ("COPY --from=build /opt/vbp", "COPY --from=biuld /opt/vbp", "DL3022"),
        ("ENV HOME", "EVN HOME", "unexpected"),
    ],
)
def test_a_broken_dockerfile_is_noticed(old, new, rule, tmp_path):
    text = DOCKERFILE.read_text()
    assert old in text
    broken = tmp_path / "Dockerfile"
    broken.write_text(text.replace(old, new))
    assert rule in lint(broken)


def test_the_context_holds_what_is_copied_and_nothing_else():
    first, *kept = [line for line in ignore_lines() if line != "**/__pycache__"]
    assert first == "*"
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    assert {line.removeprefix("!") for line in kept} == {name for names in copied for name in names.split()}
    assert all((ROOT / line.removeprefix("!")).exists() for line in kept)


def ignore_lines():
    lines = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_installer_is_taken_from_the_lock_with_its_hashes(tmp_path):
    (script,) = re.findall(r"sed -n '[^']*' requirements\.lock", DOCKERFILE.read_text())
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    found = subprocess.run(script, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^(\S+)==", found, re.MULTILINE) == ["uv"]
    assert "--hash=sha256:" in found


def test_packages_come_under_the_lock():
    text = DOCKERFILE.read_text()
    for line in re.findall(r"(?:uv )?pip install .*", text):
        assert any(f in line for f in ("--require-hashes", "--constraint requirements.lock", "--no-deps")), line
    assert "://" not in text
