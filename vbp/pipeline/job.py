"""The main job: look, prepare, work, for one run or for several that share workers; a single run is the case of one.

- *Look* at everything that can be checked without the lock: places, runs that are finished already, the networks.
- *Prepare*: take the locks, start Ray if it is needed, list the images.  Every reason to refuse a run is found here,
  for all runs before one begins.
- *Work*: the same workers do the shards of all runs, network by network.  A run is completed as soon as its last image
  has a row; a run that fails does not stop the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from vbp.errors import InterruptedRunError, VBPError
from vbp.pipeline import prepare
from vbp.pipeline.attempt import attempted
from vbp.pipeline.config import RunConfig
from vbp.pipeline.earlier import finished_earlier
from vbp.pipeline.failures import RunFailedError, failures_as_sentences, is_crash, naming, told
from vbp.pipeline.listing import Checked, Listed
from vbp.pipeline.loading import NetworkFacts, Networks, network_key
from vbp.pipeline.observer import Observer
from vbp.pipeline.preflight import preflight
from vbp.pipeline.runner import Runner
from vbp.pipeline.shared import Recipes, shape, unit
from vbp.pipeline.summary import Summary
from vbp.pipeline.working import Due, Working
from vbp.storage.files import Folder
from vbp.storage.manifest.manifest import Manifest
from vbp.storage.spreading import Spread, here

T = TypeVar("T")

NOTHING_LEFT = "Nothing left to do: every image has its row."


def run(config: RunConfig, observer: Observer | None = None) -> Summary:
    """Explain every image of an input and leave masks, overlays and an index behind.

    Args:
        config: what to do.
        observer: receives the run's progress.

    Returns:
        Totals over all listed images, whichever attempt did them.

    Raises:
        UsageError: the run cannot be carried out; nothing was computed.
        InterruptedRunError: a store stopped answering, or another attempt took the output; run again to continue.
    """
    return drive({"": config}, observer or Observer())[""].result()


def drive(runs: Mapping[str, RunConfig], observer: Observer) -> dict[str, Outcome]:
    """Do all runs; a run that fails does not stop the others.

    Args:
        runs: configurations by name, with different outputs and the same runner; a single run has the name ``""``.
        observer: receives the progress of all runs together.

    Returns:
        How each run ended, by name.

    Raises:
        UsageError: one of the runs cannot be carried out; no image of any run was computed.
        InterruptedRunError: no run can go on; the same command continues.
    """
    with look(runs, observer).prepared() as prepared:
        if not prepared.left:
            observer.note(NOTHING_LEFT)
        return prepared.work()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one run ended."""

    summary: Summary | None = None
    """None if the run was not completed."""
    error: Exception | None = None
    """Why the run was not completed; else None."""

    @property
    def reason(self) -> str:
        """A sentence on why the run was not completed; empty if it was."""
        return told(self.error) if self.error else ""

    @property
    def exit_code(self) -> int:
        """The exit code of ``vbp explain`` for this run: 0, 3 or 4; 1 if it crashed."""
        if self.summary is not None:
            return self.summary.exit_code
        return 1 if self.error and is_crash(self.error) else 4

    def result(self) -> Summary:
        """The summary; raises the run's error if there is none."""
        if self.summary is None:
            assert self.error is not None
            with failures_as_sentences(before_work=False):
                raise self.error
        return self.summary


# Look


def look(runs: Mapping[str, RunConfig], observer: Observer) -> Found:
    """Check everything that can be checked without the lock; arguments and errors as for `drive`."""
    with failures_as_sentences(before_work=True):
        configs, digests, outcomes = {}, dict[str, str](), {}
        for name, config in runs.items():
            with naming(name):
                configs[name] = prepare.absolute(config)
                prepare.check_input(configs[name])
                prepare.check_output(configs[name])
            finished = finished_earlier(configs[name], digests)
            if finished is not None:
                outcomes[name] = Outcome(summary=finished)
        left = _by_network({name: config for name, config in configs.items() if name not in outcomes})
        networks = Networks()
        facts = _network_facts(left, networks, observer)
        for config in {config.input: config for config in left.values()}.values():
            preflight(config.input, config.output, config.storage_options, "from this process")
    return Found(configs, outcomes, left, facts, networks, observer)


def _by_network(configs: Mapping[str, RunConfig]) -> dict[str, RunConfig]:
    """The runs, reordered so that those with the same network follow each other."""
    first: dict[str, int] = {}
    for config in configs.values():
        first.setdefault(network_key(config), len(first))
    return dict(sorted(configs.items(), key=lambda item: first[network_key(item[1])]))


def _network_facts(configs: Mapping[str, RunConfig], networks: Networks, observer: Observer) -> dict[str, NetworkFacts]:
    """Load each network once, and try it with the settings of its runs.

    Raises:
        UsageError: a network cannot be loaded, or does not suit a run's settings.
    """
    notes: dict[str, None] = {}
    facts = {}
    for name, config in configs.items():
        with naming(name):
            observer.doing(f"loading {config.model}")
            with prepare.weights_as_usage(config):
                model = networks.load(config)
            prepare.check_network(config, model)
        notes |= dict.fromkeys(model.notes)
        facts[name] = NetworkFacts.of(model)
    for note in notes:
        observer.note(note)
    return facts


