"""The main job, run(RunConfig) -> Summary: check, list, resume, execute, commit."""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vbp.errors import InterruptedRunError, StorageError, UsageError, VBPError
from vbp.pipeline import prepare
from vbp.pipeline.config import RunConfig
from vbp.pipeline.layouts import INDEXED
from vbp.pipeline.observer import Observer
from vbp.pipeline.preflight import preflight, preflight_on_a_worker
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.record import Record, clear
from vbp.pipeline.summary import Summary
from vbp.storage import index
from vbp.storage.files import Folder
from vbp.storage.lease import Holder, Lease, check
from vbp.storage.manifest import Manifest, ManifestRow, write_manifest
from vbp.storage.refresh import refresh_manifest
from vbp.storage.shards import remove_orphans

if TYPE_CHECKING:
    from vbp.pipeline.plan import Resources
    from vbp.saliency.models import Model

LOCAL_IMAGES = 500
"""``--runner auto`` stays in this process up to here: Ray takes 10 s to start, so many images about a minute."""

NOTHING_LEFT = "Nothing left to do: every image has its row."


def run(config: RunConfig, observer: Observer | None = None) -> Summary:
    """Explain every image of an input and leave masks, overlays and an index behind.

    Args:
        config: what to do.
        observer: is told how the run goes.

    Returns:
        Totals over all images listed, whichever run computed them.

    Raises:
        UsageError: the request cannot be carried out; nothing was computed.
        InterruptedRunError: a store stopped answering, or another run took the output; run again to continue.
    """
    observer = observer or Observer()
    config = prepare.absolute(config)
    prepare.check_input(config)
    finished = None
    with suppress(UsageError, StorageError, OSError):  # told below, where it is looked at again
        finished = _finished_earlier(config)
    if finished is not None:
        observer.note(NOTHING_LEFT)
        return finished
    model = prepare.load_network(config)
    output = Folder(config.output, config.storage_options)
    preflight(config.input, config.output, config.storage_options, "from this process")
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        stack.enter_context(_leased(output, run_id, observer))
        with _failures_as_sentences(before_work=True):
            # nothing is removed or written before the manifest: what is refused leaves the output as it was
            record = open_record(config, output)
            given = _connect(config, stack, observer) if _is_surely_for_ray(config) else None
            recipe = _recipe(config, model, run_id, record, given)
            record.refuse_other(recipe)
            names = prepare.class_names(config, model)
            manifest = _list(recipe, record, output, observer)
            images = min(manifest.images, config.limit or manifest.images)
            if given is None and config.runner == "auto" and images > LOCAL_IMAGES:
                given = _connect(config, stack, observer)
            recipe = _for_runner(recipe, model, given)
            recipe = dataclasses.replace(recipe, classes=prepare.choose_classes(config, model, names, manifest))
            record.refuse_other_classes(recipe)
            pending = list(index.pending_shards(output, manifest, config.retry_failed, config.limit))
            if not pending and (finished := record.finished(images, config)):
                observer.note(NOTHING_LEFT)
                return finished
        with _failures_as_sentences(before_work=False):
            record.begin(recipe)
            observer.note(f"Running {given} on Ray." if given else "Running in this process (--runner ray for Ray).")
            observer.started(images, images - sum(shard.images for shard in pending))
            spent, totals = _until_complete(recipe, output, manifest, pending, given, observer)
            summary = _summarise(recipe, output, totals, spent, given)
            check(output, run_id)
            _remove_orphans(config, output, observer)
            record.end(summary)
    return summary


def _finished_earlier(config: RunConfig) -> Summary | None:
    """The summary of a finished run of `config`, told by its output and the weights' bytes: torch takes 10 s to load.

    None also where a closer look is needed: named weights are known by loading them.
    """
    if config.resume_mode != "resume" or config.refresh or config.weights in prepare.NAMED_WEIGHTS:
        return None
    output = Folder(config.output, config.storage_options)
    record = open_record(config, output)
    manifest = record.manifest(config.input)
    if manifest is None or _wants_more(config, manifest) or config.device not in ("auto", record.facts.get("device")):
        return None
    finished = record.finished(min(manifest.images, config.limit or manifest.images), config)
    if finished is None or not record.is_of(config, prepare.weights_sha256(config)):
        return None
    pending = index.pending_shards(output, manifest, config.retry_failed, config.limit)
    return finished if next(pending, None) is None else None


