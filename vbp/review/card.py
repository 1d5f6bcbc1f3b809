"""The card of a network: four questions about its masks, answered in plain words from the scores of ``vbp card``.

A card does not praise.  An answer is *yes* only where the masks are clearly better than everything that they are held
against; where they are not, it says against what.  *Not shown* is what more images may show: better in the mean, but
perhaps by chance.  What cannot be answered says what is missing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import vbp
from vbp.evaluation.metrics import METRICS
from vbp.review.evaluation import (
    CONFIDENCE,
    LEVEL,
    OWN,
    Column,
    Line,
    Scores,
    Table,
    facts_of_evaluation,
    finished,
    scores_of,
    seconds_of,
    tables_of,
    without_nan,
)
from vbp.review.page import page
from vbp.review.reference import TWIN, Figure, Reference, read
from vbp.storage.files import write_uri
from vbp.words import listed

PAGE, DATA = "card.html", "card.json"
CHANCE = "chance"
GUESSES = ("centre", "edge", "uniform")
BESIDE = (OWN, CHANCE, TWIN)
"""What stands first in every table."""
LOCALISATION = ("energy-inside", "rank-accuracy", "pointing-game")
CLASSIFIER = ("insertion", "deletion")
RANDOMISED, NOISY = "mprt-last-ssim", "noise-ssim"
FEW = 20
"""Intervals of fewer images are too narrow."""

Verdict = Literal["no", "not shown", "in part", "unknown", "yes", ""]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method, or one published evaluation, under the metrics of an answer."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question and what the scores say to it."""

    question: str
    verdict: Verdict
    sentence: str
    """The answer in words, after the verdict."""
    remarks: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    """The masks of the run, then what they are held against."""
    references: tuple[Row, ...] = ()
    """The same of published evaluations."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The content of the page."""

    output: str
    images: int
    """Images that have any score."""
    failed: int
    answers: tuple[Answer, ...]
    tables: tuple[Table, ...]
    """All figures, chance as a method of its own."""
    facts: Mapping[str, str]
    confidence: int = CONFIDENCE
    version: str = vbp.__version__

    @property
    def first_the_worst(self) -> list[Answer]:
        """The answers as the top of the page has them."""
        order = ("no", "not shown", "in part", "unknown", "yes", "")
        return sorted(self.answers, key=lambda answer: order.index(answer.verdict))

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        found: dict[str, Any] = without_nan(dataclasses.asdict(self))
        return found


def card(place: str, options: Mapping[str, Any] | None = None) -> Card:
    """Answer the questions from a finished evaluation.

    Args:
        place: OUTPUT, a path or URL.
        options: options to read it, as for ``Folder``.

    Raises:
        UsageError: there are no scores, or the evaluation is not finished.
    """
    output = finished(place, options)
    scores = scores_of(output)
    tables, answers = answered(scores, str(output.record.get("device")), read())
    return Card(
        output=output.folder.url,
        images=scores.images,
        failed=int((output.record.get("summary") or {}).get("error", 0)),
        answers=answers,
        tables=tables,
        facts=facts_of_evaluation(output),
    )


def save(found: Card, options: Mapping[str, Any] | None = None) -> str:
    """Write page and JSON into the output; returns the page's place."""
    place = found.output.rstrip("/")
    text = json.dumps(found.as_json(), ensure_ascii=False, indent=1) + "\n"
    write_uri(f"{place}/{DATA}", text.encode("utf-8", "backslashreplace"), options)
    write_uri(f"{place}/{PAGE}", page("card.html.jinja", found=found).encode("utf-8", "backslashreplace"), options)
    return f"{place}/{PAGE}"


