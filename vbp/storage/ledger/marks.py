"""Marks of work in hand: what the next worker knows of one that died.

::

    OUTPUT/_run/parts/<shard>/begun-<left>-<token>       somebody works on the shard; `left` images had no row then
    OUTPUT/_run/parts/<shard>/alone-<position>-<token>   somebody works on this one image and on nothing else

They lie beside the parts of their shard, so the one listing that tells what is done tells them, too.  Whoever made
them removes them, however the work ends, unless the process is killed.  A mark that is found says, therefore, that
its maker died; and where it says the same number of images left as there are now, that nothing came of that start.
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
    """One start of work on a shard: a context, in which the shard is marked as begun."""

    def __init__(self, output: Folder, shard: int, names: Iterable[str], left: int):
        """Read what earlier starts left behind.

        Args:
            output: OUTPUT.
            shard: its number.
            names: of the files in the shard's folder of parts.
            left: how many of the shard's images are to be done now.
        """
        self._output, self._folder = output, f"{PARTS}/{shard:06d}"
        found = [match for match in map(_NAME.fullmatch, names) if match]
        self._earlier = [match[0] for match in found]
        self._begun = f"begun-{left}-{secrets.token_hex(4)}"
        self.stuck = any(match[1] == "begun" and int(match[2]) == left for match in found)
        """Whether an earlier start died without a row to show for it."""
        self.deaths = Counter(int(match[2]) for match in found if match[1] == "alone")
        """How many workers died with this image alone in hand, by position."""

    def __enter__(self) -> "Marks":
        self._write(self._begun)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # the shard came to its end, so no earlier mark means anything any more; after an error they still do
        for name in [self._begun] if kind else [self._begun, *self._earlier]:
            self._remove(name)

    @contextlib.contextmanager
    def alone(self, position: int) -> Iterator[None]:
        """In this context the image at `position` is the only one in hand."""
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
        with contextlib.suppress(StorageError, OSError):  # it would cost a later start some caution, no more
            self._output.delete(f"{self._folder}/{name}")
