"""Attempt: one run at work on its output, from the lease to the promise.

``run`` makes one; a sweep makes one for each of its runs and takes them through these steps side by side.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from vbp.errors import InterruptedRunError, StorageError, UsageError
from vbp.pipeline import prepare
from vbp.pipeline.apart import rows_apart
from vbp.pipeline.calibrate import Choice, calibrated
from vbp.pipeline.classes import ClassMap
from vbp.pipeline.clearing import clear, forget_listing, holds_run, refuse_others
from vbp.pipeline.config import RunConfig
from vbp.pipeline.hardware import common_precision, kinds, look, refuse_integers, slow_machines
from vbp.pipeline.observer import Observer
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.record import Record
from vbp.pipeline.summary import Summary
from vbp.storage.files import Folder
from vbp.storage.ledger import index
from vbp.storage.ledger.held import HeldFolder
from vbp.storage.ledger.holder import Holder
from vbp.storage.ledger.lease import Lease
from vbp.storage.ledger.orphans import remove_orphans
from vbp.storage.ledger.reconcile import reconcile
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest.manifest import Manifest, ManifestRow, write_manifest
from vbp.storage.manifest.refresh import refresh_manifest
from vbp.storage.manifest.rows import First, in_order
from vbp.storage.outline import TARS
from vbp.storage.results.files import OwnFiles, Tars, files_of

if TYPE_CHECKING:
    from vbp.networks.models import Model
    from vbp.pipeline.resources import Resources


class Attempt:
    """One attempt at a run; the methods are called in the order in which they stand here.

    Args:
        config: what to do, its places absolute.

    Attributes:
        record: what earlier runs left, after `open`.
        recipe: how the results are made, after `check`.
        manifest: the images, after `list_images`.
        pending: the shards that have work left, after `settle`.
        spent: seconds by stage, and the number of ``images``, of this attempt.
    """

    record: Record
    recipe: Recipe
    manifest: Manifest
    pending: list[index.PendingShard]

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        self.output = HeldFolder(config.output, config.storage_options, self.run_id)
        self.spent: dict[str, float] = defaultdict(float)
        self._missing: int | None = None
        self._is_new = False

    @contextmanager
    def leased(self, observer: Observer) -> Iterator[None]:
        """Hold the output; everything else happens within. A first run that is refused leaves nothing of its listing.

        Raises:
            UsageError: it cannot be written.
        """
        with leased(self.output, self.run_id, observer):
            try:
                yield
            except UsageError:
                with failures_as_sentences(before_work=False):
                    self.output.look()  # what is wrong may be another's work in progress
                if self._is_new:
                    forget_listing(self.output)
                raise

    def open(self) -> None:
        """Read the record of earlier runs; errors as for `open_record`."""
        self._is_new = not holds_run(self.output)
        self.record = open_record(self.config, self.output)
        if self._is_new:
            refuse_others(self.output)

    def check(
        self,
        model: Model,
        given: Resources | None,
        observer: Observer,
        again: Callable[[], Model] | None = None,
    ) -> None:
        """Refuse what cannot be carried out; nothing is removed or written.

        Args:
            model: the network.
            given: of Ray; None for work in this process.
            observer: is told which machines are slow at what is computed.
            again: loads the network once more, where it may not be kept until it is known whether int8 needs it.

        Raises:
            UsageError: the output holds results of another configuration, or the classes cannot be read.
        """
        device = prepare.choose_device(self.config) if given is None else "cuda" if given.num_gpus else "cpu"
        found = given.hardware if given else (look(device),)
        precision = common_precision(self.config.precision, self.record.facts.get("precision"), found)
        self.recipe = Recipe(
            config=self.config,
            run_id=self.run_id,
            device=device,
            precision=precision,
            scales=self.record.facts.get("scales") if precision == "int8" else None,
            processors=tuple(kinds(found)),
            batch_size=prepare.choose_batch_size(self.config, device, self.record.facts),
            weights_sha256=model.sha256,
            contents=prepare.contents_sha256(self.config),
            preprocessing=self.config.preprocessing(model.preprocessing),
        )
        self.record.refuse_other(self.recipe)
        refuse_integers(precision, found)
        self._choice = Choice(self.config.limit)
        self._load = again or (lambda: model)
        if (slow := slow_machines(self.recipe.precision, found)) is not None:
            observer.note(slow)
        prepare.declared_classes(self.config)  # a file that cannot be read is refused before the listing
        self._own_names, self._num_classes = model.class_names, model.num_classes

    def list_images(self, observer: Observer, known: Manifest | None = None) -> None:
        """The manifest: read where there is one of this input, else made; brought up to date where that is wanted.

        Args:
            observer: is told how the listing goes.
            known: another run's list of the same input, to be taken over.
        """
        manifest = self.record.manifest(self.config.input)
        if manifest is None:
            left_out = LeftOut()
            listing = known.rows() if known else self._listed(observer, left_out)
            if known:
                left_out.counts = dict(known.left_out)
            shard_size, listing = prepare.choose_shard_size(self.config, listing)
            if self.config.resume_mode == "overwrite" and holds_run(self.output):
                self._refuse_before_clearing(observer)
                clear(self.output, self.run_id)
            self.record.begin_listing(self.config, self.run_id)
            manifest = write_manifest(
                self.output,
                self._choice.watch(listing) if self._lacks_scales else listing,
                shard_size,
                self.config.limit,
                input=self.config.input,
                left_out=left_out,
                suffixes=self.config.suffixes,
                generation=self.record.facts.get("generation") or "",
            )
        elif self.config.refresh or wants_more(self.config, manifest):
            manifest = self._refreshed(manifest, observer)
        self.manifest = manifest
        if not self.record.fits(manifest):
            self._reconcile(observer)
        if told := prepare.about_left_out(manifest.left_out):
            observer.note(f"Left out of the listing: {told}.")

    @property
    def images(self) -> int:
        """Listed, up to ``limit``."""
        return min(self.manifest.images, self.config.limit or self.manifest.images)

    @property
    def left(self) -> int:
        """Images without a row when it was last looked."""
        return sum(shard.images for shard in self.pending)

    def settle(self, given: Resources | None, network: Model | None = None) -> None:
        """What the listing decides: how folders and classes match, and what is left to do.

        Args:
            given: of Ray; None for work in this process.
            network: the loaded one, for work in this process; workers load their own.

        Raises:
            UsageError: ``select`` needs classes that nobody knows, or folders now stand for other classes.
        """
        classes = self._classes(self.manifest)
        threads = given.threads if given else 0
        generation = self.manifest.generation
        self.recipe = dataclasses.replace(
            self.recipe, classes=classes, network=network, threads=threads, generation=generation
        )
        self.look(retry_failed=self.config.retry_failed)

    def calibrate(self, observer: Observer) -> None:
        """For int8: find the scales, where there is work and the run has none yet.

        Args:
            observer: is told of it.

        Raises:
            UsageError: too few images can be read.
            ModelError: integers do not suit the network.
        """
        if not self._lacks_scales or not self.pending:
            return
        if not self._choice.rows:  # the listing is an earlier attempt's
            deque(self._choice.watch(self.manifest.rows()), maxlen=0)
        self._calibrate(observer)

    @property
    def _lacks_scales(self) -> bool:
        return self.recipe.precision == "int8" and self.recipe.scales is None

    def _calibrate(self, observer: Observer) -> None:
        rows = self._choice.rows
        observer.note("Calibrating int8 on some of the images; the run keeps the scales.")
        scales = calibrated(self.recipe, self._load(), rows)
        if scales["floats"]:
            observer.note(f"{len(scales['floats'])} convolutions stay in float32: {', '.join(scales['floats'])}.")
        self.recipe = dataclasses.replace(self.recipe, scales=scales)

    def _classes(self, manifest: Manifest) -> ClassMap | None:
        """How the folders of `manifest` and the network's classes match; errors as for `settle`."""
        before = self.record.facts.get("classes")
        folders = prepare.class_folders(self.config, manifest)
        classes = prepare.choose_classes(self.config, self._num_classes, self._own_names, folders, before)
        self.record.refuse_other_classes(classes)
        return classes

    def look(self, *, retry_failed: bool = False) -> None:
        """Find out what is left to do."""
        self.pending = list(index.pending_shards(self.output, self.manifest, retry_failed, self.config.limit))

    def finished(self) -> Summary | None:
        """The summary of an earlier run that left nothing to do, if there was one."""
        return None if self.pending else self.record.finished(self.images, self.config)

    def begin(self, observer: Observer) -> None:
        """Before the first image: the old promise is withdrawn, the configuration put down."""
        classes = self.recipe.classes
        if classes is not None and not classes.index:
            observer.note(f"No prediction is called correct or wrong: {classes.rule}.")
        self._is_new = False
        self.record.begin(self.recipe)

    def count(self, report: Mapping[str, Any]) -> tuple[int, int]:
        """A part was committed: its images without and with an error."""
        ok, error = int(report["ok"]), int(report["error"])
        self.spent["images"] += ok + error
        for name, value in report.items():
            if name.startswith("seconds_"):
                self.spent[name.removeprefix("seconds_")] += float(value)
        return ok, error

    def compact(self, observer: Observer) -> index.Totals:
        """Make the index; where images have no row in it, `pending` is what is to be done once more.

        Rows are lost where a part of the ledger is damaged, or where Ray repeats a task that was half done already.

        Raises:
            InterruptedRunError: as many images are without a row as the last time.
        """
        self.output.look()
        totals = index.compact(self.output, self.manifest, limit=self.config.limit)
        for path in totals.damaged:
            observer.note(f"{self.output.uri(path)} is damaged and was removed; its images are done again.")
        if totals.strange:
            observer.note(f"{totals.strange} rows were of no image in their places; they were taken back.")
        if totals.missing and totals.missing == self._missing:
            raise InterruptedRunError(
                f"{totals.missing} of {totals.images} images have no row in {self.output.uri('index')}, also after a "
                "second try; run the same command again."
            )
        self._missing = totals.missing
        if totals.missing:
            self.look()
        return totals

    def end(self, totals: index.Totals, given: Resources | None, observer: Observer) -> Summary:
        """After the index: totals, and the promise if it holds."""
        summary = Summary(
            run_id=self.run_id,
            output=self.output.url,
            images=totals.images,
            ok=totals.ok,
            error=totals.error,
            reasons=totals.by_reason,
            computed=int(self.spent.get("images", 0)),
            failures_allowed=self.config.failures_allowed(totals.images),
            seconds=self.spent["wall"],
            stage_seconds={n: round(value, 3) for n, value in self.spent.items() if n not in ("images", "wall")},
            runner="local" if given is None else "ray",
            device=self.recipe.device,
            precision=self.recipe.precision,
            batch_size=self.recipe.batch_size,
            workers=given.workers if given else 1,
            classes=self.recipe.classes.rule if self.recipe.classes else None,
            left_out=self.manifest.left_out,
            max_failures=self.config.max_failures,
        )
        self._remove_orphans(observer)
        self.record.end(summary, totals.files)
        self.output.look()
        return summary

    def _refreshed(self, manifest: Manifest, observer: Observer) -> Manifest:
        config = self.config

        def forget(shard: int, rows: Mapping[int, ManifestRow]) -> None:
            index.forget(self.output, shard, rows)
            # what comes instead may be an error row or one without a mask, and leave these behind
            self._drop([row.key for row in rows.values()])

        left_out = LeftOut()
        manifest, changes = refresh_manifest(
            self.output,
            manifest,
            self._listed(observer, left_out),
            config.limit,
            forget=forget if config.refresh else None,
            accept=self._classes,
            left_out=left_out,
            suffixes=config.suffixes,
            before_change=lambda: self.record.begin_listing(config, self.run_id),
        )
        if config.refresh:
            gone = f", {changes.gone} gone (their rows stay)" if changes.gone else ""
            more = f", {changes.beyond} more are new, but beyond --limit {config.limit}" if changes.beyond else ""
            observer.note(
                f"Since the last listing: {changes.new} images are new, {changes.changed} changed{more}{gone}."
            )
        return manifest

    def _listed(self, observer: Observer, left_out: LeftOut) -> Iterator[ManifestRow]:
        rows = prepare.list_input(self.config, observer.listed, left_out)
        return rows_apart(rows, self.config.input, self.config.output)

    def _refuse_before_clearing(self, observer: Observer) -> None:
        """List INPUT for the refusals alone: what is cleared cannot be had back.

        Errors as for `settle` and `calibrate`.
        """
        config = self.config
        limit = config.limit if prepare.is_cut_at_limit(config) else None
        rows = in_order(First(self._listed(Observer(), LeftOut()), limit))
        rows = self._choice.watch(rows) if self._lacks_scales else rows
        folders = {row.label for row in rows if row.label is not None}
        prepare.choose_classes(config, self._num_classes, self._own_names, sorted(folders))
        if self._lacks_scales:
            self._calibrate(observer)

    def _reconcile(self, observer: Observer) -> None:
        """The rows on record were made by another manifest, or by none that is known."""
        before_change = partial(self.record.begin_listing, self.config, self.run_id)
        count = reconcile(self.output, self.manifest, self._drop, before_change)
        self.record.adopt(self.manifest)
        if count:
            observer.note(
                f"INPUT was listed anew, and {count} rows were of other images than are now in their places; "
                "they were taken back."
            )

    def _drop(self, keys: Sequence[str]) -> None:
        """Remove the result files of images; those in tars go with their tars, when no row names these any more."""
        files = self._files
        for key in keys:
            for path in files.paths(key):
                self.output.delete(path)

    @property
    def _files(self) -> OwnFiles | Tars:
        return files_of(self.output, self.config.as_json())

    def _remove_orphans(self, observer: Observer) -> None:
        """Tars of commits that were cut off."""
        if TARS in self._files.folders:
            removed = remove_orphans(self.output)
            if removed:
                observer.note(f"Removed {removed} tar file(s) of commits that were cut off.")


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