def answered(
    scores: Scores, device: str, references: Sequence[Reference]
) -> tuple[tuple[Table, ...], tuple[Answer, ...]]:
    """The tables, with chance as a method, and the answers to all questions.

    Args:
        scores: of the run.
        device: where it ran.
        references: published evaluations, to stand beside.
    """
    tables = tables_of(*_with_chance(scores), scores.settings)
    asked = _Asked({table.metric: table for table in tables}, scores, references)
    return tables, (asked.objects(), asked.training(), asked.stability(), asked.cost(device))


def _with_chance(scores: Scores) -> tuple[dict[str, dict[str, Column]], dict[str, dict[str, Column]]]:
    """Values and chance levels, with the chance level of the masks as one method more, so that it is compared too."""
    values = {metric: dict(own) for metric, own in scores.values.items()}
    chances = {metric: dict(own) for metric, own in scores.chances.items()}
    for metric, own in scores.chances.items():
        level = own.get(OWN)
        if level is not None and not np.isnan(level).all():
            values[metric][CHANCE] = level
            chances[metric][CHANCE] = np.full_like(level, np.nan)
    return values, chances


class _Asked:
    """The four questions.

    Args:
        tables: by metric, with chance as a method.
        scores: the numbers behind them.
        references: the published evaluations.
    """

    def __init__(self, tables: Mapping[str, Table], scores: Scores, references: Sequence[Reference]) -> None:
        self._tables, self._scores, self._references = tables, scores, references

    def objects(self) -> Answer:
        """Whether the masks lie on the objects."""
        question = "Does the mask find objects?"
        metrics = self._there(LOCALISATION)
        if not metrics:
            return Answer(
                question=question,
                verdict="unknown",
                sentence="nobody said where they are. Give boxes or masks of the true objects by --truth.",
            )
        held_against = (CHANCE, *GUESSES)
        is_found = self._is_beaten(metrics[0], CHANCE)
        losses = self._losses(metrics, held_against)
        remarks = [
            *(_not_better(self._told(other), where) for other, where in losses.items()),
            *self._better(metrics, (CHANCE, TWIN, *GUESSES)),
            *self._few(metrics[0]),
        ]
        return Answer(
            question=question,
            verdict=self._against(CHANCE, metrics[:1]) if not is_found else "in part" if losses else "yes",
            sentence=f"{self._level(metrics[0])} of the masks' sum lies in the objects; by chance it is "
            f"{self._mean(metrics[0], CHANCE)}.",
            remarks=tuple(remarks),
            **self._figures(metrics),
        )

    def training(self) -> Answer:
        """Whether the masks of random weights are worse."""
        question = "Does training matter?"
        judged = self._there(LOCALISATION, TWIN) or self._there(CLASSIFIER, TWIN)
        metrics = [*judged, *(name for name in self._there((*CLASSIFIER, RANDOMISED)) if name not in judged)]
        if not judged and RANDOMISED not in metrics:
            return Answer(question=question, verdict="unknown", sentence="no masks could be compared.")
        if not judged:
            return Answer(
                question=question,
                verdict=self._by_randomisation(),
                sentence=self._randomised(),
                remarks=(
                    "Whether the trained masks are also better is unknown: give --truth, or weights with a classifier.",
                ),
                **self._figures(metrics, BESIDE),
            )
        losses = self._losses(judged, (TWIN,)).get(TWIN, [])
        beside = ", ".join(f"{name} {self._level(name)} and {self._mean(name, TWIN)}" for name in judged)
        remarks = [
            *([_not_better("the same network with random weights", losses)] if losses else []),
            *([self._randomised()] if RANDOMISED in self._tables else []),
            "The twin is one draw of random weights. Other draws, by --seed, differ.",
            *self._few(judged[0]),
        ]
        if judged[0] in CLASSIFIER:
            remarks.append("Insertion and deletion reward a mask that follows the image. Give --truth to know more.")
        return Answer(
            question=question,
            verdict=self._against(TWIN, judged) if len(losses) == len(judged) else "in part" if losses else "yes",
            sentence=f"with its own weights and with random ones, the masks have {beside}.",
            remarks=tuple(remarks),
            **self._figures(metrics, BESIDE),
        )

    def stability(self) -> Answer:
        """Whether masks of noisy copies are alike."""
        question = "Is it stable?"
        if NOISY not in self._tables:
            return Answer(question=question, verdict="unknown", sentence="no masks could be compared.")
        own, chance = self._line(NOISY, OWN), self._line(NOISY, CHANCE)
        assert own is not None
        level = 0.0 if chance is None else chance.mean
        is_stable = own.low > (1 + level) / 2
        is_alike = self._is_beaten(NOISY, CHANCE)
        verdict: Verdict = self._against(CHANCE, [NOISY]) if not is_alike else "yes" if is_stable else "in part"
        twin = self._mean(NOISY, TWIN)
        return Answer(
            question=question,
            verdict=verdict,
            sentence=f"under a little noise a mask keeps a structural similarity of {self._level(NOISY)} with "
            f"itself; turned by 180° it has {self._mean(NOISY, CHANCE)}.",
            remarks=(f"That is no merit alone: a mask that never changes is stable too. Random weights have {twin}.",),
            **self._figures(self._there((NOISY, "sparseness")), BESIDE),
        )

    def cost(self, device: str) -> Answer:
        """How long a mask takes."""
        question = "What does it cost?"
        seconds = seconds_of(self._scores)
        if OWN not in seconds:
            return Answer(question=question, verdict="unknown", sentence="no mask was timed.")
        own = seconds[OWN]
        return Answer(
            question=question,
            verdict="",
            sentence=f"{_three(own)} seconds a mask on {device}, {_three(1 / own)} masks a second, without reading and "
            "writing.",
            remarks=("Medians, as they ran here. Other work on the machine counts, and so does another machine.",),
            columns=("seconds an image",),
            rows=tuple(Row(name=name, cells=(_three(value),)) for name, value in seconds.items()),
            references=tuple(
                Row(name=_cited(each), cells=(_three(each.seconds),))
                for each in self._references
                if each.seconds is not None
            ),
        )

    # What the tables say

    def _there(self, metrics: Sequence[str], other: str = OWN) -> list[str]:
        """The metrics that the masks have, and the other method too."""
        return [name for name in metrics if name in self._tables and self._line(name, OWN) and self._line(name, other)]

    def _line(self, metric: str, method: str) -> Line | None:
        return next((line for line in self._tables[metric].lines if line.method == method), None)

    def _is_beaten(self, metric: str, method: str) -> bool:
        line = self._line(metric, method)
        return line is not None and line.verdict == "worse"

    def _against(self, method: str, metrics: Sequence[str]) -> Verdict:
        """What to say of masks that are not clearly better: *no* only if they are not better in the mean either."""
        for name in metrics:
            own, other = self._line(name, OWN), self._line(name, method)
            sign = 1 if METRICS[name].higher_is_better else -1
            if own is not None and other is not None and sign * own.mean > sign * other.mean:
                return "not shown"
        return "no"

    def _losses(self, metrics: Sequence[str], methods: Sequence[str]) -> dict[str, list[str]]:
        """For each method the metrics by which the masks are not clearly better."""
        found = {
            method: [name for name in metrics if self._line(name, method) and not self._is_beaten(name, method)]
            for method in methods
        }
        return {method: where for method, where in found.items() if where}

    def _better(self, metrics: Sequence[str], without: Sequence[str]) -> Iterator[str]:
        """A sentence for each other method that is clearly better."""
        lines = {(name, line.method): line for name in metrics for line in self._tables[name].lines}
        for method in dict.fromkeys(method for _, method in lines):
            where = [name for name in metrics if (line := lines.get((name, method))) and line.verdict == "better"]
            if where and method not in without:
                yield f"{method} is better by {listed(where)}."

    def _by_randomisation(self) -> Verdict:
        """Whether masks of random weights are others, where nothing says which are better."""
        if self._is_beaten(RANDOMISED, CHANCE):
            return "yes"
        noisy, randomised = (self._scores.values.get(name, {}).get(OWN) for name in (NOISY, RANDOMISED))
        is_less = noisy is not None and randomised is not None and _is_clearly_less(randomised, noisy)
        if self._exceeds_chance(RANDOMISED):
            return "in part" if is_less else "no"
        return "yes" if is_less else "unknown"

    def _exceeds_chance(self, metric: str) -> bool:
        """Of a similarity, where less is better: whether the masks have more than chance."""
        line = self._line(metric, CHANCE)
        return line is not None and line.verdict == "better"

    def _randomised(self) -> str:
        told = (
            "so much of a mask is the image's doing"
            if self._exceeds_chance(RANDOMISED)
            else "so it is not clearly more alike than chance"
        )
        return (
            f"With all convolutions random, a mask keeps a structural similarity of {self._level(RANDOMISED)} with the "
            f"trained one; turned by 180° it has {self._mean(RANDOMISED, CHANCE)}, {told}."
        )

    # In words

    def _level(self, metric: str) -> str:
        line = self._line(metric, OWN)
        assert line is not None
        return _interval(line.mean, line.low, line.high)

    def _mean(self, metric: str, method: str) -> str:
        line = self._line(metric, method)
        return "unknown" if line is None else f"{line.mean:.2f}"

    def _told(self, method: str) -> str:
        return {CHANCE: "chance", "centre": "the centre of the image", "edge": "edges", "uniform": "noise"}[method]

    def _few(self, metric: str) -> Iterator[str]:
        line = self._line(metric, OWN)
        if line is not None and line.images < FEW:
            yield f"Only {line.images} images count here; that is few, and intervals are too narrow."

    def _figures(self, metrics: Sequence[str], methods: Sequence[str] | None = None) -> dict[str, Any]:
        """The table of an answer.

        Args:
            metrics: its columns.
            methods: its rows; None: all that have a score.
        """
        there = dict.fromkeys(line.method for name in metrics for line in self._tables[name].lines)
        shown = [name for name in (*BESIDE, *(name for name in there if name not in BESIDE)) if name in there]
        return {
            "columns": tuple(f"{name} {'↑' if METRICS[name].higher_is_better else '↓'}" for name in metrics),
            "rows": tuple(
                Row(name=method, cells=tuple(_cell(self._line(name, method)) for name in metrics))
                for method in shown
                if methods is None or method in methods
            ),
            "references": tuple(
                Row(name=_cited(each), cells=tuple(_published(each.figure(name)) for name in metrics))
                for each in self._references
                if any(each.figure(name) for name in metrics)
            ),
        }


def _is_clearly_less(first: Column, second: Column) -> bool:
    from vbp.evaluation import statistics

    (found,) = statistics.differences(np.stack([second, first], axis=1), ["second", "first"], "second")
    return found.mean < 0 and found.p <= LEVEL


def _published(figure: Figure | None) -> str:
    if figure is None:
        return ""
    others = [
        f"{name} {value:.2f}" for name, value in (("twin", figure.twin), (CHANCE, figure.chance)) if value is not None
    ]
    return "; ".join((_interval(figure.mean, figure.low, figure.high), *([", ".join(others)] if others else ())))


def _cited(each: Reference) -> str:
    return f"{each.title}, {each.images} images"


def _not_better(method: str, where: Sequence[str]) -> str:
    return f"Not clearly better than {method} by {listed(where)}."


def _cell(line: Line | None) -> str:
    if line is None:
        return ""
    told = f", {line.verdict}" if line.verdict else ""
    return f"{_interval(line.mean, line.low, line.high)}{told}"


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.2f}" if np.isnan(low) else f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _three(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.3g}" if 0.001 <= abs(value) < 1000 else f"{value:,.0f}" if value >= 1000 else f"{value:.4f}"
