"""SkyPilot's task against its own schema, and its shell parts as shell."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "skypilot.json").read_text())


def load():
    return yaml.safe_load((ROOT / "cluster" / "skypilot" / "job.yaml").read_text())


def faults(task):
    found = [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(task)]
    return found or [*rules(task)]


def rules(task):
    for part in ("setup", "run"):
        script = "#!/bin/bash\n" + task[part]
        linter = [Path(sys.executable).with_name("shellcheck"), "--exclude=SC2086", "-"]  # $ports is two words
        checked = subprocess.run(linter, input=script, capture_output=True, text=True, check=False)
        if checked.returncode:
            yield f"{part}: {checked.stdout}"
    if not task["resources"]["use_spot"] or task["resources"]["job_recovery"]["recover_on_exit_codes"] != 4:
        yield "an interrupted run (exit code 4) must be started anew"
    if re.search(r"^\s*ray stop", task["run"], re.MULTILINE) or "--require-hashes" not in task["setup"]:
        yield "`ray stop` ends SkyPilot's own Ray; packages come from the lock"


def test_the_task_is_valid():
    assert faults(load()) == []


BREAKS = {
    "a misspelt field": lambda task: task.update(resource=task.pop("resources")),
    "a misspelt resource": lambda task: task["resources"].update(accelerator="L4:1"),
    "a string for a number": lambda task: task.update(num_nodes="4"),
    "a disk size with an unknown unit": lambda task: task["resources"].update(disk_size="200GX"),
    "a shell error": lambda task: task.update(run=task["run"].replace("\n  exit\nfi", "\n  exit")),
    "the end of SkyPilot's Ray": lambda task: task.update(run=task["run"] + "ray stop\n"),
    "no recovery": lambda task: task["resources"]["job_recovery"].update(recover_on_exit_codes=3),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_task_is_noticed(name):
    task = copy.deepcopy(load())
    BREAKS[name](task)
    assert task != load()
    assert faults(task)
