"""Import torchvision without torch's compiler, which takes as long to import as torch itself.

``torchvision.ops.roi_align`` imports ``torch._dynamo.utils`` to ask one question in a call that no network here makes:
5 of the 9 s that a process needs to start. While torchvision is imported, a stand-in takes that import; the question is
passed on when it is asked, and anything else that is looked for in the stand-in brings the compiler itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from typing_extensions import override

COMPILER = ("torch._dynamo", "torch._dynamo.utils")


class _StandIn(ModuleType):
    """Replaces ``torch._dynamo.utils`` until another attribute than ``is_compile_supported`` is needed."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        """As in ``torch._dynamo.utils``."""
        from torch._dynamo.utils import is_compile_supported

        return bool(is_compile_supported(device_type))

    @override
    def __getattr__(self, name: str) -> Any:
        # importers and whoever looks for source code ask every module for these; a package's path is asked for in order
        # to import what lies in it
        if name.startswith("__") and (name, self.__name__) != ("__path__", COMPILER[0]):
            raise AttributeError(name)
        _remove()
        return getattr(import_module(self.__name__), name)


def _remove() -> None:
    for name in COMPILER:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


@contextmanager
def _without_compiler() -> Iterator[None]:
    if any(name in sys.modules for name in COMPILER):
        yield
        return
    sys.modules.update({name: _StandIn(name) for name in COMPILER})
    try:
        yield
    finally:
        _remove()


with _without_compiler():
    import torchvision
    from torchvision import ops

__all__ = ["ops", "torchvision"]