# Prepare


@dataclass(frozen=True)
class Found:
    """Runs that passed all checks that need no lock."""

    configs: Mapping[str, RunConfig]
    """Configurations of all runs, with absolute places."""
    outcomes: Mapping[str, Outcome]
    """Summaries of the runs that are finished already."""
    left: Mapping[str, RunConfig]
    """Configurations of the other runs; those with the same network follow each other."""
    facts: Mapping[str, NetworkFacts]
    """Facts about their networks."""
    networks: Networks
    observer: Observer

    @contextmanager
    def prepared(self) -> Iterator[Prepared]:
        """Hold the locks during the context, and list the images of all runs; errors as for `drive`."""
        with ExitStack() as stack:
            with failures_as_sentences(before_work=True):
                prepared = self._prepare(stack)
            yield prepared

    def _prepare(self, stack: ExitStack) -> Prepared:
        runs = [Run(name, config, stack.enter_context(ExitStack())) for name, config in self.left.items()]
        runner = Runner(list(self.left.values()), stack, self.observer)

        def check(run: Run) -> Checked:
            load = partial(self.networks.load, run.config)
            return attempts[run.name].checked(self.facts[run.name], runner.given, load)

        attempts = _of_each(runs, lambda run: run.lock.enter_context(attempted(run.config, self.observer)))
        runner.join()
        checked = _of_each(runs, check)
        listed = self._listed(runs, checked, runner.spread if runner.given else None)
        runner.join(sum(each.images for each in listed.values()))
        self.observer.doing("finding out what is left to do")
        due = _of_each(runs, lambda run: listed[run.name].due(runner.given))
        return Prepared(runs, due, self.outcomes, Workers(runner, self.networks), self.observer)

    def _listed(self, runs: Sequence[Run], checked: Mapping[str, Checked], spread: Spread | None) -> dict[str, Listed]:
        """List each input once, so that all its runs have the same images; by workers where `spread` is given."""
        known: dict[tuple[object, ...], Manifest] = {}

        def add(config: RunConfig, manifest: Manifest | None) -> None:
            if manifest is not None:
                known.setdefault((config.input, config.limit, config.suffixes), manifest)

        def listed(run: Run) -> Listed:
            config = run.config
            before = known.get((config.input, config.limit, config.suffixes))
            found = checked[run.name].listed(before if before and len(before.listings) == 1 else None, spread)
            add(config, found.manifest)
            return found

        for name in self.outcomes if runs else ():
            config = self.configs[name]
            add(config, Manifest.load(Folder(config.output, config.storage_options)))
        return _of_each(runs, listed)


# Work


