"""Who has an output: what ``_run/lease.json`` says."""

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


@dataclass(frozen=True)
class Holder:
    """Who has the output."""

    attempt: str
    host: str
    machine: str
    """Tells hosts, reboots and containers of one name apart."""
    pid: int
    started: str
    """When the process started, as `start_of` says: a process id alone is used again, and is 1 in containers."""
    token: str
    """Of this one lease."""
    renewed_at: str

    def __str__(self) -> str:
        return f"attempt {self.attempt} on {self.host}, process {self.pid}"

    @property
    def is_dead(self) -> bool:
        """Whether it was a process of this very machine and is gone; False where that cannot be known."""
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
    """Who has the output; None where nobody has, or the lease cannot be read."""
    return parse(read(output) or b"")


def check(output: Folder, attempt: str) -> None:
    """Before a step that only the holder may take.

    Raises:
        LeaseLostError: the attempt does not hold the output any more.
    """
    current = holder(output)
    if current is None or current.attempt != attempt:
        raise lost(output, attempt, current)


def lost(output: Folder, attempt: str, current: Holder | None) -> LeaseLostError:
    """What to say where `current` has the output in the attempt's place."""
    whose = str(current) if current else "nobody"
    return LeaseLostError(f"attempt {attempt} lost {output.url}: {whose} has it now; nothing more is committed")


def read(output: Folder) -> bytes | None:
    """The lease as it stands; None where there is none."""
    try:
        return output.read(LEASE)
    except FileNotFoundError:
        return None


def parse(data: bytes) -> Holder | None:
    """What a lease says; None where it is damaged."""
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return None


def start_of(pid: int) -> str:
    """When a process started, in terms that no setting of the clock changes.

    Raises:
        psutil.Error: there is no such process, or it cannot be looked at.
    """
    try:  # Linux counts ticks from the start of the machine; psutil adds the clock's time of that, which may be set
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return f"tick {fields[19]}"
    except (OSError, IndexError):
        return f"second {psutil.Process(pid).create_time():.0f}"


def machine() -> str:
    """Changes with the host, its every start, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return str(uuid.getnode())
