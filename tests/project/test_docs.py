"""README, changelog and lock say what is true."""

import dataclasses
import json
import re
import shlex
import shutil
import tomllib
from collections import Counter
from pathlib import Path

import pyarrow.dataset as pads
import pyarrow.parquet as pq
from click.testing import CliRunner

import vbp
from vbp.cli import explain, main
from vbp.flags import ALIASES
from vbp.pipeline import RunConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


ROOMS = ("vbp", "jobs", "cluster", "docs", "benchmarks", "tests")
STRANGER = re.compile(r"install\b[^`\n]*\s['\"]vbp\b|pip install vbp\b|\bvbp\\?\[[a-z{]")
"""What would install it: ``pip install vbp``, ``'vbp[s3]'``."""


def table_rows():
    """Option name -> default, from README's table of options."""
    rows = re.findall(r"^\| (`--[^|]*) \|([^|]*)\|", README, re.MULTILINE)
    return {names: default.strip().strip("`") for names, default in rows}


def test_every_option_stands_in_the_readme_with_its_default():
    defaults = {name: default for names, default in table_rows().items() for name in re.findall(r"--[\w-]+", names)}
    for field in dataclasses.fields(RunConfig):
        if field.name in ("input", "output"):
            continue
        flag = "--" + field.name.replace("_", "-")
        assert flag in defaults, f"{flag} is missing in README"
        if isinstance(field.default, (str, int)) and not isinstance(field.default, bool):
            assert defaults[flag] == str(field.default), flag
        for alias in ALIASES.get(field.name, ()):
            assert alias in defaults, f"{alias} is missing in README"


def test_readme_names_no_option_that_does_not_exist():
    commands = [explain, *main.commands.values()]
    known = {name for command in commands for parameter in command.params for name in parameter.opts}
    known |= {"--address", "--working-dir"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README)) <= known


def test_the_commands_of_the_section_operate(photos, network_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    Path("photos", "cat", "broken.jpg").write_bytes(b"no image")
    shutil.copy(network_file, "model.safetensors")
    block = re.search(r"^## Operate\n.*?^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    plan, *others = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert plan[0] == "plan"
    assert {"status", "failures", "validate", "report"} == {arguments[0] for arguments in others}
    assert CliRunner().invoke(main, plan).exit_code == 0
    assert not Path("out").exists()
    done = ["explain", "photos", "out", "--weights", "model.safetensors", "--max-failures", "1"]
    assert CliRunner().invoke(main, done).exit_code == 0
    for arguments in others:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, (arguments, result.output)
    assert "broken.jpg" in Path("failed.csv").read_text()
    assert "broken.jpg" in Path("report.html").read_text()


def test_every_command_has_help():
    for name, command in main.commands.items():
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert command.help, name


def test_versions_agree():
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == vbp.__version__ == PYPROJECT["project"]["version"]


def test_lock_holds_every_dependency_with_hashes_and_no_address():
    lock = (ROOT / "requirements.lock").read_text()
    pinned = set(re.findall(r"^([a-z0-9-]+)==\S+", lock, re.MULTILINE))
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[A-Za-z0-9-]+", text)[0].lower() for text in wanted} - {"visualbackprop"}
    assert names <= pinned
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in re.sub(r"#.*", "", lock)


def test_what_is_to_be_installed_is_ours():
    """The name vbp belongs to another project on the package index."""
    files = [*ROOT.glob("*.*"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.*"))]
    texts = {path: path.read_text(errors="replace") for path in files if path.is_file() and path != Path(__file__)}
    found = {path: STRANGER.search(text) for path, text in texts.items()}
    assert {str(path): match[0] for path, match in found.items() if match} == {}


def test_constraints_are_what_the_lock_pins():
    lock = (ROOT / "requirements.lock").read_text()
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.search(rf"^{re.escape(line)} ", lock, re.MULTILINE), line


def test_the_example_of_the_section_sweep(photos, network_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    shutil.copy(network_file, "model.safetensors")
    section = re.search(r"^## Sweep\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)[1]
    file, commands = re.findall(r"^```\w*\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    Path("sweep.yaml").write_text(file.replace("size: 224", "size: 32"))
    plan, sweep, status = [shlex.split(line, comments=True)[1:] for line in commands.splitlines()]
    planned = CliRunner().invoke(main, plan)
    assert planned.exit_code == 0, planned.output
    assert re.search(r"all together +66 +0 +66", planned.stdout)
    assert "The budget is 6.66667 h of work: it suffices." in planned.stdout
    assert not Path("sweep").exists()
    done = CliRunner().invoke(main, sweep)
    assert done.exit_code == 0, done.output
    for text in ("weights-random--preset-paper       finished  22", "preset  ", "correlation", "comparison.parquet"):
        assert text in done.stdout
    seen = CliRunner().invoke(main, status)
    assert "finished: every image has its row" in seen.stdout
    rows = pads.dataset("sweep/index").to_table(columns=["run_weights", "run_preset"]).to_pylist()
    assert Counter(map(tuple, map(dict.values, rows))) == dict.fromkeys(
        [("trained", "paper"), ("trained", "reference"), ("random", "paper")], 22
    )
    whole = CliRunner().invoke(main, ["status", "sweep"])
    assert (whole.exit_code, "a sweep's, of 3 runs, its index complete; give " in whole.stderr) == (2, True)
    again = CliRunner().invoke(main, [*sweep, "--json"])
    told = json.loads(again.stdout)
    assert [run["summary"]["computed"] for run in told["runs"]] == [0, 0, 0]
    assert len(told["comparison"]["pairs"]) == 3
    assert pq.read_table("sweep/comparison.parquet").num_rows == 3
