"""The results of ``vbp benchmark`` as a page: Markdown that can also be read on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FIGURE_HEAD = ("figure", "median", "least", "greatest", "target", "verdict", "detail")
VERDICTS = {True: "reached", False: "falls short", None: ""}


def page(measured: Mapping[str, Any]) -> str:
    """Figures with their targets first, then all rates, then what was left out; nothing that is not in `measured`."""
    figures = [[each["part"], *figure_row(each)] for each in measured["figures"]]
    rates = [[each["part"], each["name"], *_spread(each)] for each in measured["rates"]]
    machine = ", ".join(f"{name} {value}" for name, value in measured["machine"].items())
    sections = [
        f"{machine}. Batches of {measured['batch_size']}; medians of {measured['rounds']} rounds.",
        table(("part", *FIGURE_HEAD), figures) if figures else "",
        table(("part", "case", "median", "least", "greatest"), rates) if rates else "",
        "\n".join(measured["notes"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def figure_row(figure: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells below `FIGURE_HEAD`."""
    return figure["name"], *_spread(figure), _target(figure), VERDICTS[figure["reached"]], figure["detail"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(3, *(len(row[column]) for row in [head, *rows])) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3
    return f"{value:,.{digits}f}"


def _spread(each: Mapping[str, Any]) -> tuple[str, str, str]:
    """Least and greatest; empty if there was only one measurement."""
    unit = f" {each['unit']}" if each["unit"] else ""
    median, least, greatest = (number(each[name]) for name in ("median", "least", "greatest"))
    return f"{median}{unit}", least if least != greatest else "", greatest if least != greatest else ""


def _target(figure: Mapping[str, Any]) -> str:
    if figure["target"] is None:
        return ""
    unit = f" {figure['unit']}" if figure["unit"] else ""
    return f"{'at most' if figure['at_most'] else 'at least'} {number(figure['target'])}{unit}"
