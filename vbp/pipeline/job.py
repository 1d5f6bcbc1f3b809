"""The main job, run(RunConfig) -> Summary: check, list, resume, execute, commit."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from vbp.choices import NAMED_WEIGHTS
from vbp.errors import InterruptedRunError, StorageError, UsageError
from vbp.pipeline import prepare
from vbp.pipeline.attempt import Attempt, failures_as_sentences, open_record, wants_more
from vbp.pipeline.config import RunConfig
from vbp.pipeline.hardware import refuse_missing_gpus
from vbp.pipeline.observer import Observer
from vbp.pipeline.preflight import preflight
from vbp.pipeline.resources import Resources, divide, parse_labels
from vbp.pipeline.summary import Summary
from vbp.storage.files import Folder
from vbp.storage.ledger import index

if TYPE_CHECKING:
    from vbp.pipeline.recipe import Recipe
    from vbp.pipeline.shared import Recipes

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
    prepare.check_output(config)
    finished = finished_earlier(config)
    if finished is not None:
        observer.note(NOTHING_LEFT)
        return finished
    model = prepare.load_network(config)
    for note in model.notes:
        observer.note(note)
    preflight(config.input, config.output, config.storage_options, "from this process")
    attempt = Attempt(config)
    with ExitStack() as stack:
        stack.enter_context(attempt.leased(observer))
        with failures_as_sentences(before_work=True):
            attempt.open()
            given = connect(config, stack, observer) if is_for_ray(config) else None
            attempt.check(model, given, observer)
            attempt.list_images(observer)
            if given is None and is_for_ray(config, attempt.images):
                given = connect(config, stack, observer)
            attempt.settle(given, model if given is None else None)
            if finished := attempt.finished():
                observer.note(NOTHING_LEFT)
                return finished
            attempt.calibrate(observer)
        with failures_as_sentences(before_work=False):
            attempt.begin(observer)
            where = f"on Ray: {given}" if given else "in this process (--runner ray for Ray)"
            observer.note(f"Running {where}; {attempt.recipe.computing}.")
            observer.started(attempt.images, attempt.images - attempt.left)
            totals = _until_complete(attempt, given, observer)
            return attempt.end(totals, given, observer)


def finished_earlier(config: RunConfig, digests: dict[str, str] | None = None) -> Summary | None:
    """The summary of a finished run of `config`, told by its output and the weights' bytes: torch takes 10 s to load.

    None also where a closer look is needed: named weights are known by loading them, and what hinders this look is
    told by that one.

    Args:
        config: the run.
        digests: of weights that were read already, by their place; takes that of these.
    """
    with suppress(UsageError, StorageError, OSError):
        return _finished_earlier(config, {} if digests is None else digests)
    return None


def _finished_earlier(config: RunConfig, digests: dict[str, str]) -> Summary | None:
    if config.resume_mode != "resume" or config.refresh or config.weights in NAMED_WEIGHTS:
        return None
    output = Folder(config.output, config.storage_options)
    record = open_record(config, output)
    manifest = record.manifest(config.input)
    if manifest is None or wants_more(config, manifest) or config.device not in ("auto", record.facts.get("device")):
        return None
    finished = record.finished(min(manifest.images, config.limit or manifest.images), config)
    if finished is None:
        return None
    digest = digests[config.weights] = digests.get(config.weights) or prepare.weights_sha256(config)
    if not record.fits(manifest) or not record.is_of(config, digest, prepare.contents_sha256(config)):
        return None
    pending = index.pending_shards(output, manifest, config.retry_failed, config.limit)
    return finished if next(pending, None) is None else None


def _until_complete(attempt: Attempt, given: Resources | None, observer: Observer) -> index.Totals:
    """Work until every image has a row in the index: once, but for rows that got lost, which are made again."""
    while True:
        started = time.perf_counter()
        for report in reports(attempt.recipe, [shard.shard for shard in attempt.pending], given, attempt.left):
            observer.wrote(*attempt.count(report))
        attempt.spent["wall"] += time.perf_counter() - started
        totals = attempt.compact(observer)
        if not totals.missing:
            return totals


def is_for_ray(config: RunConfig, images: int = 0) -> bool:
    """Whether Ray does the work: where it was asked for, is there already, or there is much to do.

    Args:
        config: asks for a runner, or for none.
        images: listed, of all runs together; 0 before the listing, and then Ray may still turn out to be needed.
    """
    if config.runner != "auto":
        return config.runner == "ray"
    if config.device == "mps":
        return False
    return bool(os.environ.get("RAY_ADDRESS")) or images > LOCAL_IMAGES


def connect(config: RunConfig, stack: ExitStack, observer: Observer) -> Resources:
    """Start or join Ray and divide its resources."""
    from vbp.pipeline.on_ray import cluster
    from vbp.pipeline.on_ray.preflight import preflight_on_a_worker, preflight_on_all_nodes

    observer.note("Joining Ray." if os.environ.get("RAY_ADDRESS") else "Starting Ray.")
    try:
        stack.enter_context(cluster.connected())
        given = divide(
            cluster.nodes(),
            config.device,
            config.workers,
            grows=cluster.grows(),
            labels=parse_labels(config.node_labels),
        )
        given = dataclasses.replace(given, hardware=cluster.hardware(given))
        refuse_missing_gpus(given.hardware)
        preflight_on_a_worker(config.input, config.output, config.storage_options)
        preflight_on_all_nodes(config)
    except OSError as error:  # of Ray: what is wrong with a place is a UsageError by now
        raise InterruptedRunError(f"Ray does not work here: {error!r}. Run the same command again.") from error
    return given


def reports(
    recipe: Recipe | Recipes, shards: Sequence[int], given: Resources | None, images: int
) -> Generator[dict[str, Any]]:
    """Work on `shards`, here or on Ray, with so many `images`; one report for each part that was committed."""
    if not shards:
        return
    if given is None:
        from vbp.pipeline import local

        yield from local.reports(recipe, shards)
    else:
        from vbp.pipeline.on_ray import reports as on_ray

        yield from on_ray.reports(recipe, shards, given, images)
