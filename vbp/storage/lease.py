"""One writer per output: ``_run/lease.json`` says which process of which host has it, renewed while it lives."""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from vbp.errors import LeaseLostError, StorageError
from vbp.storage.files import Folder

LEASE = "_run/lease.json"

_SAME_START_SECONDS = 5.0  # start times are reckoned from the clock, which may be set


@dataclass(frozen=True)
class Holder:
    """Who has the output."""

    attempt: str
    host: str
    machine: str
    """Tells hosts, reboots and containers of one name apart."""
    pid: int
    started: float
    """When the process started, in seconds since 1970: a process id alone is used again, and is 1 in containers."""
    token: str
    """Of this one lease."""
    renewed_at: str

    def __str__(self) -> str:
        return f"attempt {self.attempt} on {self.host}, process {self.pid}"

    @property
    def is_dead(self) -> bool:
        """Whether it was a process of this very machine and is gone; False where that cannot be known."""
        if (self.host, self.machine) != (socket.gethostname(), _machine()):
            return False
        try:
            process = psutil.Process(self.pid)
            reused = abs(process.create_time() - self.started) > _SAME_START_SECONDS
            return reused or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


class Lease:
    """The right to write to an output, from ``acquire`` to ``release``."""

    def __init__(
        self,
        output: Folder,
        attempt: str,
        *,
        renew_every: float = 10.0,
        take_over_after: float = 60.0,
        poll_every: float = 1.0,
    ):
        """Prepare a lease for ``attempt``; times in seconds, the same for all who share the output."""
        self._output, self._attempt, self._token = output, attempt, secrets.token_hex(8)
        self._renew_every, self._take_over_after, self._poll_every = renew_every, take_over_after, poll_every
        self._lost, self._released = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        """Whether another has taken the lease over: stop committing."""
        return self._lost.is_set()

    def acquire(self, on_wait: Callable[[Holder | None, float], None] | None = None) -> None:
        """Wait until the output is ours, then keep the lease renewed in the background.

        A holder that died on this machine is succeeded at once, any other once its lease has not changed for
        ``take_over_after`` seconds of our own clock: clocks of two hosts are never compared.

        Args:
            on_wait: called at each look with the holder (None if the file cannot be read) and the seconds after
                which it would be taken over if it stayed silent.

        Raises:
            StorageError: the output cannot be written.
        """
        seen, since = b"", time.monotonic()
        while True:
            current = _read(self._output)
            if current is None:
                if self._output.create(LEASE, self._content()) and self._is_ours():
                    break
                continue
            if current != seen:
                seen, since = current, time.monotonic()
            silent = time.monotonic() - since
            holder = _parse(current)
            if silent >= self._take_over_after or (holder and holder.is_dead):
                if self._take_over(current):
                    break
                continue
            if on_wait:
                on_wait(holder, self._take_over_after - silent)
            time.sleep(self._poll_every)
        self._thread = threading.Thread(target=self._keep, name="vbp-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the output free for the next; where the store does not answer, the lease runs out by itself."""
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(StorageError, OSError):
            if self._is_ours():
                self._output.delete(LEASE)

    def _take_over(self, expected: bytes) -> bool:
        """Several may try: the last to write wins, and after a pause each sees who that was."""
        if _read(self._output) != expected:
            return False
        self._output.write(LEASE, self._content())
        time.sleep(self._poll_every)
        return self._is_ours()

    def _keep(self) -> None:
        while not self._released.wait(self._renew_every):
            # While the store does not answer nobody can commit, nor take over: there is nothing to do but go on.
            with contextlib.suppress(StorageError, OSError):
                if not self._is_ours():
                    self._lost.set()
                    return
                self._output.write(LEASE, self._content())

    def _is_ours(self) -> bool:
        holder = _parse(_read(self._output) or b"")
        return holder is not None and holder.token == self._token

    def _content(self) -> bytes:
        now = datetime.now(UTC).isoformat()
        started = psutil.Process().create_time()
        holder = Holder(self._attempt, socket.gethostname(), _machine(), os.getpid(), started, self._token, now)
        return json.dumps(asdict(holder), indent=1).encode()


def holder(output: Folder) -> Holder | None:
    """Who has the output; None where nobody has, or the lease cannot be read."""
    return _parse(_read(output) or b"")


def check(output: Folder, attempt: str) -> None:
    """For workers, before a commit.

    Raises:
        LeaseLostError: the attempt does not hold the output any more.
    """
    current = holder(output)
    if current is None or current.attempt != attempt:
        whose = str(current) if current else "nobody"
        raise LeaseLostError(f"attempt {attempt} lost {output.url}: {whose} has it now; nothing more is committed")


def _read(output: Folder) -> bytes | None:
    try:
        return output.read(LEASE)
    except FileNotFoundError:
        return None


def _parse(data: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return str(uuid.getnode())
