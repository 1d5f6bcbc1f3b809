"""From INPUT to the manifest: list the images, or bring the list of earlier runs up to date."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from vbp.pipeline import prepare
from vbp.pipeline.apart import rows_apart
from vbp.pipeline.calibrate import TRIED, calibrated
from vbp.pipeline.classes import ClassMap
from vbp.pipeline.clearing import clear, holds_run
from vbp.pipeline.loading import NetworkFacts
from vbp.pipeline.observer import Observer
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.sample import Choice, sampled
from vbp.pipeline.working import Due
from vbp.storage.collections.manifestfile import is_manifest
from vbp.storage.files import Folder
from vbp.storage.ledger import index
from vbp.storage.ledger.reconcile import reconcile
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest.manifest import Manifest, ManifestRow, write_manifest
from vbp.storage.manifest.refresh import refresh_manifest
from vbp.storage.manifest.rows import First, in_order
from vbp.storage.manifest.stretches import Rest
from vbp.storage.results.files import files_of
from vbp.storage.spreading import Spread
from vbp.words import counted

if TYPE_CHECKING:
    from vbp.networks.model import Model
    from vbp.pipeline.attempt import Attempt
    from vbp.pipeline.resources import Resources


class Checked:
    """A run whose network, machine and output are checked; its images are not yet.

    Args:
        attempt: the run.
        recipe: how the results are made, as far as known without the images.
        network: facts about the network.
        load: loads the network, for the calibration of int8.
    """

    def __init__(self, attempt: Attempt, recipe: Recipe, network: NetworkFacts, load: Callable[[], Model]) -> None:
        self._attempt, self._recipe, self._network, self._load = attempt, recipe, network, load
        self._config, self._output, self._record = attempt.config, attempt.output, attempt.record
        self._choice = Choice(TRIED, attempt.config.limit)

    def listed(self, known: Manifest | None = None, spread: Spread | None = None) -> Listed:
        """Read the manifest if there is one of this input, else list INPUT; with ``--refresh`` bring it up to date.

        Args:
            known: another run's manifest of the same input, to be copied.
            spread: lists a large tree by several workers; None: this process lists alone.

        Raises:
            UsageError: the input cannot be listed, or the record or the manifest is damaged.
        """
        manifest = self._record.manifest(self._config.input)
        if manifest is None:
            manifest = self._list_anew(known, spread)
        elif self._config.refresh or prepare.wants_more(self._config, manifest):
            manifest = self._refreshed(manifest, spread)
        if not self._record.fits(manifest):
            self._reconcile(manifest)
        if told := prepare.about_left_out(manifest.left_out):
            self._attempt.observer.note(f"Left out of the listing: {told}.")
        return Listed(self, manifest, self._config.limit)

    def due(self, manifest: Manifest, given: Resources | None) -> Due:
        """See `Listed.due`."""
        classes = self._classes(manifest)
        threads = given.threads if given else 0
        self._recipe = dataclasses.replace(
            self._recipe, classes=classes, threads=threads, generation=manifest.generation
        )
        config = self._config
        pending = list(index.pending_shards(self._output, manifest, config.retry_failed, config.limit))
        if pending and self._lacks_scales:
            if not self._choice.rows:  # an earlier attempt has made the listing
                deque(self._choice.watch(manifest.rows()), maxlen=0)
            self._calibrate()
        if pending and config.truth is not None:
            self._recipe = dataclasses.replace(self._recipe, truth_rule=self._truth_rule(manifest))
        return Due(self._attempt, self._recipe, manifest, pending)

    # The manifest

    def _list_anew(self, known: Manifest | None, spread: Spread | None) -> Manifest:
        config, left_out, rest = self._config, LeftOut(), None
        if known:
            listing = known.rows()
            left_out.counts = dict(known.left_out)
        else:
            listing, rest = self._rows(self._attempt.observer, left_out, spread)
        shard_size, listing = prepare.choose_shard_size(config, listing)
        if config.resume_mode == "overwrite" and holds_run(self._output):
            self._refuse_before_clearing(spread)
            clear(self._output, self._attempt.run_id)
        self._begin_listing()
        return write_manifest(
            self._output,
            self._choice.watch(listing) if self._lacks_scales else listing,
            shard_size,
            config.limit,
            input=config.input,
            left_out=left_out,
            suffixes=config.suffixes,
            generation=self._record.facts.get("generation") or "",
            rest=rest,
        )

    def _refuse_before_clearing(self, spread: Spread | None) -> None:
        """List INPUT to find errors before results are removed for good.  Errors as for `Listed.due`."""
        config = self._config
        limit = config.limit if prepare.is_cut_at_limit(config) else None
        listing, rest = self._rows(Observer(), LeftOut(), None if self._lacks_scales else spread)
        rows = in_order(First(listing, limit))
        rows = self._choice.watch(rows) if self._lacks_scales else rows
        folders = rest.labels(rows) if rest else {row.label for row in rows if row.label is not None}
        prepare.choose_classes(config, self._network.num_classes, self._network.class_names, sorted(folders))
        if self._lacks_scales:
            self._calibrate()

    def _refreshed(self, manifest: Manifest, spread: Spread | None) -> Manifest:
        config = self._config

        def forget(shard: int, rows: Mapping[int, ManifestRow]) -> None:
            index.forget(self._output, shard, rows)
            # the new row may be an error row or have no mask, so that old files would not be overwritten
            self._drop([row.key for row in rows.values()])

        left_out = LeftOut()
        listing, rest = self._rows(self._attempt.observer, left_out, spread)
        manifest, changes = refresh_manifest(
            self._output,
            manifest,
            rest.rows(listing) if rest else listing,
            config.limit,
            forget=forget if config.refresh else None,
            accept=self._classes,
            left_out=left_out,
            suffixes=config.suffixes,
            before_change=self._begin_listing,
        )
        if config.refresh:
            new = counted(changes.new, "image is new", "images are new")
            gone = f", {changes.gone} gone (what has a result keeps it)" if changes.gone else ""
            back = f", {changes.back} back" if changes.back else ""
            others = counted(changes.beyond, "more is new", "more are new")
            more = f", {others}, but beyond --limit {config.limit}" if changes.beyond else ""
            self._attempt.observer.note(f"Since the last listing: {new}, {changes.changed} changed{more}{gone}{back}.")
        return manifest

    def _reconcile(self, manifest: Manifest) -> None:
        """Reconcile rows that were made with another manifest, or with an unknown one."""
        count = reconcile(self._output, manifest, self._drop, self._begin_listing)
        self._record.adopt(manifest)
        if count:
            self._attempt.observer.note(
                f"INPUT was listed anew; {counted(count, 'row was', 'rows were')} of other images than are now in "
                "their places, and will be made again."
            )

    def _begin_listing(self) -> None:
        self._record.begin_listing(self._config, self._attempt.run_id)

    def _rows(
        self, observer: Observer, left_out: LeftOut, spread: Spread | None
    ) -> tuple[Iterator[ManifestRow], Rest | None]:
        """The rows of INPUT as this process lists them, and the workers that may take over; errors as for `listed`.

        They do so for whole trees only: a limit and a sample need the rows one by one.
        """
        config = self._config
        observer.doing("listing INPUT")
        check = partial(rows_apart, source=config.input, output=config.output)
        rows = check(prepare.list_input(config, observer.listed, left_out))
        if config.sample is not None:
            return sampled(rows, config.sample), None
        if spread is None or config.limit is not None or is_manifest(config.input):
            return rows, None

        def stop() -> None:
            observer.note("INPUT is large: workers of Ray list the rest of it.")
            rows.close()
            self._choice = Choice(TRIED)  # `due` chooses among all images then

        source = Folder(config.input, config.storage_options)
        suffixes = prepare.image_suffixes(config)
        return rows, Rest(spread, source, self._output, suffixes, check, left_out, observer.listed, stop)

    def _drop(self, keys: Sequence[str]) -> None:
        """Remove the result files of images; those in tars are removed with the tar, once no row names it."""
        files = files_of(self._output, self._config.as_json())
        for key in keys:
            for path in files.paths(key):
                self._output.delete(path)

    # What depends on the images

    def _classes(self, manifest: Manifest) -> ClassMap | None:
        """Which class each folder of `manifest` stands for; errors as for `Listed.due`."""
        before = self._record.facts.get("classes")
        folders = prepare.class_folders(self._config, manifest)
        network = self._network
        classes = prepare.choose_classes(self._config, network.num_classes, network.class_names, folders, before)
        self._record.refuse_other_classes(classes)
        return classes

    def _truth_rule(self, manifest: Manifest) -> str:
        """How truths are named after images; tried on the first ones.

        Raises:
            UsageError: no truth is found, or none fits its image.
        """
        from vbp.pipeline.truths import tried

        return tried(self._recipe, manifest.rows())

    @property
    def _lacks_scales(self) -> bool:
        return self._recipe.precision == "int8" and self._recipe.scales is None

    def _calibrate(self) -> None:
        """For int8: find the scales if the run has none yet; errors as for `calibrated`."""
        observer = self._attempt.observer
        observer.note("Calibrating int8 on some of the images; the run keeps the scales.")
        scales = calibrated(self._recipe, self._load(), self._choice.rows)
        if scales["floats"]:
            stay = counted(len(scales["floats"]), "convolution stays", "convolutions stay")
            observer.note(f"{stay} in float32: {', '.join(scales['floats'])}.")
        self._recipe = dataclasses.replace(self._recipe, scales=scales)


class Listed:
    """A run whose images are known.

    Attributes:
        manifest: the images.
        images: number of images up to ``limit``.
    """

    def __init__(self, checked: Checked, manifest: Manifest, limit: int | None) -> None:
        self._checked, self.manifest = checked, manifest
        self.images = manifest.images_within(limit)

    def due(self, given: Resources | None) -> Due:
        """Find out what depends on the images: the match of folders and classes, the scales of int8, the images left.

        Args:
            given: resources from Ray; None for work in this process.

        Raises:
            UsageError: ``select`` needs classes that are unknown, folders now stand for other classes, int8 finds too
                few images that can be read, or an evaluation no truth that fits.
            ModelError: the network cannot be computed with integers.
        """
        return self._checked.due(self.manifest, given)
