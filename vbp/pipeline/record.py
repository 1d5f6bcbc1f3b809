"""What a run leaves on record beside its results: ``_run/run.json`` and ``_SUCCESS``."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, NoReturn

from vbp.errors import StorageError, UsageError
from vbp.pipeline.config import RunConfig
from vbp.pipeline.layouts import RESULT_FOLDERS
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.summary import Summary
from vbp.storage.files import Folder
from vbp.storage.lease import LEASE
from vbp.storage.manifest import MANIFEST, Manifest
from vbp.storage.parts import PARTS
from vbp.storage.record import RUN, is_complete, load_record, mark_complete, mark_incomplete, save_record

METHOD_VERSION = 1
"""Raised whenever the same configuration would give other masks."""


class Record:
    """The record of one output folder.

    Attributes:
        facts: what ``run.json`` says; empty before the first run, and for a run that starts over.
    """

    def __init__(self, output: Folder, facts: Mapping[str, Any]) -> None:
        self._output = output
        self.facts = dict(facts)

    @classmethod
    def load(cls, output: Folder) -> Record:
        """The record as it stands.

        Raises:
            UsageError: it is damaged.
        """
        try:
            facts = load_record(output)
        except StorageError as error:
            raise UsageError(f"{error} (--resume-mode overwrite starts over here).") from error
        if facts is None and output.exists(MANIFEST):
            raise UsageError(
                f"{output.uri(RUN)} is gone, though {MANIFEST} is there, so nobody knows what the results belong to; "
                "restore it, or start over with --resume-mode overwrite."
            )
        return cls(output, facts or {})

    def manifest(self, source: str) -> Manifest | None:
        """The manifest, if there is one and it lists `source`.

        Raises:
            UsageError: it is damaged.
        """
        if self.facts.get("input") != source:
            return None
        try:
            return Manifest.load(self._output)
        except (StorageError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self._output.uri(MANIFEST)} is damaged; restore it, or start over with --resume-mode overwrite."
            ) from error

    def refuse_other(self, recipe: Recipe) -> None:
        """An output holds the results of one configuration.

        Raises:
            UsageError: the output was begun with another; names each field that differs.
        """
        if self.facts.get("fingerprint") is None:
            return
        changes = self._changes(fingerprint(recipe))
        if changes:
            self._refuse("; ".join(f"{name} was {before!r}, now {now!r}" for name, before, now in changes))

    def is_of(self, config: RunConfig, weights_sha256: str) -> bool:
        """Whether `config` asks for what the output was begun with; told without the network."""
        if self.facts.get("fingerprint") is None:
            return False
        precision = self.facts["precision"] if config.precision == "auto" else config.precision
        return not self._changes(_fingerprint(config, weights_sha256, precision))

    def _changes(self, now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Name, old and new value of each field of the fingerprint that differs."""
        # What an older vbp did not ask for was done as the defaults are.
        defaults = RunConfig(input="photos", output="results").fingerprint()
        before = defaults | self.facts["fingerprint"]
        names = [name for name in before | now if before.get(name) != now.get(name)]
        return [(name, before.get(name), now.get(name)) for name in names]

    def refuse_other_classes(self, recipe: Recipe) -> None:
        """A folder stands for one class in all rows.

        Raises:
            UsageError: new folders have changed the numbers of old ones.
        """
        before, now = self.facts.get("classes") or {}, recipe.classes.index if recipe.classes else {}
        moved = [folder for folder, number in before.items() if now.get(folder) != number]
        if moved:
            self._refuse(f"folder {moved[0]!r} stood for class {before[moved[0]]}, now for {now.get(moved[0])}")

    def _refuse(self, changes: str) -> NoReturn:
        raise UsageError(
            f"{self._output.url} was begun with another configuration: {changes}. "
            "Use the old values, another OUTPUT, or --resume-mode overwrite."
        )

    def finished(self, images: int, config: RunConfig) -> Summary | None:
        """The summary of an earlier run that gave all of `images` their rows, if there was one."""
        summary = self.facts.get("summary")
        if summary is None or summary["images"] < images or not is_complete(self._output):
            return None
        now = {"failures_allowed": config.failures_allowed(summary["images"])}
        fields = {name: summary[name] for name in Summary.__dataclass_fields__}
        return Summary(**fields | now | {"computed": 0, "seconds": 0.0, "stage_seconds": {}})

    def begin_listing(self, config: RunConfig) -> None:
        """Before the manifest changes: the old promise is withdrawn, and it is said which input is being listed."""
        mark_incomplete(self._output)
        self.facts.setdefault("run_id", None)
        self.facts["input"] = config.input
        save_record(self._output, self.facts)

    def begin(self, recipe: Recipe) -> None:
        """Before the first image: the old promise is withdrawn, the configuration put down."""
        mark_incomplete(self._output)
        self.facts = {
            "run_id": recipe.run_id,
            "input": recipe.config.input,
            "fingerprint": fingerprint(recipe),
            "config": recipe.config.as_json(),
            "device": recipe.device,
            "batch_size": recipe.batch_size,
            "precision": recipe.precision,
            "classes": dict(recipe.classes.index) if recipe.classes else None,
            "versions": _versions(),
        }
        save_record(self._output, self.facts)

    def end(self, summary: Summary) -> None:
        """After the index: totals, and the promise if it holds."""
        save_record(self._output, self.facts | {"summary": summary.as_json()})
        if summary.succeeded:
            mark_complete(self._output)


def clear(output: Folder) -> None:
    """Remove all that earlier runs left in `output`, but not the lease; does nothing where there was never a run."""
    if not output.exists(RUN) and not output.exists(MANIFEST):
        return
    mark_incomplete(output)
    with ThreadPoolExecutor(16) as pool:
        for folder in (PARTS, "index", *RESULT_FOLDERS, "_run"):  # no part may outlive the manifest that it counts by
            list(pool.map(output.delete, [path for path in output.list(folder) if path not in (LEASE, RUN)]))
    output.delete(RUN)


def fingerprint(recipe: Recipe) -> dict[str, Any]:
    """All on which the written results depend, by name."""
    return _fingerprint(recipe.config, recipe.weights_sha256, recipe.precision)


def _fingerprint(config: RunConfig, weights_sha256: str, precision: str) -> dict[str, Any]:
    own = {"input": config.input, "weights": weights_sha256, "precision": precision, "method": METHOD_VERSION}
    return config.fingerprint() | own


def _versions() -> dict[str, str]:
    packages = ("vbp", "torch", "torchvision", "ray", "pyarrow", "pillow", "fsspec", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
