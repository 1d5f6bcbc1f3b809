"""The benchmark as a whole."""

import json
import os

import pytest
from click.testing import CliRunner

from vbp import cli
from vbp.errors import UsageError
from vbp.evidence.benchmark import PARTS, benchmark
from vbp.evidence.page import page


def test_the_command_knows_all_parts():
    assert tuple(PARTS) == cli.MEASURED


def test_what_is_asked_for_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a cluster is not this machine
    lines = []
    found = benchmark(["storage"], rounds=1, batch_size=3, place=str(tmp_path), report=lines.append)
    assert {rate["part"] for rate in found["rates"]} == {"storage"}
    assert (found["batch_size"], found["rounds"], found["figures"], found["notes"]) == (3, 1, [], [])
    assert lines == ["storage: round 1 of 1"]
    assert "RAY_ADDRESS" not in os.environ


def test_capabilities_are_of_the_engine():
    with pytest.raises(UsageError, match="--capabilities is of the part engine, which is not among storage, codecs"):
        benchmark(["storage", "codecs"], rounds=1, capabilities=True, report=print)


def test_file_and_page_hold_the_same(tmp_path):
    asked = ["benchmark", "storage", "--rounds", "1", "--output", str(tmp_path / "here.json")]
    done = CliRunner().invoke(cli.main, asked, catch_exceptions=False)
    assert done.exit_code == 0
    measured = json.loads((tmp_path / "here.json").read_text())
    assert (tmp_path / "here.md").read_text() == page(measured) == done.stdout
