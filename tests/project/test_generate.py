"""The generator of the site: tables from the code, and links that also work on the site."""

import re

import pytest

from docs.generate import columns
from docs.generate.hook import DIRECTIVE, ELSEWHERE, ROOT, documented, filled, imported, rewritten
from docs.generate.options import fields, tables
from vbp.cli import main
from vbp.columns import INDEX_SCHEMA, SCORES
from vbp.pipeline import RunConfig

PAGE = (ROOT / "docs" / "reference" / "options.md").read_text()


def test_every_command_has_its_tables():
    assert {name for kind, name in DIRECTIVE.findall(PAGE) if kind == "options of"} == set(main.commands)


@pytest.mark.parametrize("name", main.commands)
def test_every_option_of_a_command_stands_in_a_table(name):
    rows = [line for line in tables(name) if line.startswith("| `")]
    shown = [found for row in rows for found in re.findall(r"`(--[\w-]+)`", row.split("|")[1])]
    assert sorted(shown) == sorted({opt for param in main.commands[name].params for opt in param.opts if "--" in opt})


def test_tables_have_the_headings_of_the_help_the_defaults_and_the_choices():
    text = "\n".join(tables("explain"))
    assert re.findall(r"^\*\*(\w+)\*\*$", text, re.MULTILINE)[:3] == ["Input", "Network", "Method"]
    assert "| `--weights`, `--cp`, `--checkpoint` | imagenet, or own where the network brings them |" in text
    assert "| `--refresh` | off |" in text
    assert "| `--mean` | the network's own |" in text
    assert "Choices: `crop`, `pad`, `stretch`, `original`, `trained`." in text


def test_the_page_of_the_columns_is_current_and_has_each_once():
    page = columns.PAGE.read_text()
    assert columns.renewed(page) == page, "run python -m docs.generate.columns"
    index, _, scores = page.partition(columns.SCORES)
    assert sorted(columns.ROW.findall(index)) == sorted(INDEX_SCHEMA.names)
    assert columns.ROW.findall(scores) == SCORES.names


@pytest.mark.parametrize(
    ("source", "page", "link", "expected"),
    [
        ("CHANGELOG.md", "changelog.md", "[g](docs/guarantees.md)", "[g](guarantees.md)"),
        ("docs/how-to/cluster.md", "how-to/cluster.md", "[c](../../cluster/README.md#x)", "[c](../cluster.md#x)"),
        ("benchmarks/README.md", "benchmarks.md", "[e](epyc-2-cores.md)", "[e](benchmarks/epyc-2-cores.md)"),
        ("cluster/README.md", "cluster.md", "[`iam/`](iam)", "`iam/`"),
        ("cluster/README.md", "cluster.md", "[b](../benchmarks/README.md)", "[b](benchmarks.md)"),
        ("docs/method.md", "method.md", "[paper](https://arxiv.org/abs/1)", "[paper](https://arxiv.org/abs/1)"),
        ("docs/index.md", "index.md", "![p](pictures/a.jpg)", "![p](pictures/a.jpg)"),
        ("docs/index.md", "index.md", "[s](#here)", "[s](#here)"),
    ],
)
def test_links_lead_to_pages_of_the_site(source, page, link, expected):
    assert rewritten(link, source, page) == expected


def test_every_example_stands_on_its_page_as_it_is():
    page = (ROOT / "docs" / "how-to" / "examples.md").read_text()
    shown = DIRECTIVE.sub(filled, page)
    assert [path.name for path in (ROOT / "examples").glob("*.py") if path.read_text() not in shown] == []


def test_pages_from_elsewhere_are_there():
    assert [source for source in ELSEWHERE if not (ROOT / source).exists()] == []


def test_every_field_of_a_configuration_stands_in_its_table():
    text = "\n".join(fields(RunConfig))
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(RunConfig.__dataclass_fields__)
    assert "| `smooth` | int | `0` | Average the masks of this many noisy copies of each image;" in text
    assert "| `mean` | tuple[float, ...] \\| None | `None` |" in text


def test_python_is_documented_under_the_name_that_is_imported():
    lines = list(documented("vbp.pipeline.Summary"))
    assert lines == ["::: vbp.pipeline.summary.Summary", "    options:", "      heading: vbp.pipeline.Summary"]


def test_every_name_of_the_page_can_be_imported():
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    assert all(imported(name) for _, name in DIRECTIVE.findall(page))
