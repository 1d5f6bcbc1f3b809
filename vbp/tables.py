"""Results of the operator's commands as tables on standard output."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console

from vbp.plain import plain
from vbp.review.validate import FAULTS
from vbp.terminal import Rows, duration, gone_in_words, shown
from vbp.words import counted

if TYPE_CHECKING:
    from vbp.pipeline.dryrun import Plan
    from vbp.pipeline.sweep.dryrun import SweepPlan
    from vbp.review.card import Card
    from vbp.review.compare import Comparison
    from vbp.review.evaluation import Evaluated
    from vbp.review.failures import Failures
    from vbp.review.status import Status
    from vbp.review.validate import Validation

_PAIRS = 30
"""The most pairs of a comparison that are shown."""
_LOG_WIDTH = 160
"""Characters per line if the output is no terminal."""
MEANING = {
    "listing": "INPUT is being listed",
    "running": "at work",
    "finished": "every image has its row",
    "failed": "every image has its row, but more failed than --max-failures allows",
    "interrupted": "stopped before the end; the run's command continues it",
    "dead": "its process is gone or silent; the run's command continues it",
}


def print_status(status: Status) -> None:
    """Print the status of a run."""
    table = _facts()
    table.add_row("state", f"{status.state}: {MEANING[status.state]}")
    if status.holder is not None:
        ago = "" if status.silent_seconds is None else f", lease renewed {duration(status.silent_seconds)} ago"
        table.add_row("held by" if status.is_live else "last held by", f"{status.holder}{ago}")
    table.add_row("images", _explained(status))
    if status.gone:
        table.add_row("gone", gone_in_words(status.gone))
    if status.left_out:
        table.add_row("left out", status.left_out_in_words)
    if status.left:
        ahead = "" if status.seconds_left is None else f", {duration(status.seconds_left)} to go"
        table.add_row("left", f"{status.left}{ahead}")
    if status.images_per_second is not None:
        table.add_row("rate", f"{status.images_per_second:.1f} images a second")
    if status.newest_row_at is not None:
        table.add_row("newest row", _time(status.newest_row_at))
    for number, attempt in enumerate(status.attempts):
        committed = f"{attempt.run_id}: {attempt.ok} ok, {attempt.error} failed"
        table.add_row("" if number else "attempts", committed)
    table.add_row("output", status.output)
    _print(table)


def _explained(status: Status) -> str:
    if status.state == "listing":
        return "unknown until INPUT is listed"
    done = status.ok + status.error
    share = f" ({100 * done / status.images:.1f} %)" if status.images else ""
    return f"{done} of {status.images}{share}: {status.ok} ok, {status.error} failed"


def print_failures(failures: Failures) -> None:
    """Print the causes, the most frequent first."""
    if not failures.causes:
        _print(f"No image of {failures.output} failed.")
        return
    table = Rows("images", "stage", "error", "message", "for example", box=None, pad_edge=False)
    for cause in failures.causes:
        table.add_row(
            str(cause.images),
            plain(cause.stage),
            plain(cause.type),
            plain(cause.message if cause.images > 1 else cause.example),
            "\n".join(map(plain, cause.keys)),
        )
    _print(
        table,
        f"\n{failures.images} failed. To try them again: the run's command with --retry-failed.",
    )


def print_validation(found: Validation) -> None:
    """Print the checks, the faults, and what to run next."""
    table = _facts()
    table.add_row("rows", f"{found.ok + found.error} of {found.images}: {found.ok} ok, {found.error} failed")
    if found.gone:
        table.add_row("gone", gone_in_words(found.gone))
    table.add_row("files", str(found.files))
    table.add_row("masks reopened", str(found.masks_opened))
    _print(table)
    if found.findings:
        wrong = Rows("count", "what", "for example", box=None, pad_edge=False)
        for finding in found.findings:
            wrong.add_row(str(finding.count), FAULTS[finding.kind], "\n".join(map(plain, finding.examples)))
        _print("", wrong)
    if found.orphans_removed and found.orphans:
        _print(f"\n{counted(found.orphans, 'file')} removed.")
    if found.rebased:
        _print(f"\nThe index was made anew for {found.output}.")
    _print(f"\n{found.next_step}")


def print_evaluation(found: Evaluated) -> None:
    """Print each metric with its methods: mean, interval, chance, and how they stand beside vbp."""
    table = Rows("metric", "method", "mean", "interval", "chance", "beside vbp", box=None, pad_edge=False)
    for each in found.tables:
        arrow = "" if each.higher_is_better else " (less is better)"
        for number, line in enumerate(each.lines):
            table.add_row(
                "" if number else f"{each.metric}{arrow}",
                line.method,
                f"{line.mean:.3f}",
                f"{line.low:.3f} to {line.high:.3f}",
                "" if line.chance is None else f"{line.chance:.3f}",
                line.verdict,
            )
    _print("", table, f"\npage: {found.output}/evaluation.html")


def print_card(found: Card) -> None:
    """Print the questions with their answers, the worst first."""
    lines = []
    for answer in found.first_the_worst:
        verdict = f"{answer.verdict.capitalize()}: " if answer.verdict else ""
        lines += [f"\n{answer.question} {verdict}{answer.sentence}", *(f"  {remark}" for remark in answer.remarks)]
    _print(*lines, f"\npage: {found.output}/card.html")


def print_plan(plan: Plan) -> None:
    """Print the plan of a run."""
    table = _facts()
    size = "" if plan.bytes is None else f", {_bytes(plan.bytes)}"
    table.add_row("images", f"{plan.images}{size}, in {counted(plan.shards, 'shard')} of up to {plan.shard_size}")
    if plan.left_out:
        table.add_row("left out", plan.left_out_in_words)
    table.add_row("done before", str(plan.done))
    table.add_row("left", str(plan.left))
    table.add_row(
        "on",
        f"{plan.runner} runner, {counted(plan.workers, 'worker')}, {plan.device}, {plan.precision}, "
        f"batches of {plan.batch_size}",
    )
    if plan.images_per_second is not None:
        table.add_row("rate", f"{plan.images_per_second:.1f} images a second, {plan.rate_of}")
    if plan.seconds is not None:
        table.add_row("time", f"about {duration(plan.seconds)}, starting up aside")
    if plan.cost is not None:
        table.add_row("cost", f"about {plan.cost:.2f} at {plan.price_per_hour:g} an hour")
    if plan.output_bytes is not None:
        table.add_row("to be written", f"about {_bytes(plan.output_bytes)}")
    if plan.sample_seconds:
        spent = ", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in plan.sample_seconds.items())
        table.add_row("an image takes", spent)
    for reason, count in plan.failures.items():
        table.add_row("will fail", f"{count} of {plan.sampled} sampled images: {reason}")
    for note in plan.notes:
        table.add_row("note", note)
    _print(table)


def print_sweep_plan(plan: SweepPlan) -> None:
    """Print the plans of a sweep's runs, and their sum."""
    table = Rows("run", "images", "done", "left", "images/s", "time", "cost", box=None, pad_edge=False)
    for run, each in plan.runs:
        rate = "" if each.images_per_second is None else f"{each.images_per_second:.1f}"
        table.add_row(run.name, str(each.images), str(each.done), str(each.left), rate, *_price(each))
    done = plan.images - plan.left
    table.add_row("all together", str(plan.images), str(done), str(plan.left), "", *_price(plan))
    _print(table)
    for note in dict.fromkeys(f"{note}" for _, each in plan.runs for note in each.notes):
        _print(f"\n{note}")
    if plan.budget.hours is not None:
        reach = {True: "it will not suffice", False: "it suffices", None: "whether it suffices is unknown"}
        spent = f", {plan.hours_spent:.2f} of them spent" if plan.hours_spent else ""
        _print(f"\nThe budget is {plan.budget.hours:g} h of work{spent}: {reach[plan.exceeds_budget]}.")


