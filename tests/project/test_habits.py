"""The pre-commit hooks and make targets use the installed tools, and the recipes of CONTRIBUTING are right."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def test_hooks_are_local_and_run_what_the_makefile_runs():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    entries = [hook["entry"].split() for hook in repository["hooks"]]
    assert all(hook["language"] == "system" for hook in repository["hooks"])
    assert all((ROOT / entry[0]).exists() for entry in entries)
    check = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    checked = [tuple(re.findall(r"[a-z]+", line.partition("/")[2])[:2]) for line in check.splitlines()]
    hooked = [tuple(word for word in entry[0].split("/")[-1:] + entry[1:2]) for entry in entries]
    assert hooked == checked == [("ruff", "format"), ("ruff", "check"), ("mypy",)]


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_file_that_contributing_names_is_there():
    named = set(re.findall(r"`((?:vbp|tests|docs|examples)/[\w/.-]*)`", CONTRIBUTING))
    named |= set(re.findall(r"\]\(([\w/.-]+)\)", CONTRIBUTING))
    assert len(named) > 30
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_command_that_contributing_names_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z0-9]+)", CONTRIBUTING, re.MULTILINE))
    assert named <= targets, named - targets


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("vbp.choices", ["MaskFormat", "MASK_FORMATS", "OverlayStyle", "Source"]),
        ("vbp.columns", ["COLUMNS"]),
        ("vbp.images.encode", ["encode_mask", "decode_mask"]),
        ("vbp.images.overlay", ["overlay"]),
        ("vbp.storage.files", ["_open"]),
        ("vbp.storage.stores.store", ["Store"]),
        ("vbp.networks.model", ["Model"]),
        ("vbp.networks.sources.code", ["load", "check"]),
        ("vbp.storage.collections.manifestfile", ["ManifestRow"]),
        ("vbp.pipeline.prepare", ["list_input", "check_input", "contents_sha256"]),
        ("vbp.pipeline.steps", ["Fetch"]),
        ("tests.servers", ["any_store"]),
    ],
)
def test_what_the_recipes_of_contributing_change_is_there(module, names):
    found = import_module(module)
    for name in names:
        assert f"`{name}`" in CONTRIBUTING
        assert hasattr(found, name)
