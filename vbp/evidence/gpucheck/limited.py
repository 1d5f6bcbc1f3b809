"""Runs work in a process of its own that is ended, with all that it has started, when its time is over.

The processes are forked from one that has imported torch, so each begins at once; none has a GPU before it asks.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from threading import Lock
from typing import Any

import psutil

from vbp.pipeline.on_ray.warned import listen

PRELOADED = ["torch", "vbp.explainer", "vbp.evidence.gpucheck.sections"]
END_SECONDS = 5.0
"""How long an ended process may take to be gone."""
LINES = -3
"""Of a failure's traceback, the last so many calls are shown."""


def limited(work: Callable[..., Iterable[Any]], argument: Any, seconds: float, receive: Callable[[Any], None]) -> str:
    """Do the work, and pass on each thing that it yields at once.

    Args:
        work: of a module, as processes can send it to each other.
        argument: its own.
        seconds: after which its process is ended.
        receive: gets each thing, and each warning of vbp as text.

    Returns:
        Why the work is not whole; empty if it is.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, work, argument))
    until = time.monotonic() + seconds
    process.start()
    theirs.close()
    try:
        while ours.poll(max(0.0, until - time.monotonic())):
            kind, content = ours.recv()
            if kind == "end":
                return str(content)
            receive(content)
        return f"stopped after {seconds:.0f} s"
    except EOFError:
        process.join(END_SECONDS)
        return f"its process died (exit code {process.exitcode})"
    finally:
        _end(process.pid)
        process.join(END_SECONDS)


def _work(pipe: Any, work: Callable[..., Iterable[Any]], argument: Any) -> None:
    os.dup2(2, 1)  # standard output is the table's alone
    turn = Lock()  # any thread may warn

    def send(kind: str, content: Any) -> None:
        with turn:
            pipe.send((kind, content))

    listen(partial(send, "thing"))
    try:
        for thing in work(argument):
            send("thing", thing)
        trouble = ""
    except Exception as error:
        traceback.print_exc(limit=LINES)
        trouble = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    send("end", trouble)


def _end(pid: int | None) -> None:
    """End the process, unless it has ended, and all that it has started."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return
    for each in family:
        with suppress(psutil.Error):
            each.kill()
