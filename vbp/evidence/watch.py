"""Call a function in a process of its own, and measure that process's memory, CPU and GPU use from outside."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import subprocess
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

MB = 1 << 20
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Look:
    """What was seen at one moment."""

    at: float
    """By ``time.monotonic``, which all processes share."""
    cpu: float
    """Seconds of CPU that the process and all that it started had taken."""
    gpu: float | None
    """Percent of the time that the GPUs were busy; None without."""


@dataclass(frozen=True)
class Watched:
    """The function's result, and what its process used."""

    value: Any
    """What the function returned."""
    cpu: float
    """Seconds of CPU that its process took, starting up included."""
    own: float
    """Peak private memory of its process, MB."""
    workers: float
    """The same of the largest of the processes that it started, 0 without."""
    looks: list[Look]

    def cores(self, start: float, end: float) -> float:
        """How many cores were busy on average from `start` to `end`."""
        times = [look.at for look in self.looks]
        first, last = (self.looks[min(bisect_left(times, at), len(times) - 1)] for at in (start, end))
        return (last.cpu - first.cpu) / max(last.at - first.at, 1e-9)

    def gpu(self, start: float, end: float) -> float | None:
        """Percent of the time that the GPUs were busy from `start` to `end`; None without."""
        seen = [look.gpu for look in self.looks if start <= look.at <= end and look.gpu is not None]
        return statistics.mean(seen) if seen else None


def watched(function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None) -> Watched:
    """Call the function in a fresh process and watch it and all that it starts.

    Args:
        function: of a module, as processes can send it to each other.
        arguments: its own.
        environment: variables that its process has beside ours.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_call, args=(theirs, function, arguments))
    with _added(environment or {}):  # it starts with them: libraries of C look only then
        process.start()
    theirs.close()
    peaks: dict[int, float] = {}
    cpu: dict[int, float] = {}
    looks: list[Look] = []
    root = psutil.Process(process.pid)
    while not ours.poll(LOOK_SECONDS):
        for each in _with_children(root):
            peaks[each.pid] = max(peaks.get(each.pid, 0.0), private(each))
            cpu[each.pid] = max(cpu.get(each.pid, 0.0), _cpu(each))
        looks.append(Look(time.monotonic(), sum(cpu.values()), gpu_use()))
    value, seconds = ours.recv()  # EOFError where the process has died; it has said why
    process.join()
    own = peaks.pop(root.pid, 0.0)
    return Watched(value, seconds, own, max(peaks.values(), default=0.0), looks)


@contextmanager
def _added(environment: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _call(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    value = function(*arguments)
    pipe.send((value, time.process_time()))


def private(process: psutil.Process) -> float:
    """Private memory of a process in MB, without Ray's object store and shared libraries; 0 if the process is gone."""
    try:
        told = process.memory_info()
    except psutil.Error:
        return 0.0
    return float(told.rss - getattr(told, "shared", 0)) / MB


def _with_children(root: psutil.Process) -> Iterable[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return [root]


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def gpu_use() -> float | None:
    """GPU use by ``nvidia-smi``, if it is installed and finds a GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    asked = [command, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return statistics.mean(map(float, told)) if told else None
