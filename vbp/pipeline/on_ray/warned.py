"""What vbp warns of, such as an optimisation that a device cannot do; on a worker of Ray nobody else hears it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from typing_extensions import override


def listen(receive: Callable[[str], object]) -> None:
    """From now on hand each warning to `receive`, in the thread that warns."""
    logging.getLogger("vbp").addHandler(_Listener(receive))


class _Listener(logging.Handler):
    def __init__(self, receive: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._receive = receive

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._receive(record.getMessage())