def wants_more(config: RunConfig, manifest: Manifest) -> bool:
    """Whether the listing was cut at a limit that is now larger, or went by other suffixes than are asked for."""
    cut = not manifest.complete and (config.limit is None or config.limit > manifest.images)
    return cut or config.suffixes not in (None, manifest.suffixes)


@contextmanager
def leased(output: Folder, run_id: str, observer: Observer) -> Iterator[None]:
    """Hold the output for the time of the run.

    Raises:
        UsageError: it cannot be written.
    """
    told: list[str] = []

    def waiting(holder: Holder | None, seconds: float) -> None:
        if not told:
            told.append(str(holder))
            observer.note(f"Waiting for {holder or 'another run'}; if it is gone, taking over in {seconds:.0f} s.")

    with output.without_traces("_run"):
        lease = Lease(output, run_id)
        try:
            lease.acquire(waiting)
        except StorageError as error:
            raise UsageError(
                f"OUTPUT (={output.uri()}) cannot be written: {error}; choose another, or have it made writable."
            ) from error
        try:
            yield
        finally:
            lease.release()


@contextmanager
def failures_as_sentences(*, before_work: bool) -> Iterator[None]:
    """Failures of storage as errors that say whether the same command may help.

    Raises:
        UsageError: before any work, a place cannot be used as it is.
        InterruptedRunError: a store stopped answering, or does not take what is written.
    """
    try:
        yield
    except (StorageError, OSError) as error:
        causes = (error, error.__cause__)
        if before_work and any(isinstance(cause, OSError) and not _may_pass(cause) for cause in causes):
            raise UsageError(str(error)) from error
        sentence = str(error).rstrip(".")
        raise InterruptedRunError(f"{sentence}. What was finished is kept; run the same command again.") from error


def _may_pass(error: OSError) -> bool:
    """Whether the same request may go through later: unlike a missing, forbidden or misnamed file."""
    lasting = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
    return not isinstance(error, lasting)
