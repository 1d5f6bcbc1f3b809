"""A quiet connection to Ray, started here or joined, that leaves signals to their owner."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # every actor pool prints an error line of the C++ core otherwise
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

STARTS = 3


@contextmanager
def connected() -> Iterator[None]:
    """Join the cluster that ``RAY_ADDRESS`` names (as under ``ray job submit``), or start one on this machine.

    A connection that exists already is used and left open.  Ray's ``init`` replaces the handler of SIGTERM; ours is
    put back, so that a stopped job ends with its own exit code.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "RAY_ADDRESS" not in os.environ:
        # a cluster that lives and dies with this process listens on this machine alone and needs no token file
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    if ray.is_initialized():
        yield
        return
    main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    with _held_back_stderr():
        _init(os.environ.get("RAY_ADDRESS", "local"))
    if main_thread:
        signal.signal(signal.SIGTERM, handler)
    _silence_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def _init(address: str) -> None:
    """Join or start; on a machine busy enough, a start takes longer than the 30 s that Ray gives itself."""
    import ray

    for tries_left in reversed(range(STARTS)):
        try:
            ray.init(address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
            return
        except Exception as error:
            if not tries_left or "timed out during startup" not in str(error):
                raise


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Keep Ray's C++ core from announcing its log level on the terminal; what it says is shown if all fails."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _silence_ray_data() -> None:
    """Errors reach the console through our own messages; Ray's session log keeps everything."""
    import ray.data  # noqa: F401  (its loggers exist after the import)

    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__name__ == "PlainRayHandler":
            handler.setLevel(logging.CRITICAL)