def _until_complete(
    recipe: Recipe,
    output: Folder,
    manifest: Manifest,
    pending: Sequence[index.PendingShard],
    given: Resources | None,
    observer: Observer,
) -> tuple[Mapping[str, float], index.Totals]:
    """Work until every image has a row in the index: once, but for rows that got lost, which are made again.

    Rows are lost where a part of the ledger is damaged, or where Ray repeats a task that was half done already.

    Raises:
        InterruptedRunError: images are without a row, and working on them did not change that.
    """
    spent: dict[str, float] = defaultdict(float)
    missing = None
    while True:
        started = time.perf_counter()
        _execute(recipe, [shard.shard for shard in pending], given, observer, spent)
        spent["wall"] += time.perf_counter() - started
        check(output, recipe.run_id)
        totals = index.compact(output, manifest, limit=recipe.config.limit)
        for path in totals.damaged:
            observer.note(f"{output.uri(path)} is damaged and was removed; its images are done again.")
        if not totals.missing:
            return spent, totals
        if totals.missing == missing:
            raise InterruptedRunError(
                f"{missing} of {totals.images} images have no row in {output.uri('index')}, also after a second try; "
                "run the same command again."
            )
        missing = totals.missing
        pending = list(index.pending_shards(output, manifest, limit=recipe.config.limit))


@contextmanager
def _failures_as_sentences(*, before_work: bool) -> Iterator[None]:
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


@contextmanager
def _leased(output: Folder, run_id: str, observer: Observer) -> Iterator[None]:
    """Hold the output for the time of the run.

    Raises:
        UsageError: it cannot be written.
    """
    told: list[str] = []

    def waiting(holder: Holder | None, seconds: float) -> None:
        if not told:
            told.append(str(holder))
            observer.note(f"Waiting for {holder or 'another run'}; if it is gone, taking over in {seconds:.0f} s.")

    lease = Lease(output, run_id)
    try:
        lease.acquire(waiting)
    except StorageError as error:
        raise UsageError(f"OUTPUT cannot be written: {error}") from error
    try:
        yield
    finally:
        lease.release()


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


def _list(recipe: Recipe, record: Record, output: Folder, observer: Observer) -> Manifest:
    """The manifest: read where there is one of this input, else made; brought up to date where that is wanted."""
    config = recipe.config
    manifest = record.manifest(config.input)
    if manifest is None:
        shard_size, rows = prepare.choose_shard_size(config, prepare.list_input(config, observer.listed))
        if config.resume_mode == "overwrite":
            clear(output)
        record.begin_listing(config)
        return write_manifest(output, rows, shard_size, config.limit, input=config.input)
    if not config.refresh and not _wants_more(config, manifest):
        return manifest

    def forget(shard: int, rows: Mapping[int, ManifestRow]) -> None:
        index.forget(output, shard, rows)
        # what comes instead may be an error row or one without a mask, and leave these behind
        for row in rows.values():
            for path in recipe.files_of(row.key):
                output.delete(path)

    manifest, changes = refresh_manifest(
        output,
        manifest,
        prepare.list_input(config, observer.listed),
        config.limit,
        forget=forget if config.refresh else None,
        before_change=lambda: record.begin_listing(config),
    )
    if config.refresh:
        gone = f", {changes.gone} gone (their rows stay)" if changes.gone else ""
        observer.note(f"Since the last listing: {changes.new} images are new, {changes.changed} changed{gone}.")
    return manifest


def _wants_more(config: RunConfig, manifest: Manifest) -> bool:
    """Whether the listing was cut at a limit that is now larger."""
    return not manifest.complete and (config.limit is None or config.limit > manifest.images)


def _is_surely_for_ray(config: RunConfig) -> bool:
    """Whether Ray is needed whatever the number of images."""
    return config.runner == "ray" or (
        config.runner == "auto" and ("://" in config.input or "RAY_ADDRESS" in os.environ)
    )


def _connect(config: RunConfig, stack: ExitStack, observer: Observer) -> Resources:
    """Start or join Ray and divide its resources."""
    from vbp.pipeline.cluster import connected

    observer.note("Starting Ray.")
    stack.enter_context(connected())
    preflight_on_a_worker(config.input, config.output, config.storage_options)
    from vbp.pipeline.plan import resources

    return resources(config.device, config.workers)


