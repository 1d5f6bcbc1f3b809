"""Work in a process of its own: what it yields arrives, and whatever becomes of it is told."""

import logging
import os
import subprocess
import sys
import time

import psutil

from vbp.evidence.gpucheck.limited import limited

FOREVER = 600


def counts(numbers):
    sys.stdout.write("not on standard output")
    sys.stdout.flush()
    yield from numbers


def fails(argument):
    yield argument
    raise ValueError("no\nsuch thing")


def dies(code):
    yield code
    time.sleep(0.2)  # the pipe is read in between
    os._exit(code)


def warns(text):
    logging.getLogger("vbp.saliency").warning("no CUDA graph: %s", text)
    yield 1


def never_ends(argument):
    child = subprocess.Popen(["sleep", str(FOREVER)])
    yield child.pid
    time.sleep(FOREVER)


def is_gone(pid):
    """Ended, whether or not anybody has asked for its exit code."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def done(work, argument, seconds=60):
    things = []
    return limited(work, argument, seconds, things.append), things


def test_what_it_yields_arrives_and_standard_output_stays_empty(capfd):
    assert done(counts, [3, 5]) == ("", [3, 5])
    assert capfd.readouterr().out == ""


def test_warnings_arrive_between():
    assert done(warns, "not permitted") == ("", ["no CUDA graph: not permitted", 1])


def test_a_failure_is_told_in_one_line():
    assert done(fails, "first") == ("failed: ValueError: no such thing", ["first"])


def test_a_death_is_told():
    assert done(dies, 7) == ("its process died (exit code 7)", [7])


def test_when_its_time_is_over_it_and_what_it_started_are_gone():
    trouble, (pid,) = done(never_ends, None, seconds=2)
    assert trouble == "stopped after 2 s"
    assert is_gone(pid)
