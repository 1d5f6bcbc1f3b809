"""What everyone types before a commit: the hooks run what ``make check`` runs, with what is installed."""

import re
from pathlib import Path

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