def _recipe(config: RunConfig, model: Model, run_id: str, record: Record, given: Resources | None) -> Recipe:
    if given is None:
        device = prepare.choose_device(config)
    else:
        device = "cuda" if given.num_gpus else "cpu"
    recipe = Recipe(
        config=config,
        run_id=run_id,
        device=device,
        precision=prepare.choose_precision(config, device, record.facts),
        batch_size=prepare.choose_batch_size(config, device, record.facts),
        weights_sha256=model.sha256,
    )
    return _for_runner(recipe, model, given)


def _for_runner(recipe: Recipe, model: Model, given: Resources | None) -> Recipe:
    """The loaded network is for this process alone; Ray's workers load their own."""
    if given is None:
        return dataclasses.replace(recipe, network=model, threads=0)
    return dataclasses.replace(recipe, network=None, threads=given.threads)


def _execute(
    recipe: Recipe, shards: Sequence[int], given: Resources | None, observer: Observer, spent: dict[str, float]
) -> None:
    """Work on `shards`; adds the seconds of each stage and the number of ``images`` to `spent`."""
    for report in _reports(recipe, shards, given):
        ok, error = int(report["ok"]), int(report["error"])
        spent["images"] += ok + error
        for name, value in report.items():
            if name.startswith("seconds_"):
                spent[name.removeprefix("seconds_")] += float(value)
        observer.wrote(ok, error)


def _reports(recipe: Recipe, shards: Sequence[int], given: Resources | None) -> Iterable[dict[str, Any]]:
    if not shards:
        return ()
    if given is None:
        from vbp.pipeline.local import reports

        return reports(recipe, shards)
    return _ray_reports(recipe, shards, given)


def _ray_reports(recipe: Recipe, shards: Sequence[int], given: Resources) -> Iterator[dict[str, Any]]:
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    from vbp.pipeline import plan

    try:
        yield from plan.plan(recipe, shards, given).iter_rows()
    except RayTaskError as error:
        raise _cause(error) from error
    except GetTimeoutError as error:
        raise InterruptedRunError(
            f"The workers did not all start within {plan.START_SECONDS} s: {plan.shortage(given)}. Free some, add "
            "nodes, or ask for fewer --workers, and run the same command again."
        ) from error
    except ExecutionTimeoutError as error:
        raise InterruptedRunError(
            f"Nothing was finished for {plan.IDLE_SECONDS} s: {plan.shortage(given)}. If that is enough, a worker "
            "hangs or dies again and again, and Ray's logs say more. Run the same command again to continue."
        ) from error
    except RayError as error:
        raise InterruptedRunError(
            f"Ray could not go on: {str(error).splitlines()[0]} What was finished is kept; run the same command again."
        ) from error


def _cause(error: Exception) -> Exception:
    """Our own exception, freed of Ray's wrapper and of the advice that Ray adds to its message; else `error`."""
    cause: object = getattr(error, "cause", None)
    if not isinstance(cause, (VBPError, OSError)):
        return error
    return type(cause)(str(cause).partition("\nFailed to apply UDF transform")[0])


def _remove_orphans(config: RunConfig, output: Folder, observer: Observer) -> None:
    """Tars of commits that were cut off; without masks and overlays no row tells which those are."""
    if config.layout == "webdataset" and set(INDEXED) & set(config.outputs):
        removed = remove_orphans(output)
        if removed:
            observer.note(f"Removed {removed} tar file(s) of commits that were cut off.")


def _summarise(
    recipe: Recipe,
    output: Folder,
    totals: index.Totals,
    spent: Mapping[str, float],
    given: Resources | None,
) -> Summary:
    return Summary(
        run_id=recipe.run_id,
        output=output.url,
        images=totals.images,
        ok=totals.ok,
        error=totals.error,
        reasons=totals.by_reason,
        computed=int(spent.get("images", 0)),
        failures_allowed=recipe.config.failures_allowed(totals.images),
        seconds=spent["wall"],
        stage_seconds={name: round(value, 3) for name, value in spent.items() if name not in ("images", "wall")},
        runner="local" if given is None else "ray",
        device=recipe.device,
        precision=recipe.precision,
        batch_size=recipe.batch_size,
        workers=given.workers if given else 1,
        classes=recipe.classes.rule if recipe.classes else None,
    )
