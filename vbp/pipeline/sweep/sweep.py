"""The sweep, sweep(Sweep) -> SweepSummary: many runs by one set of workers, and one index of all their rows.

::

    OUTPUT/runs/<name>/        the output of each run, as ``vbp explain`` leaves it
    OUTPUT/index/              the rows of all runs, led by ``run`` and a column ``run_<what>`` for all that varies
    OUTPUT/_run/sweep.json     the runs and what was spent on them
    OUTPUT/_SUCCESS            written last, only when every run has its own; ``index/`` is promised while it exists

Whatever could refuse a run is looked at for all runs before one begins.  Then their shards, those of one network
after the other, are given to the same workers; each run is completed as soon as its last image has a row, and one
that fails leaves the others alone.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vbp.errors import InterruptedRunError, UsageError, VBPError
from vbp.pipeline import job, prepare
from vbp.pipeline.attempt import Attempt, failures_as_sentences, leased
from vbp.pipeline.config import RunConfig
from vbp.pipeline.observer import Observer
from vbp.pipeline.preflight import preflight
from vbp.pipeline.shared import Networks, Recipes, RunFailedError, network_key, shape, unit
from vbp.pipeline.summary import Summary
from vbp.pipeline.sweep.sweepfile import Budget, Sweep, SweepRun
from vbp.storage.files import Folder
from vbp.storage.ledger.combined import RUN, combine
from vbp.storage.ledger.held import HeldFolder
from vbp.storage.manifest.manifest import Manifest
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

if TYPE_CHECKING:
    from vbp.pipeline.resources import Resources

SAVED_SECONDS = 10.0
"""Between two times that the spent part of the budget is put down."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one run of a sweep ended."""

    run: SweepRun
    summary: Summary | None = None
    """None where it did not come to its end."""
    reason: str = ""
    """Why not."""
    is_crash: bool = False
    """Whether that is none of the foreseen reasons."""

    @property
    def exit_code(self) -> int:
        """As ``vbp explain`` would have ended."""
        if self.summary is not None:
            return self.summary.exit_code
        return 1 if self.is_crash else 4


@dataclass(frozen=True, kw_only=True)
class SweepSummary:
    """How a sweep ended."""

    output: str
    """Absolute URL or path."""
    outcomes: Sequence[Outcome]
    """In the order of the sweep file."""
    hours: float
    """That all attempts have worked."""
    cost: float | None
    """Of these hours, where the price is known."""

    @property
    def exit_code(self) -> int:
        """1 where a run crashed, else 4 where one is not at its end, else 3 where too many of its images failed."""
        codes = {outcome.exit_code for outcome in self.outcomes}
        return next((code for code in (1, 4, 3) if code in codes), 0)

    @property
    def is_combined(self) -> bool:
        """Whether the index of all runs is there: each is at its end."""
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
    """Do all runs and combine their indexes; done before, or in part, it goes on from there.

    Args:
        asked: the runs.
        observer: is told how it goes, of all runs together.

    Raises:
        UsageError: one of the runs cannot be carried out; no image of any was computed.
        InterruptedRunError: no run can go on; the same command continues.
    """
    return _Sweep(asked, observer or Observer()).sweep()


class _Working:
    """A run at work."""

    def __init__(self, run: SweepRun, config: RunConfig) -> None:
        self.run, self.attempt, self.stack = run, Attempt(config), ExitStack()
        self.left = 0
        """Images that have not been reported yet."""

    def expect(self) -> None:
        """The images that are pending will be reported."""
        self.left = self.attempt.left


