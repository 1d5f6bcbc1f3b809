"""Output of a run on the terminal: progress while it works, and a table at the end."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from vbp.pipeline.observer import Observer
from vbp.plain import plain
from vbp.words import counted

if TYPE_CHECKING:
    from vbp.pipeline.summary import Summary
    from vbp.pipeline.sweep.sweep import SweepSummary

LINE_SECONDS = 10.0
"""Seconds between two progress lines if the output is no terminal."""
QUIET_SECONDS = 20.0
"""Seconds without finished work after which the line says so; CPU workers commit every 5 s."""


class Rows(Table):
    """A table that shows cells literally: names are no markup, and control characters in them have no effect."""

    @override
    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*(shown(cell) if isinstance(cell, str) else cell for cell in cells), **settings)
        for column in self.columns:
            column.overflow = "fold"  # a path that is cut off cannot be used


def shown(text: str) -> Text:
    """Text that may contain names, made safe for a console; line breaks stay."""
    return Text(plain(text, keep="\n"))


@contextmanager
def watching() -> Iterator[Observer]:
    """An observer that shows the run on standard error: a bar on a terminal, else a line every 10 s."""
    console = Console(stderr=True)
    if not console.is_terminal:
        lines = Lines()
        with _repeating(lines.show, LINE_SECONDS):
            yield lines
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        yield Bar(progress)


@contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """A function that is told how far the work is, often; every 10 s the last words are shown on standard error."""
    last: list[str] = []

    def show() -> None:
        if last:
            print(plain(last[-1]), file=sys.stderr, flush=True)  # noqa: T201

    def tell(words: str) -> None:
        last[:] = [words]

    with _repeating(show, LINE_SECONDS):
        yield tell


@contextmanager
def _repeating(show: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `show` every `seconds` seconds, in a thread of its own."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            show()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Counting(Observer):
    """Keeps the counts for lines and bar."""

    def __init__(self) -> None:
        self.images = self.done = self.errors = 0
        self._doing, self._since = "starting", time.monotonic()
        self._indexed = 0
        self._first: tuple[float, int] | None = None
        self._newest: float | None = None
        self._is_resumed = False

    @override
    def doing(self, what: str) -> None:
        self._doing, self._since = what, time.monotonic()

    @override
    def started(self, images: int, done: int) -> None:
        self.images, self.done, self.errors = images, done, 0
        self._first, self._newest = None, time.monotonic()
        self._is_resumed = done > 0

    @override
    def wrote(self, ok: int, error: int) -> None:
        self.done += ok + error
        self.errors += error
        self._newest = time.monotonic()
        if self._first is None:
            self._first = self._newest, self.done

    @override
    def indexed(self, images: int) -> None:
        self._indexed = images

    @property
    def rate(self) -> float:
        """Images per second since the first ones were done, without start-up; 0 if unknown."""
        if self._first is None or self.done == self._first[1]:
            return 0.0
        since, before = self._first
        return (self.done - before) / max(time.monotonic() - since, 1e-9)

    @property
    def failures(self) -> str:
        """How many images failed; how many of those done before had failed is not known here."""
        return f"{self.errors} failed now" if self._is_resumed else f"{self.errors} failed"

    def status(self) -> str:
        """One line: done, rate, failures, time left; and a remark if no work is finished for long."""
        pace = f", {self.rate:.1f}/s, {duration((self.images - self.done) / self.rate)} left" if self.rate else ""
        return f"{self.done} of {counted(self.images, 'image')}, {self.failures}{pace}{self._quiet()}"

    def _quiet(self) -> str:
        seconds = 0.0 if self._newest is None else time.monotonic() - self._newest
        if self.done >= self.images:
            return f", making the index{f' ({self._indexed} so far)' if self._indexed else ''}"
        if self._first is None:
            return f", no results yet after {duration(seconds)}"
        return f", nothing new for {duration(seconds)}" if seconds >= QUIET_SECONDS else ""


class Lines(_Counting):
    """One line at a time, for logs."""

    def __init__(self) -> None:
        super().__init__()
        self._listed = 0

    @override
    def note(self, text: str) -> None:
        self._print(text)

    @override
    def listed(self, images: int) -> None:
        self._listed = images

    @override
    def started(self, images: int, done: int) -> None:
        super().started(images, done)
        self._print(f"{counted(images, 'image')}{f', {done} done before' if done else ''}")

    def show(self) -> None:
        """Print the status line."""
        found = f", {counted(self._listed, 'image')} so far" if self._listed else ""
        before = f"{self._doing} for {duration(time.monotonic() - self._since)}{found}"
        self._print(before if self._newest is None else self.status())

    def _print(self, text: str) -> None:
        print(plain(text), file=sys.stderr, flush=True)  # noqa: T201


class Bar(_Counting):
    """A progress bar with rate, failures and time left."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._task: TaskID = progress.add_task("starting", total=None, rate="")

    @override
    def note(self, text: str) -> None:
        self._progress.console.print(Text(plain(text)))

    @override
    def doing(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    @override
    def listed(self, images: int) -> None:
        self._progress.update(self._task, completed=images)

    @override
    def started(self, images: int, done: int) -> None:
        super().started(images, done)
        self._progress.reset(self._task, total=images, completed=done, description="explaining", rate="")

    @override
    def wrote(self, ok: int, error: int) -> None:
        super().wrote(ok, error)
        self._progress.update(
            self._task, completed=self.done, rate=f"{self.rate:.1f}/s, {self.failures}" if self.rate else ""
        )

    @override
    def indexed(self, images: int) -> None:
        if self.done >= self.images:  # else other runs are at work
            self._progress.update(self._task, completed=images, description="making the index")


class JobLog:
    """Prints a job's log as it arrives: on standard output; with JSON, all but the summary on standard error."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._line = ""
        self._summary: str | None = None

    def write(self, words: str) -> None:
        """Print the lines that are complete."""
        *lines, self._line = (self._line + words).split("\n")
        for line in lines:
            self._print(line)

    def end(self) -> None:
        """Print the incomplete last line, and the summary."""
        if self._line:
            self._print(self._line)
        if self._summary is not None:
            print(plain(self._summary))  # noqa: T201

    def _print(self, line: str) -> None:
        if self._as_json and line.startswith('{"run_id": '):
            self._summary = line
        else:
            shown_on = sys.stderr if self._as_json else sys.stdout
            print(plain(line, keep="\t\r"), file=shown_on, flush=True)  # noqa: T201


def print_summary(summary: Summary) -> None:
    """The table at the end, on standard output."""
    table = Rows(show_header=False, box=None, pad_edge=False)
    table.add_row("images", f"{summary.images}")
    table.add_row("ok", f"{summary.ok}")
    table.add_row("failed", f"{summary.error}")
    for reason, count in sorted(summary.reasons.items(), key=lambda item: -item[1]):
        table.add_row("", f"{count} x {reason}")
    if summary.computed:
        table.add_row(
            "this run",
            f"{counted(summary.computed, 'image')} in {duration(summary.seconds)}, "
            f"{summary.images_per_second:.1f} a second",
        )
        spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary.stage_seconds.items())
        table.add_row("seconds by stage", spent)
    table.add_row(
        "on",
        f"{summary.runner} runner, {counted(summary.workers, 'worker')}, {summary.device}, {summary.precision}, "
        f"batches of {summary.batch_size}",
    )
    if summary.gone:
        table.add_row("gone", gone_in_words(summary.gone))
    if summary.left_out:
        table.add_row("left out", summary.left_out_in_words)
    if summary.classes and (summary.classes_match or not summary.computed):  # else a note has said it at the start
        table.add_row("classes", summary.classes)
    if not summary.complete:
        table.add_row("not finished", f"{summary.failure}: no _SUCCESS; run the same command again")
    elif not summary.succeeded:
        table.add_row("failed the run", f"{summary.failure}: no _SUCCESS")
        table.add_row("next", f"vbp failures {shlex.quote(summary.output)} shows why; or accept them by --max-failures")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(shown(f"results: {summary.output}"))  # not wrapped, however long


def print_sweep(summary: SweepSummary) -> None:
    """How each run of a sweep ended, on standard output."""
    table = Rows("run", "", "images", "failed", "by this command", box=None, pad_edge=False)
    reasons: dict[str, list[str]] = {}
    for outcome in summary.outcomes:
        state = {0: "finished", 1: "crashed", 3: "failed", 4: "interrupted"}[outcome.exit_code]
        if outcome.summary is None:
            table.add_row(outcome.run.name, state)
            reasons.setdefault(outcome.reason, []).append(outcome.run.name)
            continue
        ended = outcome.summary
        own = f"{ended.computed} in {duration(ended.seconds)}" if ended.computed else "none: done before"
        table.add_row(outcome.run.name, state, str(ended.images), str(ended.error), own)
        if not ended.succeeded:
            why = f"{ended.failure}: no _SUCCESS; vbp failures shows why, of OUTPUT/runs/RUN"
            reasons.setdefault(why, []).append(outcome.run.name)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    for reason, runs in reasons.items():
        console.print(shown(f"\n{', '.join(runs)}: {reason}"))
    cost = "" if summary.cost is None else f", {summary.cost:.2f} at the price given"
    console.print(f"\nwork in all: {duration(3600 * summary.hours)}{cost}")
    index = "index/ holds the rows of all runs, " if summary.is_combined else ""
    console.print(shown(f"results: {summary.output} ({index}runs/ their outputs)"))


def gone_in_words(images: int) -> str:
    """A clause on images that are gone from INPUT and have a result."""
    return f"{counted(images, 'image is', 'images are')} no longer in INPUT; the results stay"


def duration(seconds: float) -> str:
    """``1 h 05 min``, ``3 min 20 s`` or ``4.2 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
