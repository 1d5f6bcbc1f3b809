"""The page shows exactly what the JSON file holds."""

import json

import pytest

from vbp.evidence.page import figure_row, number, page, table
from vbp.evidence.timing import Figure, Rate

MEASURED = {
    "machine": {"cpu": "Z80", "cores": 1},
    "batch_size": 8,
    "rounds": 3,
    "rates": [Rate("engine", "vbp", rates=[10.0, 12.0, 11.0]).as_json()],
    "figures": [
        Figure("engine", "over forward", [0.9, 0.96, 0.97], target=0.95).as_json(),
        Figure("start", "help", [0.7], "s", 0.5, at_most=True, detail="cold").as_json(),
        Figure("engine", "arithmetic", [30.7], "GFLOP").as_json(),
    ],
    "notes": ["LRP is left out."],
}


def test_the_whole_page():
    assert page(MEASURED) == (
        "cpu Z80, cores 1. Batches of 8; medians of 3 rounds.\n"
        "\n"
        "| part   | figure       | median     | least | greatest | target         | verdict     | detail |\n"
        "| ------ | ------------ | ---------- | ----- | -------- | -------------- | ----------- | ------ |\n"
        "| engine | over forward | 0.96       | 0.90  | 0.97     | at least 0.95  | reached     |        |\n"
        "| start  | help         | 0.70 s     |       |          | at most 0.50 s | falls short | cold   |\n"
        "| engine | arithmetic   | 30.7 GFLOP |       |          |                |             |        |\n"
        "\n"
        "| part   | case | median        | least | greatest |\n"
        "| ------ | ---- | ------------- | ----- | -------- |\n"
        "| engine | vbp  | 11.0 images/s | 10.0  | 12.0     |\n"
        "\n"
        "LRP is left out.\n"
    )


def test_what_was_not_measured_has_no_table():
    text = page(MEASURED | {"rates": [], "figures": [], "notes": []})
    assert text == "cpu Z80, cores 1. Batches of 8; medians of 3 rounds.\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.000"),
        (0.0123, "0.012"),
        (0.5, "0.50"),
        (9.994, "9.99"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (-2, "-2.00"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_a_table_without_rows():
    assert table(("a", "bc"), []) == "| a   | bc  |\n| --- | --- |"


def test_a_row_without_target():
    assert figure_row(Figure("p", "n", [1.0, 3.0, 2.0], "s").as_json()) == ("n", "2.00 s", "1.00", "3.00", "", "", "")


def test_committed_pages_are_their_files(request):
    files = sorted((request.config.rootpath / "benchmarks").glob("*.json"))
    assert files
    for file in files:
        assert file.with_suffix(".md").read_text() == page(json.loads(file.read_text())), file.name