class Prepared:
    """Runs that passed all checks.

    Attributes:
        outcomes: how runs that have ended did so, by name.
        left: the other runs.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        due: Mapping[str, Due],
        outcomes: Mapping[str, Outcome],
        workers: Workers,
        observer: Observer,
    ) -> None:
        self.outcomes, self._due = dict(outcomes), due
        self._workers, self._observer = workers, observer
        for run in runs:
            if (finished := due[run.name].finished()) is not None:
                run.lock.close()
                self.outcomes[run.name] = Outcome(summary=finished)
        self.left = [run for run in runs if run.name not in self.outcomes]

    @property
    def images_left(self) -> int:
        """Images without a row, in all runs."""
        return sum(self._due[run.name].left for run in self.left)

    def work(self, stop: Callable[[], str | None] = lambda: None) -> dict[str, Outcome]:
        """Work until each run is completed or has failed.

        Args:
            stop: called after each committed part; returns why the work must stop, or None.

        Returns:
            How each run ended, by name, also runs that were finished earlier.

        Raises:
            InterruptedRunError: no run can go on; the same command continues.
        """
        if self.left:
            with failures_as_sentences(before_work=False):
                at_work = [AtWork(run, self._due[run.name].begun()) for run in self.left]
                self._announce(at_work)
                self.outcomes |= _Work(at_work, self._workers, self._observer, stop).outcomes()
        return self.outcomes

    def _announce(self, at_work: Sequence[AtWork]) -> None:
        for remark in dict.fromkeys(self._due[run.name].remark for run in self.left if self._due[run.name].left):
            if remark is not None:
                self._observer.note(remark)
        given, flag = self._workers.runner.given, "--runner" if "" in self._due else "runner:"
        where = f"on Ray: {given}" if given else f"in this process ({flag} ray for Ray)"
        computing = " or ".join(sorted({each.phase.recipe.computing for each in at_work}))
        then = " Each worker loads the network first." if given else ""
        self._observer.note(f"Running {where}; {computing}.{then}")
        finished = sum(outcome.summary.images for outcome in self.outcomes.values() if outcome.summary)
        images = finished + sum(self._due[run.name].images for run in self.left)
        self._observer.started(images, images - self.images_left)


@dataclass(frozen=True)
class Run:
    """A run that was not finished earlier."""

    name: str
    config: RunConfig
    lock: ExitStack
    """Holds the lock of its output; closed when the run has ended."""


@dataclass(frozen=True)
class AtWork:
    """A run that has begun."""

    run: Run
    phase: Working


@dataclass(frozen=True)
class Workers:
    """The workers that all runs share."""

    runner: Runner
    networks: Networks
    """Networks for workers in this process."""


class _Work:
    """Does the runs at work until each has ended."""

    def __init__(
        self, at_work: Sequence[AtWork], workers: Workers, observer: Observer, stop: Callable[[], str | None]
    ) -> None:
        self._at_work, self._workers, self._observer, self._stop = at_work, workers, observer, stop
        self._ended: dict[str, Outcome] = {}
        self._since = time.perf_counter()

    def outcomes(self) -> dict[str, Outcome]:
        """How each run has ended, by name."""
        given = self._workers.runner.given
        while left := self._left(self._at_work):
            self._round(_of_one_shape(left) if given and given.num_gpus else left)
        return self._ended

    def _left(self, at_work: Sequence[AtWork]) -> list[AtWork]:
        return [each for each in at_work if each.run.name not in self._ended]

    def _round(self, at_work: Sequence[AtWork]) -> None:
        """Work on all pending shards of these runs, until one run fails or the work must stop."""
        open_runs = dict(enumerate(at_work))
        failure = self._follow(open_runs)
        if failure is None:  # a worker that died may have committed rows without a report
            for each in self._left(list(open_runs.values())):
                self._complete(each)
            return
        if (failed := open_runs.pop(failure.run, None)) is not None:
            self._fail(failed, failure.original())
        for each in open_runs.values():
            each.phase.look(retry_failed=each.run.config.retry_failed)

    def _follow(self, open_runs: dict[int, AtWork]) -> RunFailedError | None:
        """Count the workers' reports; a run whose last image has a row is completed and taken out of `open_runs`.

        The last run stays, because workers close its last unit only when the next report is requested.
        """
        at_work = list(open_runs.values())
        alone = self._workers.runner.given is None
        recipes = Recipes([replace(each.phase.recipe, alone=alone) for each in at_work], self._workers.networks)
        units = [unit(number, shard.shard) for number, each in open_runs.items() for shard in each.phase.pending]
        images = sum(each.phase.left for each in at_work)
        for number, each in enumerate(at_work):
            if not each.phase.left:
                self._complete(open_runs.pop(number))
        try:
            with closing(self._workers.runner.reports(recipes, units, images)) as reports:
                for report in reports:
                    number = int(report["run"])
                    self._observer.wrote(*at_work[number].phase.count(report))
                    if at_work[number].phase.left <= 0 and number in open_runs and len(open_runs) > 1:
                        self._complete(open_runs.pop(number), here)  # the workers are busy
                    if (reason := self._stop()) is not None:
                        self._stop_all(reason)
                        break
        except RunFailedError as failure:
            return failure
        return None

    def _complete(self, each: AtWork, spread: Spread | None = None) -> None:
        """Make the run's index and ``_SUCCESS``; if rows are missing, the run stays at work for another round."""
        each.phase.seconds += time.perf_counter() - self._since
        try:
            runner = self._workers.runner
            summary = each.phase.completed(runner.given, spread or runner.spread)
        except (VBPError, OSError) as error:
            self._fail(each, error)
        else:
            if summary is not None:
                each.run.lock.close()
                self._end(each, Outcome(summary=summary))
        self._since = time.perf_counter()

    def _fail(self, each: AtWork, error: Exception) -> None:
        try:
            with each.run.lock:  # the lock's context handles the error
                raise error
        except Exception as last:
            self._end(each, Outcome(error=last))

    def _end(self, each: AtWork, outcome: Outcome) -> None:
        self._ended[each.run.name] = outcome
        if each.run.name:
            finished = "finished, with too many failures" if outcome.exit_code == 3 else "finished"
            self._observer.note(f"{each.run.name}: {outcome.reason or finished}")

    def _stop_all(self, reason: str) -> None:
        """End all runs, except those whose last image has its row."""
        cut_off = [each for each in self._left(self._at_work) if each.phase.left > 0]
        for each in cut_off:
            each.run.lock.close()
            self._ended[each.run.name] = Outcome(error=InterruptedRunError(reason))
        if cut_off:
            self._observer.note(reason)


def _of_one_shape(at_work: Sequence[AtWork]) -> list[AtWork]:
    """The runs of the first run's shape, because with GPUs rows of several runs are in the same batches."""
    wanted = shape(at_work[0].phase.recipe)
    return [each for each in at_work if shape(each.phase.recipe) == wanted]


def _of_each(runs: Sequence[Run], step: Callable[[Run], T]) -> dict[str, T]:
    """The results of `step` for all runs, by name; a refusal names its run."""
    done = {}
    for each in runs:
        with naming(each.name):
            done[each.name] = step(each)
    return done
