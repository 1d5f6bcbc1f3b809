"""What a run leaves on record beside its results: ``_run/run.json`` and ``_SUCCESS``."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from vbp.errors import UsageError
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.steps import FOLDERS
from vbp.pipeline.summary import Summary
from vbp.storage.files import Folder
from vbp.storage.lease import LEASE
from vbp.storage.record import is_complete, load_record, mark_complete, mark_incomplete, save_record

METHOD_VERSION = 1
"""Raised whenever the same configuration would give other masks."""


class Record:
    """The record of one output folder.

    Attributes:
        facts: what ``run.json`` says; empty before the first run.
    """

    def __init__(self, output: Folder) -> None:
        self._output = output
        self.facts: dict[str, Any] = load_record(output) or {}

    def refuse_other(self, recipe: Recipe) -> None:
        """An output holds the results of one configuration.

        Raises:
            UsageError: the output was begun with another; names each field that differs.
        """
        before, now = self.facts.get("fingerprint"), fingerprint(recipe)
        if before is None or before == now:
            return
        differing = [name for name in now if before.get(name) != now[name]]
        changes = "; ".join(f"{name} was {before.get(name)!r}, now {now[name]!r}" for name in differing)
        raise UsageError(
            f"{self._output.url} was begun with another configuration: {changes}. "
            "Use the old values, another OUTPUT, or --resume-mode overwrite."
        )

    def finished(self, images: int) -> Summary | None:
        """The summary of an earlier run that gave all of `images` their rows, if there was one."""
        summary = self.facts.get("summary")
        if summary is None or summary["images"] != images or not is_complete(self._output):
            return None
        fields = {name: summary[name] for name in Summary.__dataclass_fields__}
        return Summary(**fields | {"computed": 0, "seconds": 0.0, "stage_seconds": {}})

    def begin(self, recipe: Recipe) -> None:
        """Before the first write of a run: the old promise is withdrawn, the new configuration put down."""
        mark_incomplete(self._output)
        self.facts = {
            "run_id": recipe.run_id,
            "fingerprint": fingerprint(recipe),
            "config": recipe.config.as_json(),
            "batch_size": recipe.batch_size,
            "precision": recipe.precision,
            "versions": _versions(),
        }
        save_record(self._output, self.facts)

    def end(self, summary: Summary) -> None:
        """After the index: totals, and the promise if it holds."""
        save_record(self._output, self.facts | {"summary": summary.as_json()})
        if summary.succeeded:
            mark_complete(self._output)


def clear(output: Folder) -> None:
    """Remove all that earlier runs left in `output`; the lease stays."""
    mark_incomplete(output)
    with ThreadPoolExecutor(16) as pool:
        for folder in ("_run", "index", *FOLDERS.values()):
            list(pool.map(output.delete, [path for path in output.list(folder) if path != LEASE]))


def fingerprint(recipe: Recipe) -> dict[str, Any]:
    """All on which the written results depend, by name."""
    return {
        **recipe.config.fingerprint(),
        "input": recipe.config.input,
        "weights": recipe.weights_sha256,
        "precision": recipe.precision,
        "method": METHOD_VERSION,
    }


def _versions() -> dict[str, str]:
    packages = ("vbp", "torch", "torchvision", "ray", "pyarrow", "pillow", "fsspec", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