class _Sweep:
    def __init__(self, asked: Sweep, observer: Observer) -> None:
        self._asked, self._observer = asked, observer
        self._id = f"sweep-{uuid.uuid4().hex[:8]}"
        self._output = HeldFolder(asked.output, asked.storage_options, self._id)
        self._configs = {run.name: prepare.absolute(run.config) for run in asked.runs}
        self._outcomes: dict[str, Outcome] = {}
        self._networks = Networks()
        self._since = time.perf_counter()

    def sweep(self) -> SweepSummary:
        """See `sweep`."""
        with failures_as_sentences(before_work=True):
            self._look_back()
            if self._is_combined():
                return self._nothing_left()
            for config in {config.input: config for config in self._configs.values()}.values():
                preflight(config.input, self._output.url, config.storage_options, "from this process")
        with ExitStack() as stack:
            stack.enter_context(leased(self._output, self._id, self._observer))
            with failures_as_sentences(before_work=True):
                working, given = self._prepare(stack)
                if self._is_combined():
                    return self._nothing_left()
                if any(each.left for each in working):
                    self._spent.check()
            with failures_as_sentences(before_work=False):
                mark_incomplete(self._output)
                self._spent.save({run.name: self._configs[run.name].as_json() for run in self._asked.runs})
                try:
                    self._work(working, given)
                finally:
                    self._spent.save()
                self._combine()
        return self._summary()

    def _nothing_left(self) -> SweepSummary:
        self._observer.note(job.NOTHING_LEFT)
        return self._summary()

    def _summary(self) -> SweepSummary:
        return SweepSummary(
            output=self._output.url,
            outcomes=[self._outcomes[run.name] for run in self._asked.runs],
            hours=self._spent.hours,
            cost=self._spent.cost,
        )

    # Before any work

    def _look_back(self) -> None:
        """What earlier sweeps have finished and spent, as far as a quick look tells."""
        self._spent = _Spent(self._asked.budget, self._output)
        digests: dict[str, str] = {}
        for run in self._asked.runs:
            config = self._configs[run.name]
            with _named(run):
                prepare.check_input(config)
                prepare.check_output(config)
            finished = job.finished_earlier(config, digests)
            if finished is not None:
                self._outcomes[run.name] = Outcome(run=run, summary=finished)

    def _prepare(self, stack: ExitStack) -> tuple[list[_Working], Resources | None]:
        """All runs that have work left, listed and found possible; those of one network stand together."""
        runs = [run for run in self._asked.runs if run.name not in self._outcomes]
        working = [_Working(run, self._configs[run.name]) for run in _by_network(runs)]
        if not working:
            return [], None
        for each in working:
            stack.enter_context(each.stack)
            with _named(each.run):
                each.stack.enter_context(each.attempt.leased(self._observer))
                each.attempt.open()
        common = self._configs[runs[0].name]
        given = None
        if any(job.is_for_ray(each.attempt.config) for each in working):
            given = self._connect(common, stack)
        told: dict[str, None] = {}
        for each in working:
            with _named(each.run):
                with prepare.weights_as_usage(each.attempt.config):
                    model = self._networks.load(each.attempt.config)
                told = told | dict.fromkeys(model.notes)
                prepare.check_network(each.attempt.config, model)
                load = partial(self._networks.load, each.attempt.config)
                each.attempt.check(model, given, self._observer, load)
        for note in told:
            self._observer.note(note)
        self._list(working)
        images = sum(each.attempt.images for each in working)
        if given is None and job.is_for_ray(common, images):
            given = self._connect(common, stack)
        for each in working:
            with _named(each.run):
                each.attempt.settle(given)
                each.expect()
            if finished := each.attempt.finished():
                self._close(each, Outcome(run=each.run, summary=finished))
                continue
            with _named(each.run):
                each.attempt.calibrate(self._observer)
        return [each for each in working if each.run.name not in self._outcomes], given

    def _connect(self, config: RunConfig, stack: ExitStack) -> Resources:
        from vbp.pipeline.on_ray.preflight import preflight_on_a_worker

        given = job.connect(config, stack, self._observer)
        for other in {each.input for each in self._configs.values()} - {config.input}:
            preflight_on_a_worker(other, self._output.url, config.storage_options)
        return given

    def _list(self, working: Sequence[_Working]) -> None:
        """Each input is listed once, so that its runs see the same images."""
        listed: dict[tuple[str, int | None, tuple[str, ...] | None], Manifest] = {}
        for name, outcome in self._outcomes.items():
            config = self._configs[name]
            manifest = Manifest.load(Folder(config.output, config.storage_options)) if outcome.summary else None
            if manifest is not None:
                listed.setdefault((config.input, config.limit, config.suffixes), manifest)
        for each in working:
            config = each.attempt.config
            wanted = (config.input, config.limit, config.suffixes)
            known = listed.get(wanted)
            with _named(each.run):
                each.attempt.list_images(self._observer, known if known and len(known.listings) == 1 else None)
            listed.setdefault(wanted, each.attempt.manifest)

    # Work

    def _work(self, working: list[_Working], given: Resources | None) -> None:
        """Work until each run has come to its end, one way or the other."""
        if not working:
            return
        for each in working:
            each.attempt.begin(self._observer)
        where = f"on Ray: {given}" if given else "in this process (runner: ray for Ray)"
        computing = " or ".join(sorted({each.attempt.recipe.computing for each in working}))
        self._observer.note(f"Running {where}; {computing}.")
        images = sum(each.attempt.images for each in working)
        finished = sum(outcome.summary.images for outcome in self._outcomes.values() if outcome.summary)
        self._observer.started(images + finished, images + finished - sum(each.left for each in working))
        self._since = time.perf_counter()
        while left := [each for each in working if each.run.name not in self._outcomes]:
            try:
                self._round(_of_one_shape(left) if given and given.num_gpus else left, given)
            except _BudgetSpentError as error:
                cut_off = [each for each in left if each.run.name not in self._outcomes]
                for each in cut_off:
                    self._close(each, Outcome(run=each.run, reason=str(error)))
                if cut_off:
                    self._observer.note(str(error))

    def _round(self, runs: Sequence[_Working], given: Resources | None) -> None:
        """Work on all that is pending in `runs`, up to the failure of one."""
        recipes = Recipes([each.attempt.recipe for each in runs], self._networks)
        units = [unit(number, shard.shard) for number, each in enumerate(runs) for shard in each.attempt.pending]
        at_work = dict(enumerate(runs))
        for number, each in enumerate(runs):
            if not each.left:
                self._complete(at_work.pop(number), given)
        try:
            with closing(job.reports(recipes, units, given, sum(each.left for each in runs))) as reports:
                for report in reports:
                    number = int(report["run"])
                    ok, error = runs[number].attempt.count(report)
                    runs[number].left -= ok + error
                    self._observer.wrote(ok, error)
                    if runs[number].left <= 0 and number in at_work:
                        self._complete(at_work.pop(number), given)
                    self._spent.check()
        except RunFailedError as failure:
            if (failed := at_work.pop(failure.run, None)) is not None:
                self._end(failed, Outcome(run=failed.run, reason=str(failure), is_crash=failure.is_crash))
            for each in at_work.values():
                each.attempt.look(retry_failed=each.attempt.config.retry_failed)
                each.expect()
            return
        for each in at_work.values():  # fewer rows were reported than expected: where a worker died, some had been made
            self._complete(each, given)

    def _complete(self, each: _Working, given: Resources | None) -> None:
        """The run's index and its promise; where rows are missing, it stays at work for another round."""
        attempt = each.attempt
        attempt.spent["wall"] += time.perf_counter() - self._since
        try:
            totals = attempt.compact(self._observer)
            if totals.missing:
                each.expect()
                return
            self._end(each, Outcome(run=each.run, summary=attempt.end(totals, given, self._observer)))
        except (VBPError, OSError) as error:
            self._end(each, Outcome(run=each.run, reason=str(error)))
        finally:
            self._since = time.perf_counter()

    def _close(self, each: _Working, outcome: Outcome) -> None:
        self._outcomes[each.run.name] = outcome
        each.stack.close()

    def _end(self, each: _Working, outcome: Outcome) -> None:
        self._close(each, outcome)
        told = outcome.reason or "finished" if outcome.exit_code in (0, 1, 4) else "finished, with too many failures"
        self._observer.note(f"{each.run.name}: {told}")

    # After the work

    def _combine(self) -> None:
        """The index of all runs, once each has one; the promise, once each has made its own."""
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
        """Whether the index of all runs is of the very results that are there now."""
        if len(self._outcomes) < len(self._asked.runs):
            return False
        promise = load_promise(self._output) or {}
        return promise.get("runs", {}).keys() == self._configs.keys() and is_complete(self._output, SWEEP)


