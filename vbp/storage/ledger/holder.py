"""Holder: the content of ``_run/lease.json``, which says which attempt has an output."""

import json
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

from vbp.errors import LeaseLostError
from vbp.storage.files import Folder

LEASE = "_run/lease.json"
RELEASED = b'{"released": true}\n'
"""The content of a lease in an object store that was given back."""


@dataclass(frozen=True)
class Holder:
    """The attempt that has the output, and its process."""

    attempt: str
    host: str
    machine: str
    """Differs between hosts, reboots and containers with the same name."""
    pid: int
    started: str
    """When the process started, from `start_of`; process ids are reused, and are 1 in containers."""
    token: str
    """A random name of this lease."""
    renewed_at: str

    def __str__(self) -> str:
        return f"attempt {self.attempt} on {self.host}, process {self.pid}"

    @property
    def is_dead(self) -> bool:
        """Whether the process ran on this machine and has ended; False if that cannot be known."""
        if (self.host, self.machine) != (socket.gethostname(), machine()):
            return False
        try:
            if type(self.started) is str and start_of(self.pid) != self.started:
                return True
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


def holder(output: Folder) -> Holder | None:
    """The holder of the output; None if there is none, or the lease cannot be read."""
    return parse(read(output) or b"")


def check(output: Folder, attempt: str) -> None:
    """Check the lease before a step that only its holder may take.

    Raises:
        LeaseLostError: the attempt no longer has the lease.
    """
    current = holder(output)
    if current is None or current.attempt != attempt:
        raise lost(output, attempt, current)


def lost(output: Folder, attempt: str, current: Holder | None) -> LeaseLostError:
    """The error for an attempt whose output `current` has now."""
    whose = str(current) if current else "nobody"
    return LeaseLostError(f"attempt {attempt} lost {output.url}: {whose} has it now; nothing more is committed")


def read(output: Folder) -> bytes | None:
    """The bytes of the lease; None if there is none."""
    try:
        return output.read(LEASE)
    except FileNotFoundError:
        return None


def parse(data: bytes) -> Holder | None:
    """The holder that a lease names; None if the lease is damaged."""
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return None


def start_of(pid: int) -> str:
    """When a process started, by a clock that nobody can set.

    Raises:
        psutil.Error: the process does not exist, or may not be inspected.
    """
    try:  # Linux counts ticks since boot; psutil adds the time of boot, which changes if the clock is set
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return f"tick {fields[19]}"
    except (OSError, IndexError):
        return f"second {psutil.Process(pid).create_time():.0f}"


def machine() -> str:
    """A name that differs between hosts, boots and containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return str(uuid.getnode())
