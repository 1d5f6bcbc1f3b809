"""The batch script: linted, and run with stand-ins for Slurm and Ray that record their calls."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm" / "vbp.sbatch"
DIRECTIVES = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "exclusive", "time", "requeue",
    "signal", "output", "open-mode",
}  # fmt: skip
"""Those of sbatch's manual that we use."""
STAND_INS = {
    "scontrol": 'case "$1" in show) printf "node7\\nnode8\\nnode9\\n" ;; *) echo "scontrol $*" >> "$TOLD" ;; esac',
    "srun": 'echo "srun $*" >> "$TOLD"',
    "hostname": 'echo "10.1.2.3 fe80::1"',
    "ray": 'echo "ray $*" >> "$TOLD"',
    "python": 'if [[ "$2" == *secrets* ]]; then echo 0123abcd; else echo "wait for $3" >> "$TOLD"; fi',
    "vbp": 'echo "vbp$(printf "|%s" "$@") $RAY_ADDRESS $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$TOLD"; eval "$VBP_DOES"',
}


def lint(path):
    linter = [Path(sys.executable).with_name("shellcheck"), "--shell=bash", path]
    return subprocess.run(linter, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def start(tmp_path):
    """Starts the script with its stand-ins; (process, file in which they tell what they were asked)."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    told = tmp_path / "told"
    told.touch()

    def run(*arguments, vbp="exit 0"):
        environment = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), "TOLD": str(told)}
        environment |= {"SLURM_JOB_NODELIST": "node[7-9]", "SLURM_JOB_ID": "41"}
        environment |= {"SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_ON_NODE": "1", "VBP_DOES": vbp}
        return subprocess.Popen(["bash", SCRIPT, *arguments], env=environment, stderr=subprocess.PIPE, text=True)

    return run, told


def once(told, holds):
    """What was told, as soon as `holds` is true of it."""
    deadline = time.monotonic() + 60
    while not holds(text := told.read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text


def test_the_linter_has_nothing_to_say():
    assert lint(SCRIPT) == ""


def test_directives_are_known_and_stand_before_the_first_command():
    found = re.findall(r"^#SBATCH --([a-z-]+)", SCRIPT.read_text(), re.MULTILINE)
    assert set(found) == DIRECTIVES
    before, _, after = SCRIPT.read_text().partition("set -euo pipefail")
    assert len(re.findall("^#SBATCH", before, re.MULTILINE)) == len(DIRECTIVES)
    assert "#SBATCH" not in after


@pytest.mark.parametrize(
    ("old", "new"),
    [('vbp explain "$@" &', "vbp explain $@ &"), ("fi\nuntil", "until"), ("others=$((${#hosts[@]} - 1))", "ohters=2")],
)
def test_a_broken_script_is_noticed(old, new, tmp_path):
    text = SCRIPT.read_text()
    assert old in text
    (tmp_path / "broken").write_text(text.replace(old, new))
    assert lint(tmp_path / "broken")


def test_head_workers_and_job_are_started(start):
    run, told = start
    process = run("s3://b/in", "s3://b/a folder", "--weights", "demo")
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
    text = once(told, lambda text: text.count("srun ") == 2)  # they are in the background
    common = "ray start --block --num-cpus 16 --num-gpus 1"
    head, workers = sorted(re.findall("^srun .*", text, re.MULTILINE))
    assert head == (
        f"srun --nodes=1 --ntasks=1 --overlap --nodelist=node7 env -u RAY_ADDRESS {common} --head "
        "--node-ip-address 10.1.2.3 --port 6379 --dashboard-host 127.0.0.1"
    )
    assert workers.startswith("srun --nodes=2 --ntasks=2 --overlap --exclude=node7 bash -c until ray health-check ")
    assert workers.endswith(f" _ {common} --address 10.1.2.3:6379")
    assert [line for line in text.splitlines() if not line.startswith("srun")] == [
        "ray health-check --address 10.1.2.3:6379",
        "wait for 3",
        "vbp|explain|s3://b/in|s3://b/a folder|--weights|demo 10.1.2.3:6379 token 0123abcd",
    ]


def test_the_exit_code_of_the_run_is_the_jobs(start):
    process = start[0]("in", "out", vbp="exit 3")
    process.communicate(timeout=60)
    assert process.returncode == 3


def test_without_input_and_output_it_says_so(start):
    run, told = start
    process = run("in")
    assert "usage: sbatch" in process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert told.read_text() == ""


@pytest.mark.long
def test_shortly_before_the_end_of_its_time_it_queues_again(start):
    run, told = start
    process = run("in", "out", vbp="exec sleep 5")
    once(told, lambda text: "vbp|explain" in text)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert "scontrol requeue 41" in told.read_text()