def hours_spent(asked: Sweep) -> float:
    """That earlier attempts at a sweep have worked."""
    record = load_record(Folder(asked.output, asked.storage_options), SWEEP) or {}
    return float(record.get("seconds", 0.0)) / 3600


class _BudgetSpentError(InterruptedRunError):
    """The budget does not reach further."""


class _Spent:
    """The time that all attempts have worked, on record, against the budget."""

    def __init__(self, budget: Budget, output: HeldFolder) -> None:
        self._budget, self._output = budget, output
        self._record = load_record(output, SWEEP) or {}
        self._before = float(self._record.get("seconds", 0.0))
        self._started: float | None = None
        self._saved = 0.0

    @property
    def hours(self) -> float:
        """Of all attempts so far."""
        own = 0.0 if self._started is None else time.monotonic() - self._started
        return (self._before + own) / 3600

    @property
    def cost(self) -> float | None:
        """Of these hours, where the price is known."""
        price = self._budget.price_per_hour
        return None if price is None else self.hours * price

    def check(self) -> None:
        """Stop where the budget is spent; also puts down what is, now and then.

        Raises:
            InterruptedRunError: it is.
        """
        if self._started is not None and time.monotonic() - self._saved >= SAVED_SECONDS:
            self.save()
        limit = self._budget.hours
        if limit is not None and self.hours >= limit:
            by_hours = limit == self._budget.max_hours
            name, value = ("max_hours", self._budget.max_hours) if by_hours else ("max_cost", self._budget.max_cost)
            raise _BudgetSpentError(
                f"budget.{name} (={value:g}) is spent, after {self.hours:.2f} hours of work in all; what was finished "
                "is kept. Raise it, and run the same command again to continue."
            )

    def save(self, runs: Mapping[str, Any] | None = None) -> None:
        """Put down what is spent, and the runs; work begins with the first call."""
        if self._started is None:
            self._started = time.monotonic()
        if runs is not None:
            self._record["runs"] = runs
        self._record |= {"attempt": self._output.attempt, "seconds": round(self.hours * 3600, 1)}
        save_record(self._output, self._record, SWEEP)
        self._saved = time.monotonic()


