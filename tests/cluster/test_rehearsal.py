"""The rehearsal's short form: a cluster on this machine that loses a host, by the commands of the page."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "cluster"
PAGE = (FOLDER / "README.md").read_text()


def options(command):
    """The options of a command line and their values; ports and addresses are those of the page or its own."""
    words = [word.partition("=")[::2] for word in shlex.split(command) if word.startswith("--")]
    return {name: value for name, value in words if name not in ("--port", "--address")} | {
        name: bool(value) for name, value in words if name in ("--port", "--address")
    }


def test_a_worker_is_switched_off_and_nothing_is_missing():
    script = [sys.executable, FOLDER / "local" / "rehearsal.py", "--short"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=580)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    lost = re.search(r"^# (\w+) is switched off, with (\d+) of 48 masks written; workers: (.*)", log, re.MULTILINE)
    assert lost is not None, log
    assert f"{lost[1]} 0" not in lost[3], log
    assert 4 < int(lost[2]) < 48, log
    assert "# first: 96 files, 48 rows, as in the run of one process" in log

    typed = re.findall(r"^(?:head|worker\d)\$ (.*)", log, re.MULTILINE)
    section = re.search(r"^### Bare hosts\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)[1]
    shown = [
        line
        for block in re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    for command in ("ray start --head", "ray start --address", "ray job submit"):
        (on_page,) = [line for line in shown if line.startswith(command)]
        here = [line for line in typed if line.startswith(command)]
        assert here, command
        for line in here:
            assert options(on_page).items() <= options(line).items(), (on_page, line)
