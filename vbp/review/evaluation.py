"""What an evaluation found, as tables: each metric with its methods, their intervals, and how they stand beside vbp."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

import vbp
from vbp.errors import UsageError
from vbp.evaluation.methods import METHODS, Entry
from vbp.evaluation.metrics import METRICS
from vbp.review.output import Output
from vbp.review.page import page
from vbp.review.report import facts_of
from vbp.storage.files import write_uri
from vbp.storage.outline import SCORES

PAGE = "evaluation.html"
OWN = "vbp"
"""The method that others are compared with."""
SECONDS = "seconds"
CONFIDENCE = 95
LEVEL = 1 - CONFIDENCE / 100


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method under one metric."""

    method: str
    images: int
    """Images with a value."""
    mean: float
    low: float
    high: float
    """Ends of the mean's interval: percentiles of its bootstrap over images; NaN for a single image."""
    chance: float | None
    """Mean chance level of these images; None where the metric has none."""
    rank: float | None = None
    """Place among all methods, over the images for which all have a value; 1 is best."""
    rank_low: float | None = None
    rank_high: float | None = None
    """Ends of its interval."""
    difference: float | None = None
    """Mean of this method's value minus that of vbp, over images that have both; None for vbp itself."""
    p: float | None = None
    """Probability of such a difference if the two methods were alike, corrected for all comparisons."""
    verdict: str = ""
    """better, worse or alike, than vbp."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One metric."""

    metric: str
    meaning: str
    paper: str
    higher_is_better: bool
    settings: str
    lines: tuple[Line, ...]

    def place(self, value: float) -> float:
        """Where a value lies on the table's axis, in percent."""
        numbers = [n for line in self.lines for n in (line.mean, line.low, line.high, line.chance) if n is not None]
        numbers = [n for n in numbers if not np.isnan(n)]
        least, most = min(0.0, *numbers), max(1.0, *numbers)
        return round(100 * (value - least) / (most - least), 2)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The content of the page."""

    output: str
    images: int
    """Images that have any score."""
    tables: tuple[Table, ...]
    seconds: Mapping[str, float]
    """Median seconds an image of each method."""
    facts: Mapping[str, str]
    confidence: int = CONFIDENCE
    version: str = vbp.__version__

    @property
    def methods(self) -> list[Entry]:
        """The methods, in the order of the tables."""
        shown = {line.method for table in self.tables for line in table.lines}
        return [METHODS[name] for name in METHODS if name in shown]

    def as_json(self) -> dict[str, Any]:
        """JSON values; what is NaN is null."""
        found: dict[str, Any] = without_nan(dataclasses.asdict(self))
        return found


def evaluation(place: str, options: Mapping[str, Any] | None = None) -> Evaluated:
    """Summarise the scores of a finished evaluation.

    Args:
        place: OUTPUT, a path or URL.
        options: options to read it, as for ``Folder``.

    Raises:
        UsageError: there are no scores, or the evaluation is not finished.
    """
    output = finished(place, options)
    scores = scores_of(output)
    return Evaluated(
        output=output.folder.url,
        images=scores.images,
        tables=tables_of(scores.values, scores.chances, scores.settings),
        seconds=seconds_of(scores),
        facts=facts_of_evaluation(output),
    )


def finished(place: str, options: Mapping[str, Any] | None = None) -> Output:
    """The output of a finished evaluation; arguments and errors as for `evaluation`."""
    output = Output.open(place, options)
    if output.config.get("evaluation") is None:
        raise UsageError(f"OUTPUT (={place}) holds no evaluation; vbp evaluate makes one.")
    if not output.is_complete:
        raise UsageError(f"The evaluation in {place} is not finished; the same command continues it.")
    return output


def save(found: Evaluated, options: Mapping[str, Any] | None = None) -> str:
    """Write the page into the output; returns its place."""
    target = f"{found.output.rstrip('/')}/{PAGE}"
    write_uri(target, page("evaluation.html.jinja", found=found).encode("utf-8", "backslashreplace"), options)
    return target


Column = NDArray[np.float64]
"""One number for each image, NaN where there is none."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All numbers of an evaluation."""

    values: Mapping[str, Mapping[str, Column]]
    """By metric and method."""
    chances: Mapping[str, Mapping[str, Column]]
    """Chance levels, in the same way."""
    settings: Mapping[str, str]
    """By metric, for people."""
    images: int


def seconds_of(scores: Scores) -> dict[str, float]:
    """Median seconds an image of each method."""
    return {method: float(np.nanmedian(own)) for method, own in scores.values.get(SECONDS, {}).items()}


