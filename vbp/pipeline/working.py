"""The work of one run: the images that are left, the count of committed parts, then index, totals and ``_SUCCESS``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vbp.errors import InterruptedRunError
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.summary import Summary
from vbp.storage.ledger import index
from vbp.storage.ledger.compaction import Totals, compact
from vbp.storage.ledger.orphans import remove_orphans
from vbp.storage.ledger.scores import collect
from vbp.storage.manifest.manifest import Manifest
from vbp.storage.outline import TARS
from vbp.storage.parquet import Written
from vbp.storage.results.files import files_of
from vbp.storage.spreading import Spread, here
from vbp.words import counted

if TYPE_CHECKING:
    from vbp.pipeline.attempt import Attempt
    from vbp.pipeline.resources import Resources


class Due:
    """A run that passed all checks.

    Attributes:
        recipe: how its results are made.
        images: images of INPUT, up to ``limit``.
        left: images of them without a row.
    """

    def __init__(self, attempt: Attempt, recipe: Recipe, manifest: Manifest, pending: list[index.PendingShard]) -> None:
        self._attempt, self.recipe, self._manifest, self._pending = attempt, recipe, manifest, pending
        self.images = manifest.images_within(attempt.config.limit)
        self.left = sum(shard.images for shard in pending)

    def finished(self) -> Summary | None:
        """The summary of an earlier attempt that left nothing to do; None if there is none."""
        return None if self._pending else self._attempt.record.finished(self.images, self._attempt.config)

    @property
    def remark(self) -> str | None:
        """What a user should know before the work begins; None if there is nothing."""
        classes = self.recipe.classes
        if classes is None or classes.index:
            return None
        return f"It is not known which predictions are correct: {classes.with_advice}."

    def begun(self) -> Working:
        """Before the first image: delete the old ``_SUCCESS`` and record the configuration."""
        attempt = self._attempt
        attempt.has_begun = True
        attempt.record.begin(self.recipe)
        is_claimed = attempt.output.changes_may_come_late
        manifest = self._manifest.claimed(attempt.run_id) if is_claimed else self._manifest
        return Working(attempt, self.recipe, manifest, self._pending)


class Working:
    """A run at work.

    Attributes:
        recipe: how its results are made.
        pending: the shards with work left, at the last `look`.
        left: images of these shards that are not reported yet.
        seconds: working time of this attempt, without listing and start-up.
    """

    def __init__(self, attempt: Attempt, recipe: Recipe, manifest: Manifest, pending: list[index.PendingShard]) -> None:
        self._attempt, self.recipe, self._manifest = attempt, recipe, manifest
        self._expect(pending)
        self.seconds = 0.0
        self._computed = 0
        self._stage_seconds: dict[str, float] = defaultdict(float)
        self._missing: int | None = None

    def count(self, report: Mapping[str, Any]) -> tuple[int, int]:
        """Count a committed part; returns its numbers of ok images and of failed images."""
        ok, error = int(report["ok"]), int(report["error"])
        self._computed += ok + error
        self.left -= ok + error
        for name, value in report.items():
            if name.startswith("seconds_"):
                self._stage_seconds[name.removeprefix("seconds_")] += float(value)
        return ok, error

    def look(self, *, retry_failed: bool = False) -> None:
        """Find out what is left to do."""
        attempt = self._attempt
        self._expect(list(index.pending_shards(attempt.output, self._manifest, retry_failed, attempt.config.limit)))

    def completed(self, given: Resources | None, spread: Spread = here) -> Summary | None:
        """Make the index, record the totals, and write ``_SUCCESS`` if the run succeeded.

        Rows can be lost: a part of the ledger is damaged, or Ray repeats a task that was half done.

        Args:
            given: resources from Ray; None for work in this process.
            spread: makes the ranges of the index.

        Returns:
            The summary; None if images have no row, which are then `pending` again.

        Raises:
            InterruptedRunError: no fewer images than last time are without a row.
        """
        totals = self._indexed(spread)
        if totals.missing:
            self.look()
            return None
        attempt = self._attempt
        summary = self._summary(totals, given)
        self._remove_orphans()
        attempt.record.end(summary, {**totals.files, **self._scores()})
        attempt.output.look()
        return summary

    def _scores(self) -> Mapping[str, Written]:
        """The files of an evaluation's scores; none in other runs."""
        attempt = self._attempt
        return {} if attempt.config.evaluation is None else collect(attempt.output, self._manifest)

    def _expect(self, pending: list[index.PendingShard]) -> None:
        self.pending = pending
        self.left = sum(shard.images for shard in pending)

    def _indexed(self, spread: Spread) -> Totals:
        attempt = self._attempt
        output, observer = attempt.output, attempt.observer
        output.look()
        totals = compact(output, self._manifest, attempt.config.limit, spread=spread, tell=observer.indexed)
        for path in totals.damaged:
            observer.note(f"{output.uri(path)} is damaged and was removed; its images are done again.")
        if totals.strange:
            strange = counted(totals.strange, "row was", "rows were")
            observer.note(f"{strange} not of the images in their places, and will be made again.")
        if totals.missing and totals.missing == self._missing:
            raise InterruptedRunError(
                f"{totals.missing} of {counted(totals.images, 'image')} without a row in {output.uri('index')}, also "
                "after a second try; run the same command again."
            )
        self._missing = totals.missing
        return totals

    def _summary(self, totals: Totals, given: Resources | None) -> Summary:
        config, recipe = self._attempt.config, self.recipe
        return Summary(
            run_id=recipe.run_id,
            output=self._attempt.output.url,
            images=totals.images,
            ok=totals.ok,
            error=totals.error,
            reasons=totals.by_reason,
            computed=self._computed,
            failures_allowed=config.failures_allowed(totals.images),
            seconds=self.seconds,
            stage_seconds={name: round(value, 3) for name, value in self._stage_seconds.items() if value},
            runner="local" if given is None else "ray",
            device=recipe.device,
            precision=recipe.precision,
            batch_size=recipe.batch_size,
            workers=given.workers if given else 1,
            classes=recipe.classes.rule if recipe.classes else None,
            classes_match=bool(recipe.classes and recipe.classes.index),
            left_out=self._manifest.left_out,
            max_failures=config.max_failures,
            gone=totals.gone,
        )

    def _remove_orphans(self) -> None:
        """Remove the tars of unfinished commits."""
        attempt = self._attempt
        if TARS in files_of(attempt.output, attempt.config.as_json()).folders:
            removed = remove_orphans(attempt.output)
            if removed:
                attempt.observer.note(f"Removed {counted(removed, 'tar file')} of commits that were cut off.")
