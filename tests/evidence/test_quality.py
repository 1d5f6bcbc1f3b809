"""The page on how good the masks are, from a few scenes."""

import dataclasses
import re
from pathlib import Path

import pytest

from vbp.evidence.quality import WITHOUT_CLASS, cases, introduction, rankings, section
from vbp.pipeline import run
from vbp.review.evaluation import Evaluated, Line, Table, evaluation
from vbp.review.reference import read, reference, write


def line(method, mean, verdict=""):
    return Line(method=method, images=9, mean=mean, low=mean - 0.1, high=mean + 0.1, chance=0.25, verdict=verdict)


def rows_of(text):
    """The first figure of each row of the tables, by the row's name."""
    return {row.split("|")[1].strip(): row.split("|")[2].strip() for row in text.splitlines() if "|" in row}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    (case, _), (left_out,) = cases(None, tmp_path_factory.mktemp("scenes"))
    assert "--data" in left_out
    return case


@pytest.mark.long
def test_a_section_has_a_row_for_each_method_and_marks_what_differs(case):
    table = Table(
        metric="pointing-game", meaning="m", paper="p", higher_is_better=True, settings="steps 3",
        lines=(line("vbp", 0.5), line("eigencam", 0.75, "better"), line("edge", 0.25, "worse"), line("centre", 0.5)),
    )  # fmt: skip
    found = Evaluated(output="o", images=9, tables=(table,), seconds={"vbp": 0.1234, "eigencam": 2.0}, facts={})
    rows = rows_of(section(case, [found]))
    assert rows["**vbp**"] == "0.50 (0.40 to 0.60)"
    assert rows["eigencam"] == "0.75 (0.65 to 0.85) **+**"
    assert rows["edge"].endswith("**-**")
    assert rows["centre"] == "0.50 (0.40 to 0.60)"
    assert rows["*chance*"] == "0.25"
    assert "pointing-game: steps 3." in section(case, [found])


@pytest.mark.long
def test_the_demo_is_evaluated_again_from_where_it_stopped(case, tmp_path):
    short = dataclasses.replace(case, methods=("vbp", "random-twin", "centre"), metrics=("pointing-game",), images=4)
    assert run(short.config(tmp_path, 2)).images == 2
    summary = run(short.config(tmp_path, None))
    assert (summary.images, summary.computed) == (4, 2)
    found = evaluation(summary.output)
    assert found.images == 4
    text = section(short, [found])
    assert len(re.findall(r"^\| (?:\*\*)?(?:vbp|random-twin|centre)", text, re.MULTILINE)) == 3


def test_the_introduction_names_every_method():
    text = "\n".join(introduction())
    assert all(f"| {name} |" in text for name in WITHOUT_CLASS)


@pytest.mark.long
def test_twins_of_several_seeds_stand_in_one_table(case):
    twins = dataclasses.replace(case, seeds=(500, 501), methods=("vbp", "random-twin"))
    names = [(each.name, each.settings["seed"]) for each in twins.runs()]
    assert names == [("demo-500", 500), ("demo-501", 501)]
    tables = [
        Table(
            metric="pointing-game", meaning="m", paper="p", higher_is_better=True, settings="",
            lines=(line("vbp", 0.5), line("random-twin", mean)),
        )
        for mean in (0.25, 0.75)
    ]  # fmt: skip
    runs = [Evaluated(output="o", images=9, tables=(table,), seconds={}, facts={}) for table in tables]
    rows = rows_of(section(twins, runs))
    assert rows["random-twin"] == "0.25 (0.15 to 0.35)"
    assert rows["random-twin, seed 501"] == "0.75 (0.65 to 0.85)"


PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_the_figures_of_a_card_are_those_of_the_page():
    """Each interval of the masks that the package carries stands in the page, in a table with that metric."""
    tables = re.findall(r"((?:^\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
    published = set()
    for table in tables:
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
        own = next((row for row in rows if row[0] == "**vbp**"), None)
        if own is not None:
            published |= {(name[:-2], cell) for name, cell in zip(head[1:-1], own[1:-1], strict=True)}
    kept = {
        (each.metric, f"{each.mean:.2f} ({each.low:.2f} to {each.high:.2f})")
        for all_ in read()
        for each in all_.figures
    }
    assert len(kept) > 10
    assert kept <= published, kept - published


def test_figures_are_kept_as_they_were_found(tmp_path, monkeypatch):
    table = Table(
        metric="deletion", meaning="m", paper="p", higher_is_better=False, settings="",
        lines=(line("vbp", 0.5), line("random-twin", 0.75)),
    )  # fmt: skip
    found = Evaluated(output="o", images=9, tables=(table,), seconds={"random-twin": 2.0}, facts={})
    kept = reference("Scenes", found)
    (figure,) = kept.figures
    assert (kept.title, kept.images, kept.seconds) == ("Scenes", 9, 2.0)
    assert (figure.mean, figure.low, figure.twin, figure.chance) == (0.5, 0.4, 0.75, 0.25)
    write([kept], tmp_path / "reference.json")
    monkeypatch.setattr("vbp.review.reference.resources.files", lambda package: tmp_path)
    assert read() == (kept,)


def ranked(metric, values, higher_is_better=True):
    lines = tuple(line(method, value) for method, value in values.items())
    return Table(metric=metric, meaning="m", paper="p", higher_is_better=higher_is_better, settings="", lines=lines)


def test_rankings_of_metrics_and_of_networks_are_compared(case):
    """Deletion is better where it is less, so turned round it is the same ranking."""
    values = {"vbp": 0.9, "eigencam": 0.6, "edge": 0.3, "uniform": 0.1}
    turned = {name: 1 - value for name, value in values.items()}
    opposite = ranked("pointing-game", turned)
    tables = (ranked("pointing-game", values), ranked("deletion", turned, higher_is_better=False))
    one, other = (Evaluated(output="o", images=9, tables=each, seconds={}, facts={}) for each in (tables, (opposite,)))
    text = rankings([(dataclasses.replace(case, title="one"), one), (dataclasses.replace(case, title="other"), other)])
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("| ")]
    assert rows[2:] == [
        ["metrics: one", "2", "4", "1.00", "0.50"],
        ["networks, by pointing-game", "2", "4", "0.00", "0.50"],
    ]
    assert "networks, by" not in rankings([(case, one)])
    assert rankings([(case, dataclasses.replace(one, tables=()))]) == ""
