"""Marks of work in progress, from which the next worker sees that an earlier one crashed.

::

    OUTPUT/_run/parts/<shard>/begun-<left>-<token>       a worker works on the shard; `left` images had no row then
    OUTPUT/_run/parts/<shard>/alone-<position>-<token>   a worker works on this one image and on nothing else

Marks lie beside the parts of their shard, so one listing finds both.  The worker that made a mark removes it when its
work ends, also by an error, unless the process is killed.  So a mark that is left behind means that a worker crashed;
if its `left` is the number of images that are left now, that worker finished nothing.
"""

import contextlib
import json
import os
import re
import secrets
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType

from vbp.errors import StorageError
from vbp.storage.files import Folder
from vbp.storage.ledger.parts import PARTS

_NAME = re.compile(r"(begun|alone)-(\d+)-[0-9a-f]+")


def is_mark(name: str) -> bool:
    """Whether a file beside the parts is a mark, by its name."""
    return _NAME.fullmatch(name) is not None


class Marks:
    """The marks of one start of work on a shard; in its context a mark says that the shard is begun."""

    def __init__(self, output: Folder, shard: int, names: Iterable[str], left: int):
        """Read the marks that earlier starts left behind.

        Args:
            output: OUTPUT.
            shard: the shard's number.
            names: names of the files in the shard's folder of parts.
            left: number of the shard's images that are left to do.
        """
        self._output, self._folder = output, f"{PARTS}/{shard:06d}"
        found = [match for match in map(_NAME.fullmatch, names) if match]
        self._earlier = [match[0] for match in found]
        self._begun = f"begun-{left}-{secrets.token_hex(4)}"
        self.stuck = any(match[1] == "begun" and int(match[2]) == left for match in found)
        """Whether a worker crashed in an earlier start before it finished any image."""
        self.deaths = Counter(int(match[2]) for match in found if match[1] == "alone")
        """Number of workers that crashed while they worked on one image alone, by its position."""

    def __enter__(self) -> "Marks":
        self._write(self._begun)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # If the shard is done, earlier marks have no more meaning; after an error they keep it.
        for name in [self._begun] if kind else [self._begun, *self._earlier]:
            self._remove(name)

    @contextlib.contextmanager
    def alone(self, position: int) -> Iterator[None]:
        """A context in which a mark says that the worker works on the image at `position` alone."""
        name = f"alone-{position}-{secrets.token_hex(4)}"
        self._write(name)
        try:
            yield
        finally:
            self._remove(name)

    def _write(self, name: str) -> None:
        whose = {"host": socket.gethostname(), "pid": os.getpid()}
        self._output.write(f"{self._folder}/{name}", json.dumps(whose).encode())

    def _remove(self, name: str) -> None:
        with contextlib.suppress(StorageError, OSError):  # a mark left behind only makes a later start more cautious
            self._output.delete(f"{self._folder}/{name}")