def _price(plan: Plan | SweepPlan) -> tuple[str, str]:
    """Time and cost."""
    seconds = "unknown" if plan.seconds is None else duration(plan.seconds)
    return seconds, "" if plan.cost is None else f"{plan.cost:.2f}"


def print_comparison(found: Comparison) -> None:
    """Print how similar the runs of a sweep are."""
    if not found.pairs:
        return
    table = Rows("runs", "differ in", "images", "correlation", "by rank", "overlap", "peaks apart", "other class",
                  "least alike", box=None, pad_edge=False)  # fmt: skip
    for pair in found.pairs[:_PAIRS]:
        table.add_row(
            f"{pair.run}\n{pair.other}",
            ", ".join(pair.differ),
            str(pair.images),
            _beside_chance(_number(pair.correlation), _number(pair.correlation_by_chance)),
            _beside_chance(_number(pair.rank_correlation), _number(pair.rank_correlation_by_chance)),
            _beside_chance(_percent(pair.overlap), _percent(pair.overlap_by_chance)),
            _beside_chance(_percent(pair.peak_distance), _percent(pair.peak_distance_by_chance)),
            _percent(pair.predictions_changed),
            pair.least_alike or "",
        )
    _print("", table)
    more = f"; {len(found.pairs)} pairs in all" if len(found.pairs) > _PAIRS else ""
    _print(
        f"\nMeans over at most {found.sample} images of each input; in brackets: what masks of two different images "
        "score, the level of chance. Overlap: of the brightest twentieth of the pixels. "
        f"Peaks apart: of the diagonal. All in {found.output}/comparison.parquet{more}."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _beside_chance(value: str, by_chance: str) -> str:
    """A cell with two lines, because a pair has a line for each of its runs."""
    return f"{value}\n({by_chance})" if value and by_chance else value


def _facts() -> Rows:
    """A table of facts: names on the left, values on the right."""
    return Rows(show_header=False, box=None, pad_edge=False)


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _print(*parts: Rows | str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=_LOG_WIDTH)
    for part in parts:
        console.print(shown(part) if isinstance(part, str) else part)