def scores_of(output: Output) -> Scores:
    """Read the scores of a finished evaluation."""
    table = pa.concat_tables(_tables(output))
    keys = table["key"].combine_chunks().dictionary_encode()
    images = len(keys.dictionary)
    rows_R = keys.indices.to_numpy()
    numbers = {name: table[name].to_numpy() for name in ("value", "chance")}
    found: dict[str, dict[str, dict[str, Column]]] = {name: {} for name in numbers}
    settings: dict[str, str] = {}
    for metric in (*METRICS, SECONDS):
        of_metric = pc.equal(table["metric"], metric)
        for method in METHODS:
            chosen_R = pc.and_(of_metric, pc.equal(table["method"], method)).to_numpy()
            if not chosen_R.any():
                continue
            settings.setdefault(metric, table["settings"].filter(pa.array(chosen_R))[0].as_py() or "")
            for name, values_R in numbers.items():
                column = np.full(images, np.nan)
                column[rows_R[chosen_R]] = values_R[chosen_R]
                found[name].setdefault(metric, {})[method] = column
    return Scores(values=found["value"], chances=found["chance"], settings=settings, images=images)


def _tables(output: Output) -> Iterator[pa.Table]:
    for path in output.folder.list(SCORES):
        with output.folder.open(path) as file:
            yield pq.read_table(file, columns=["key", "method", "metric", "value", "chance", "settings"])


def tables_of(
    values: Mapping[str, Mapping[str, Column]],
    chances: Mapping[str, Mapping[str, Column]],
    settings: Mapping[str, str],
) -> tuple[Table, ...]:
    """The tables of all metrics.

    Args:
        values: by metric and method, one number for each image.
        chances: the chance levels in the same way.
        settings: by metric, for people.
    """
    tables = [
        _table(metric, values[metric], chances[metric], settings.get(metric, ""))
        for metric in METRICS
        if metric in values
    ]
    return tuple(_corrected(tables))


def _table(metric: str, values: Mapping[str, Column], chances: Mapping[str, Column], settings: str) -> Table:
    from vbp.evaluation import statistics

    about, methods = METRICS[metric], list(values)
    scores_IM = np.stack([values[method] for method in methods], axis=1)
    gaps = {each.method: each for each in statistics.differences(scores_IM, methods, OWN)} if OWN in values else {}
    places = {each.method: each for each in statistics.ranks(scores_IM, methods, about.higher_is_better)}
    lines = [
        Line(
            method=each.method,
            images=each.images,
            mean=each.mean,
            low=each.low,
            high=each.high,
            chance=_mean(chances[each.method]),
            rank=_number(places[each.method].rank),
            rank_low=_number(places[each.method].low),
            rank_high=_number(places[each.method].high),
            difference=_number(gaps[each.method].mean) if each.method in gaps else None,
            p=_number(gaps[each.method].p) if each.method in gaps else None,
        )
        for each in statistics.means(scores_IM, methods)
        if each.images
    ]
    return Table(
        metric=metric,
        meaning=about.meaning,
        paper=about.paper,
        higher_is_better=about.higher_is_better,
        settings=settings,
        lines=tuple(lines),
    )


def _corrected(tables: Sequence[Table]) -> Iterator[Table]:
    """The tables with probabilities that count all comparisons, and with verdicts."""
    from vbp.evaluation import statistics

    found = [line.p for table in tables for line in table.lines if line.p is not None]
    corrected = iter(statistics.holm(found).tolist())
    for table in tables:
        yield dataclasses.replace(table, lines=tuple(_judged(line, table, corrected) for line in table.lines))


def _judged(line: Line, table: Table, corrected: Iterator[float]) -> Line:
    if line.p is None or line.difference is None:
        return line
    p = next(corrected)
    is_better = (line.difference > 0) == table.higher_is_better
    verdict = "alike" if p > LEVEL or not line.difference else "better" if is_better else "worse"
    return dataclasses.replace(line, p=p, verdict=verdict)


def _mean(column: Column) -> float | None:
    known = column[~np.isnan(column)]
    return float(known.mean()) if len(known) else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def facts_of_evaluation(output: Output) -> dict[str, str]:
    """What the reader of an evaluation wants to know of its run, by name."""
    asked = output.config["evaluation"]
    return {**facts_of(output), "truth": asked["truth"] or "none", "device": str(output.record.get("device"))}


def without_nan(value: Any) -> Any:
    """The same JSON values with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value
