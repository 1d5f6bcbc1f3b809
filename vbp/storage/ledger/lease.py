"""Lease: one writer per output.  ``_run/lease.json`` names the process and host that has it, and is renewed.

The holder changes the output through a ``HeldFolder``, which is safe even if the lease was lost unnoticed.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime

from vbp.errors import LeaseLostError, StorageError, UsageError
from vbp.storage.files import Folder
from vbp.storage.ledger.held import HeldFolder
from vbp.storage.ledger.holder import LEASE, RELEASED, Holder, check, holder, machine, parse, read, start_of

__all__ = ["LEASE", "HeldFolder", "Holder", "Lease", "check", "holder", "leased"]

TAKE_OVER_AFTER = "VBP_LEASE_SECONDS"
"""Environment variable for tests: seconds without a renewal after which another attempt takes over."""


@contextlib.contextmanager
def leased(output: Folder, attempt: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the lease of an output during the context.

    Args:
        output: OUTPUT.
        attempt: name of the attempt.
        tell: is called with a sentence that says for whom it waits, once.

    Raises:
        UsageError: the output cannot be written.
    """
    told: list[str] = []

    def waiting(holder: Holder | None, seconds: float) -> None:
        if not told:
            told.append(f"Waiting for {holder or 'another run'}; if it is gone, taking over in {seconds:.0f} s.")
            tell(told[0])

    with output.without_traces("_run"):
        lease = Lease(output, attempt)
        try:
            lease.acquire(waiting)
        except StorageError as error:
            raise UsageError(
                f"OUTPUT (={output.uri()}) cannot be written: {error}; choose another, or have it made writable."
            ) from error
        try:
            yield
        finally:
            lease.release()


class Lease:
    """The right to write to an output, from ``acquire`` to ``release``."""

    def __init__(
        self,
        output: Folder,
        attempt: str,
        *,
        renew_every: float | None = None,
        take_over_after: float | None = None,
        poll_every: float | None = None,
    ):
        """Prepare a lease for ``attempt``, whose name must be unique.

        Times in seconds, the same for all attempts on the output: 10, 60 and 1 by default.
        """
        silence = float(os.environ.get(TAKE_OVER_AFTER, 60.0)) if take_over_after is None else take_over_after
        self._held, self._attempt, self._token = HeldFolder.of(output, attempt), attempt, secrets.token_hex(8)
        self._take_over_after = silence
        self._renew_every = silence / 6 if renew_every is None else renew_every
        self._poll_every = silence / 60 if poll_every is None else poll_every
        self._lost, self._released = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        """Whether another attempt has taken the lease over; then stop committing."""
        return self._lost.is_set()

    def acquire(self, on_wait: Callable[[Holder | None, float], None] | None = None) -> None:
        """Wait until the output is ours, then renew the lease in the background.

        If the holder died on this machine, its lease is taken over at once; otherwise once the lease has not changed
        for ``take_over_after`` seconds.  Our own monotonic clock counts these, without the machine's sleep; clocks of
        two hosts are never compared.

        Args:
            on_wait: called at each check with the holder (None if the file cannot be read) and the seconds after
                which the lease is taken over if it is not renewed.

        Raises:
            StorageError: the output cannot be written to.
        """
        seen, since = b"", time.monotonic()
        while True:
            current = read(self._held)
            if current is None:
                if self._begin(None):
                    break
                continue
            if current != seen:
                seen, since = current, time.monotonic()
            silent = time.monotonic() - since
            holder = parse(current)
            if current == RELEASED or silent >= self._take_over_after or (holder and holder.is_dead):
                if self._begin(current):
                    break
                continue
            if on_wait:
                on_wait(holder, self._take_over_after - silent)
            time.sleep(self._poll_every)
        self._thread = threading.Thread(target=self._keep, name="vbp-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Release the output for the next attempt; if the store does not answer, the lease runs out by itself."""
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(StorageError, OSError):
            current = read(self._held)
            if current is not None and self._is_ours(current):
                self._held.give_back(current)
        self._held.leave()

    def _begin(self, expected: bytes | None) -> bool:
        """Take the lease if its content is `expected`; returns whether the output is then ours alone."""
        self._held.enter()
        try:
            if not self._take(expected):
                return False
            self._held.evict()
            return self._is_ours() and not self._held.is_fenced_out
        except LeaseLostError:  # another attempt was quicker, and has removed our folder
            return False

    def _take(self, expected: bytes | None) -> bool:
        if expected is None:
            return self._held.create(LEASE, self._content())
        taken = self._held.take(expected, self._content())
        return self._take_blindly(expected) if taken is None else taken

    def _take_blindly(self, expected: bytes) -> bool:
        """Write the lease without a condition: the last writer wins, and after a pause each attempt reads who won."""
        if read(self._held) != expected:
            return False
        Folder(self._held.url, self._held.options).write(LEASE, self._content())
        time.sleep(self._poll_every)
        return True

    def _keep(self) -> None:
        while not self._released.wait(self._renew_every):
            # While the store does not answer, no attempt can commit or take over, so going on is safe.
            try:
                self._renew()
            except LeaseLostError:
                self._lost.set()
                return
            except (StorageError, OSError):
                continue

    def _renew(self) -> None:
        current = read(self._held)
        if current is None or not self._is_ours(current):
            raise LeaseLostError(f"the lease of attempt {self._attempt} is gone")
        self._held.renew(current, self._content())

    def _is_ours(self, lease: bytes | None = None) -> bool:
        holder = parse(lease or read(self._held) or b"")
        return holder is not None and holder.token == self._token

    def _content(self) -> bytes:
        now = datetime.now(UTC).isoformat()
        found = Holder(
            self._attempt, socket.gethostname(), machine(), os.getpid(), start_of(os.getpid()), self._token, now
        )
        return json.dumps(asdict(found), indent=1).encode()
