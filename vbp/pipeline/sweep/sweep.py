"""The sweep, sweep(Sweep) -> SweepSummary: many runs by one set of workers, and one index of all their rows.

::

    OUTPUT/runs/<name>/        the output of each run, as ``vbp explain`` leaves it
    OUTPUT/index/              the rows of all runs; first ``run`` and a column ``run_<name>`` for each varied setting
    OUTPUT/_run/sweep.json     the runs, and the time and cost so far
    OUTPUT/_SUCCESS            written last, only if every run has its own; ``index/`` counts only while it exists

The runs are driven together (`vbp.pipeline.job`).  A sweep adds an output around theirs with a lock of its own,
a budget, and the index of all rows.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vbp.errors import InterruptedRunError
from vbp.pipeline import job
from vbp.pipeline.failures import failures_as_sentences
from vbp.pipeline.observer import Observer
from vbp.pipeline.sweep.sweepfile import Budget, Sweep, SweepRun
from vbp.storage.files import Folder
from vbp.storage.ledger.combined import RUN, combine
from vbp.storage.ledger.held import HeldFolder
from vbp.storage.ledger.lease import leased
from vbp.storage.record import (
    SWEEP,
    is_complete,
    load_promise,
    load_record,
    mark_complete,
    mark_incomplete,
    promises_of,
    save_record,
)

SAVED_SECONDS = 10.0
"""Seconds between two writes of the time that is spent."""


@dataclass(frozen=True, kw_only=True)
class Outcome(job.Outcome):
    """How one run of a sweep ended."""

    run: SweepRun


@dataclass(frozen=True, kw_only=True)
class SweepSummary:
    """How a sweep ended."""

    output: str
    """Absolute URL or path."""
    outcomes: Sequence[Outcome]
    """The runs in the order of the sweep file."""
    hours: float
    """Working hours of all attempts."""
    cost: float | None
    """Cost of these hours; None if the price is unknown."""

    @property
    def exit_code(self) -> int:
        """1 if a run crashed, else 4 if one is not completed, else 3 if too many images of one failed, else 0."""
        codes = {outcome.exit_code for outcome in self.outcomes}
        return next((code for code in (1, 4, 3) if code in codes), 0)

    @property
    def is_combined(self) -> bool:
        """Whether the index of all runs exists, because each run is completed."""
        return self.exit_code in (0, 3)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        runs = [
            {
                "run": outcome.run.name,
                **{f"{RUN}_{name}": value for name, value in outcome.run.varied.items()},
                "exit_code": outcome.exit_code,
                "reason": outcome.reason,
                "summary": outcome.summary and outcome.summary.as_json(),
            }
            for outcome in self.outcomes
        ]
        return {"output": self.output, "hours": round(self.hours, 4), "cost": self.cost, "runs": runs}


def sweep(asked: Sweep, observer: Observer | None = None) -> SweepSummary:
    """Do all runs and combine their indexes; a repeated call continues where the last one stopped.

    Args:
        asked: the sweep.
        observer: receives the progress of all runs together.

    Raises:
        UsageError: one of the runs cannot be carried out; no image of any run was computed.
        InterruptedRunError: no run can go on; the same command continues.
    """
    return _Sweep(asked, observer or Observer()).sweep()


class _Sweep:
    def __init__(self, asked: Sweep, observer: Observer) -> None:
        self._asked, self._observer = asked, observer
        self._id = f"sweep-{uuid.uuid4().hex[:8]}"
        self._output = HeldFolder(asked.output, asked.storage_options, self._id)
        self._outcomes: Mapping[str, job.Outcome] = {}

    def sweep(self) -> SweepSummary:
        """See `sweep`."""
        found = job.look({run.name: run.config for run in self._asked.runs}, self._observer)
        self._configs, self._outcomes = found.configs, found.outcomes
        with failures_as_sentences(before_work=True):
            self._spent = _Spent(self._asked.budget, self._output)
            if self._is_combined():
                return self._nothing_left()
        with ExitStack() as stack:
            with failures_as_sentences(before_work=True):
                stack.enter_context(leased(self._output, self._id, self._observer.note))
            prepared = stack.enter_context(found.prepared())
            self._outcomes = prepared.outcomes
            with failures_as_sentences(before_work=True):
                if self._is_combined():
                    return self._nothing_left()
            if prepared.images_left and (spent := self._spent.up()):
                raise InterruptedRunError(spent)
            with failures_as_sentences(before_work=False):
                self._work(prepared)
                self._combine()
        return self._summary()

    def _nothing_left(self) -> SweepSummary:
        self._observer.note(job.NOTHING_LEFT)
        return self._summary()

    def _summary(self) -> SweepSummary:
        ended = [(run, self._outcomes[run.name]) for run in self._asked.runs]
        return SweepSummary(
            output=self._output.url,
            outcomes=[Outcome(run=run, summary=outcome.summary, error=outcome.error) for run, outcome in ended],
            hours=self._spent.hours,
            cost=self._spent.cost,
        )

    def _work(self, prepared: job.Prepared) -> None:
        mark_incomplete(self._output)
        self._spent.save({run.name: self._configs[run.name].as_json() for run in self._asked.runs})
        try:
            self._outcomes = prepared.work(self._spent.up)
        finally:
            self._spent.save()

    def _combine(self) -> None:
        """Make the index of all runs once each has an index, and ``_SUCCESS`` once each has a ``_SUCCESS``."""
        summary = self._summary()
        if not summary.is_combined:
            return
        promises = promises_of(self._output, self._configs)
        indexes = (
            (Folder(config.output, config.storage_options), _constants(run))
            for run in self._asked.runs
            for config in [self._configs[run.name]]
        )
        combined = combine(self._output, indexes, columns_of(self._asked))
        if summary.exit_code == 0:
            mark_complete(self._output, self._id, combined.files, {"rows": combined.rows}, promises)
            self._output.look()

    def _is_combined(self) -> bool:
        """Whether the index of all runs was made from their present results."""
        if len(self._outcomes) < len(self._asked.runs):
            return False
        promise = load_promise(self._output) or {}
        return promise.get("runs", {}).keys() == self._configs.keys() and is_complete(self._output, SWEEP)


def hours_spent(asked: Sweep) -> float:
    """Working hours of earlier attempts at a sweep."""
    record = load_record(Folder(asked.output, asked.storage_options), SWEEP) or {}
    return float(record.get("seconds", 0.0)) / 3600


class _Spent:
    """The working time of all attempts, on record and compared with the budget."""

    def __init__(self, budget: Budget, output: HeldFolder) -> None:
        self._budget, self._output = budget, output
        self._record = load_record(output, SWEEP) or {}
        self._before = float(self._record.get("seconds", 0.0))
        self._started: float | None = None
        self._saved = 0.0

    @property
    def hours(self) -> float:
        """Working hours of all attempts so far."""
        own = 0.0 if self._started is None else time.monotonic() - self._started
        return (self._before + own) / 3600

    @property
    def cost(self) -> float | None:
        """Cost of these hours; None if the price is unknown."""
        price = self._budget.price_per_hour
        return None if price is None else self.hours * price

    def up(self) -> str | None:
        """Why the work must stop if the budget is spent, else None; also records the time at intervals."""
        if self._started is not None and time.monotonic() - self._saved >= SAVED_SECONDS:
            self.save()
        limit = self._budget.hours
        if limit is None or self.hours < limit:
            return None
        by_hours = limit == self._budget.max_hours
        name, value = ("max_hours", self._budget.max_hours) if by_hours else ("max_cost", self._budget.max_cost)
        return (
            f"budget.{name} (={value:g}) is spent, after {self.hours:.2f} hours of work in all; what was finished "
            "is kept. Raise it, and run the same command again to continue."
        )

    def save(self, runs: Mapping[str, Any] | None = None) -> None:
        """Record the time so far, and the runs; the clock starts with the first call."""
        if self._started is None:
            self._started = time.monotonic()
        if runs is not None:
            self._record["runs"] = runs
        self._record |= {"attempt": self._output.attempt, "seconds": round(self.hours * 3600, 1)}
        save_record(self._output, self._record, SWEEP)
        self._saved = time.monotonic()


def columns_of(asked: Sweep) -> pa.Schema:
    """The first columns of the combined index: the run, and each varied setting, as text if its types differ."""
    fields = [pa.field(RUN, pa.string(), nullable=False)]
    for name in dict.fromkeys(name for run in asked.runs for name in run.varied):
        kinds = {type(run.varied[name]) for run in asked.runs}
        fields.append(pa.field(f"{RUN}_{name}", _ARROW[kinds.pop()] if len(kinds) == 1 else pa.string()))
    return pa.schema(fields)


_ARROW = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def _constants(run: SweepRun) -> dict[str, Any]:
    return {RUN: run.name} | {f"{RUN}_{name}": value for name, value in run.varied.items()}
