"""A process that is killed between two changes of its storage."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from vbp.storage.files import Folder


class Killed(BaseException):
    """As a kill -9: nothing in between may catch it and tidy up."""


@contextmanager
def dying(
    moment: int,
    monkeypatch: pytest.MonkeyPatch,
    operations: Sequence[str] = ("write", "delete"),
    spared: str | None = None,
) -> Iterator[None]:
    """Raise `Killed` instead of the change that follows after `moment` changes; paths with `spared` do not count."""
    left = moment

    def killing(operation):
        def change_or_die(self, path, *data):
            nonlocal left
            if spared is None or spared not in path:
                left -= 1
                if left < 0:
                    raise Killed
            return operation(self, path, *data)

        return change_or_die

    with monkeypatch.context() as patch:
        for name in operations:
            patch.setattr(Folder, name, killing(getattr(Folder, name)))
        yield