@contextmanager
def _named(run: SweepRun) -> Iterator[None]:
    """Refusals say which run they are of."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"run {run.name}: {error}") from error


def _by_network(runs: Sequence[SweepRun]) -> list[SweepRun]:
    """Those that share a network stand together, else the order is kept."""
    first: dict[str, int] = {}
    for run in runs:
        first.setdefault(network_key(run.config), len(first))
    return sorted(runs, key=lambda run: first[network_key(run.config)])


def _of_one_shape(working: Sequence[_Working]) -> list[_Working]:
    """Those of the first shape: rows of several runs meet in the blocks between the workers of a GPU."""
    wanted = shape(working[0].attempt.recipe)
    return [each for each in working if shape(each.attempt.recipe) == wanted]


def columns_of(asked: Sweep) -> pa.Schema:
    """What leads the rows of the combined index: the run, and all that varies, as text where types differ."""
    fields = [pa.field(RUN, pa.string(), nullable=False)]
    for name in dict.fromkeys(name for run in asked.runs for name in run.varied):
        kinds = {type(run.varied[name]) for run in asked.runs}
        fields.append(pa.field(f"{RUN}_{name}", _ARROW[kinds.pop()] if len(kinds) == 1 else pa.string()))
    return pa.schema(fields)


_ARROW = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def _constants(run: SweepRun) -> dict[str, Any]:
    return {RUN: run.name} | {f"{RUN}_{name}": value for name, value in run.varied.items()}
