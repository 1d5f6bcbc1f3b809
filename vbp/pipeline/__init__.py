"""The pipeline: where pixels, the method and storage meet.

>>> from vbp.pipeline import RunConfig, run
>>> summary = run(RunConfig(input="photos", output="out"))  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vbp.pipeline.config import RunConfig
    from vbp.pipeline.job import run
    from vbp.pipeline.observer import Observer
    from vbp.pipeline.summary import Summary

__all__ = ["Observer", "RunConfig", "Summary", "run"]

_HOMES = {"Observer": "observer", "RunConfig": "config", "Summary": "summary", "run": "job"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line starts without Arrow and torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
