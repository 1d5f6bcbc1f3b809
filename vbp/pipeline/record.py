"""Record: the files ``_run/run.json`` and ``_SUCCESS`` that a run writes beside its results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any, NoReturn

import vbp
from vbp.errors import StorageError, UsageError
from vbp.networks.preprocessing import IMAGENET, Preprocessing
from vbp.pipeline.classes import ClassMap
from vbp.pipeline.config import RunConfig
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.summary import Summary
from vbp.storage.files import Folder
from vbp.storage.ledger.parts import PARTS, generation_of
from vbp.storage.manifest.manifest import MANIFEST, Manifest
from vbp.storage.parquet import Written
from vbp.storage.record import RUN, is_complete, load_run, mark_complete, mark_incomplete, save_record

CONTENTS = ("classes_sha256", "input_sha256", "structure_sha256")
"""Fields of the fingerprint that are hashes of what is named elsewhere in it; an older vbp did not record them."""
OF_THE_NETWORK = ("code_sha256", "structure_sha256")
"""Those of them that follow from the name of the network."""
METHOD_VERSION = 1
"""This number is raised whenever a new version gives other masks for the same configuration."""


class Record:
    """The record of one output folder.

    Attributes:
        facts: the content of ``run.json``; empty before the first run, and for a run that starts over.
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
            facts = load_run(output)
        except StorageError as error:
            raise UsageError(f"{error} (--resume-mode overwrite starts over here).") from error
        gone = facts is None and not output.exists(RUN)  # otherwise a run that starts over has emptied it
        left = gone and (MANIFEST if output.exists(MANIFEST) else _first_below(output, PARTS))
        if left:
            raise UsageError(
                f"{output.uri(RUN)} is gone, though {left} is there, so nobody knows what the results belong to; "
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
            found = Manifest.load(self._output)
        except StorageError as error:
            raise UsageError(
                f"{self._output.uri(MANIFEST)} is damaged; restore it, or delete it, and INPUT is listed anew."
            ) from error
        if found is not None and found.input not in ("", source):
            raise UsageError(
                f"{self._output.uri(MANIFEST)} lists another INPUT (={found.input}); restore it, or delete it, and "
                f"{source} is listed anew."
            )
        return found

    def fits(self, manifest: Manifest) -> bool:
        """Whether the rows on record belong to `manifest`, so that a position means the same image in both."""
        return (self.facts.get("manifest") or "") == manifest.id

    def adopt(self, manifest: Manifest) -> None:
        """Record that all rows from now on belong to `manifest`."""
        self.facts["manifest"] = manifest.id
        save_record(self._output, self.facts)

    def refuse_other(self, recipe: Recipe) -> None:
        """Refuse a configuration whose fingerprint differs from the one that the output was begun with.

        Raises:
            UsageError: the fingerprints differ; names each field that does.
        """
        if self.facts.get("fingerprint") is None:
            return
        refreshed = {"input_sha256"} if recipe.config.refresh else set()
        changes = [change for change in self._changes(fingerprint(recipe)) if change[0] not in refreshed]
        if changes:
            before = self.facts.get("config") or {}
            self._refuse("; ".join(_in_words(change, before, recipe.config) for change in changes))

    def is_of(self, config: RunConfig, weights_sha256: str, contents: Mapping[str, str]) -> bool:
        """Whether the output was begun with the fingerprint of `config`; found out without loading the network."""
        if self.facts.get("fingerprint") is None:
            return False
        precision = config.precision if config.precision != "auto" else str(self.facts.get("precision"))
        contents = {**contents, **_digest(self.facts.get("scales") if precision == "int8" else None)}
        # A checkpoint of torchvision's networks does not record its preprocessing, so ImageNet's is assumed.
        return not self._changes(_fingerprint(config, weights_sha256, precision, contents, config.preprocessing()))

    def _changes(self, now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Name, old and new value of each field of the fingerprint that differs."""
        # Settings that are missing from an old record count as defaults.
        defaults = RunConfig(input="photos", output="results").fingerprint() | IMAGENET.as_json()
        before = defaults | self.facts["fingerprint"]
        unknown = set(CONTENTS) - set(before)
        names = [name for name in before | now if before.get(name) != now.get(name) and name not in unknown]
        if "classes" in names:  # the class file may have moved while its content stayed the same
            moved = before.get("classes_sha256") is not None and "classes_sha256" not in names
            names = [name for name in names if name != ("classes" if moved else "classes_sha256")]
        if "model" in names:
            names = [name for name in names if name not in OF_THE_NETWORK]
        if {"code_sha256", "model_args"} & set(names):
            names = [name for name in names if name != "structure_sha256"]
        if "precision" in names:  # only int8 has scales
            names = [name for name in names if name != "scales_sha256"]
        return [(name, before.get(name), now.get(name)) for name in names]

    def refuse_other_classes(self, classes: ClassMap | None) -> None:
        """Refuse a matching of folders and classes that contradicts the rows on record.

        Raises:
            UsageError: because of new folders, an old folder would get another class number.
        """
        before, now = self.facts.get("classes") or {}, classes.index if classes else {}
        moved = [folder for folder, number in before.items() if now.get(folder) != number]
        if moved:
            why = f"none, since {classes.with_advice}" if classes and not now else now.get(moved[0])
            self._refuse(f"folder {moved[0]!r} stood for class {before[moved[0]]}, now for {why}")

    def _refuse(self, changes: str) -> NoReturn:
        raise UsageError(
            f"{self._output.url} was begun with another configuration: {changes}. "
            "Use the old values, another OUTPUT, or --resume-mode overwrite."
        )

    def finished(self, images: int, config: RunConfig) -> Summary | None:
        """The summary of an earlier attempt, if it is complete, covers all `images`, and failed no more than allowed.

        None otherwise: a run that allows fewer failures than the last one has to withdraw its ``_SUCCESS``.
        """
        summary = self.facts.get("summary")
        if summary is None or any(field.name not in summary for field in dataclasses.fields(Summary) if _is_due(field)):
            return None
        is_here = summary["output"] == self._output.url  # a moved output has an index with the old places
        if summary["images"] < images or not is_here or not is_complete(self._output):
            return None
        now = {
            "failures_allowed": config.failures_allowed(summary["images"]),
            "max_failures": config.max_failures,
        }
        fields = {name: summary[name] for name in Summary.__dataclass_fields__ if name in summary}
        found = Summary(**fields | now | {"computed": 0, "seconds": 0.0, "stage_seconds": {}})
        return found if found.succeeded else None

    def begin_listing(self, config: RunConfig, attempt: str) -> None:
        """Before the manifest changes: delete ``_SUCCESS``, and record which attempt lists which input."""
        mark_incomplete(self._output)
        if not self.facts:
            self.facts["generation"] = generation_of(attempt)
        self.facts.setdefault("run_id", None)
        self.facts["attempt"] = attempt
        self.facts["input"] = config.input
        save_record(self._output, self.facts)

    def begin(self, recipe: Recipe) -> None:
        """Before the first image: delete ``_SUCCESS``, and record the configuration."""
        mark_incomplete(self._output)
        self.facts = {
            "run_id": recipe.run_id,
            "attempt": recipe.run_id,
            "generation": recipe.generation,
            "input": recipe.config.input,
            "manifest": self.facts.get("manifest"),
            "fingerprint": fingerprint(recipe),
            "config": recipe.config.as_json() | {"size": recipe.preprocessing.size or IMAGENET.size},
            "device": recipe.device,
            "batch_size": recipe.batch_size,
            "precision": recipe.precision,
            "processors": list(recipe.processors),
            "scales": recipe.scales,
            "classes": dict(recipe.classes.index) if recipe.classes else None,
            "versions": _versions(),
        }
        save_record(self._output, self.facts)

    def end(self, summary: Summary, files: Mapping[str, Written]) -> None:
        """After the index is written as `files`: record the totals, and write ``_SUCCESS`` if the run succeeded."""
        save_record(self._output, self.facts | {"summary": summary.as_json()})
        if summary.succeeded:
            totals = {"images": summary.images, "ok": summary.ok, "error": summary.error}
            mark_complete(self._output, summary.run_id, files, totals)


def open_record(config: RunConfig, output: Folder) -> Record:
    """What earlier runs left, as far as ``resume_mode`` lets it count.

    Raises:
        UsageError: there is a run, and ``resume_mode`` is fail; or the record is damaged.
    """
    if config.resume_mode == "overwrite":
        return Record(output, {})
    record = Record.load(output)
    if record.facts and config.resume_mode == "fail":
        raise UsageError(
            f"OUTPUT (={config.output}) holds run {record.facts['run_id']}; "
            "choose another OUTPUT, or --resume-mode resume or overwrite."
        )
    return record


def fingerprint(recipe: Recipe) -> dict[str, Any]:
    """All settings on which the written results depend, by name."""
    contents = {**recipe.contents, **_digest(recipe.scales)}
    return _fingerprint(recipe.config, recipe.weights_sha256, recipe.precision, contents, recipe.preprocessing)


def _digest(scales: Mapping[str, Any] | None) -> dict[str, str]:
    """SHA-256 of the scales of int8, for the fingerprint; empty without scales."""
    if scales is None:
        return {}
    return {"scales_sha256": hashlib.sha256(json.dumps(scales, sort_keys=True).encode()).hexdigest()}


def _fingerprint(
    config: RunConfig,
    weights_sha256: str,
    precision: str,
    contents: Mapping[str, str],
    preprocessing: Preprocessing,
) -> dict[str, Any]:
    own = {"input": config.input, "weights": weights_sha256, "precision": precision, "method": METHOD_VERSION}
    return {**config.fingerprint(), **preprocessing.as_json(), **own, **contents}


def _is_due(field: dataclasses.Field[Any]) -> bool:
    """Whether every vbp has recorded this field, because it has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _in_words(change: tuple[str, Any, Any], old: Mapping[str, Any], config: RunConfig) -> str:
    """A clause on one field that differs; `old` is the configuration that the output was begun with."""
    name, before, now = change
    if name == "weights":
        place = old.get("weights", "an unnamed file")
        clause = f"weights was {place} (SHA-256 {before[:8]}...), now {config.weights} (SHA-256 {now[:8]}...)"
        return f"{clause}: its content has changed since" if place == config.weights else clause
    if name == "code_sha256" and None not in (before, now):
        return f"the code of --model (={config.model}) has changed since"
    if name == "structure_sha256":
        return f"--model (={config.model}) makes another network now, of the same code: what it reads has changed since"
    if name == "classes_sha256" and None not in (before, now):
        return f"the content of --classes (={config.classes}) has changed since"
    if name == "truth_sha256" and None not in (before, now):
        return "the content of --truth has changed since"
    if name == "scales_sha256":
        return "the scales of int8 in _run/run.json are others than it was begun with"
    if name == "input_sha256":
        return f"the content of INPUT (={config.input}) has changed since (--refresh takes on what is new)"
    return f"{name} was {before!r}, now {now!r}"


def _first_below(output: Folder, folder: str) -> str | None:
    """The path of some file below a folder; None if there is none."""
    try:
        first = output.child(folder).first()
    except FileNotFoundError:
        return None
    return None if first is None else f"{folder}/{first.path}"


def _versions() -> dict[str, str]:
    from importlib.metadata import version  # not needed by a run that is finished already

    packages = ("torch", "torchvision", "ray", "pyarrow", "pillow", "fsspec", "numpy")
    ours = {"python": platform.python_version(), "vbp": vbp.__version__}
    return ours | {name: version(name) for name in packages}
