"""Attempt: one execution of a run on its output, from taking the lock to writing ``_SUCCESS``.

Each phase returns the object with which the next one begins, so that no phase can be skipped::

    with attempted(config, observer) as attempt:      # the lock is ours, and the record of earlier runs is read
        checked = attempt.checked(network, given)     # network, machine and output fit together
        listed = checked.listed()                     # the manifest exists (listing.py)
        due = listed.due(given)                       # all checks are passed; the images that are left are known
        working = due.begun()                         # the old _SUCCESS is deleted (working.py)
        working.count(report)                         # for each part that a worker has committed
        summary = working.completed(given)            # index, totals, _SUCCESS; None: some images must be done again
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vbp.errors import UsageError
from vbp.pipeline import prepare
from vbp.pipeline.clearing import forget_listing, holds_run, refuse_others
from vbp.pipeline.config import RunConfig
from vbp.pipeline.failures import failures_as_sentences
from vbp.pipeline.hardware import common_precision, kinds, look, refuse_decoding, refuse_integers, slow_machines
from vbp.pipeline.listing import Checked
from vbp.pipeline.loading import NetworkFacts
from vbp.pipeline.observer import Observer
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.record import Record, open_record
from vbp.storage.ledger.held import HeldFolder
from vbp.storage.ledger.lease import leased

if TYPE_CHECKING:
    from vbp.networks.model import Model
    from vbp.pipeline.resources import Resources


@contextmanager
def attempted(config: RunConfig, observer: Observer) -> Iterator[Attempt]:
    """Hold the output of a run. If a first run is refused, its listing is removed.

    Args:
        config: what to do, its places absolute.
        observer: is told how the run goes.

    Raises:
        UsageError: the output cannot be written; or as for `Attempt`.
    """
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    output = HeldFolder(config.output, config.storage_options, run_id)
    with leased(output, run_id, observer.note):
        is_new, attempt = not holds_run(output), None
        try:
            attempt = Attempt(config, output, observer)
            yield attempt
        except UsageError:
            with failures_as_sentences(before_work=False):
                output.look()  # the cause may be that another attempt has taken over
            if is_new and not (attempt and attempt.has_begun):
                forget_listing(output)
            raise


class Attempt:
    """An attempt that holds its output, with the record of earlier attempts.

    Args:
        config: what to do, its places absolute.
        output: OUTPUT, held.
        observer: is told how the run goes.

    Attributes:
        run_id: name of the attempt in the lease, the parts and the index.
        record: the record of earlier attempts.
        has_begun: whether the work has begun, after which nothing is refused.

    Raises:
        UsageError: folders of results hold other people's files; or as for `open_record`.
    """

    def __init__(self, config: RunConfig, output: HeldFolder, observer: Observer) -> None:
        self.config, self.output, self.observer = config, output, observer
        self.run_id = output.attempt
        self.has_begun = False
        is_new = not holds_run(output)
        self.record: Record = open_record(config, output)
        if is_new:
            refuse_others(output)

    def checked(self, network: NetworkFacts, given: Resources | None, load: Callable[[], Model]) -> Checked:
        """Refuse a run that cannot be carried out; nothing is removed or written.

        Args:
            network: facts about the network.
            given: resources from Ray; None for work in this process.
            load: loads the network, for the calibration of int8.

        Raises:
            UsageError: the output holds results of another configuration, or the classes cannot be read.
        """
        config, facts = self.config, self.record.facts
        device = prepare.choose_device(config) if given is None else "cuda" if given.num_gpus else "cpu"
        found = given.hardware if given else (look(device),)
        precision = common_precision(config.precision, facts.get("precision"), found)
        recipe = Recipe(
            config=config,
            run_id=self.run_id,
            device=device,
            precision=precision,
            scales=facts.get("scales") if precision == "int8" else None,
            processors=tuple(kinds(found)),
            batch_size=prepare.choose_batch_size(config, device, facts),
            weights_sha256=network.sha256,
            contents=prepare.contents_sha256(config, network),
            code=network.code,
            preprocessing=config.preprocessing(network.preprocessing),
        )
        self.record.refuse_other(recipe)
        refuse_integers(precision, found)
        refuse_decoding(config.decode, found)
        if (slow := slow_machines(precision, found)) is not None:
            self.observer.note(slow)
        prepare.declared_classes(config)  # a file that cannot be read is refused before the listing
        return Checked(self, recipe, network, load)
