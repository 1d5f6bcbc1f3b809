"""Writes types and meanings of the index's columns into their page: ``python -m docs.generate.columns``.

The page says which columns stand together, and what is to be known of them; what each is, `vbp.columns` says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vbp.columns import INDEX_COLUMNS, SCORE_COLUMNS, Column

PAGE = Path(__file__).parents[1] / "reference" / "columns.md"
SCORES = "\n## Scores\n"
"""Heading of the part that is about the scores."""
ROW = re.compile(r"^\| `(\w+)` \|.*$", re.MULTILINE)


def renewed(page: str) -> str:
    """The page with every row of its tables as the code has it.

    Raises:
        KeyError: a row is of no column of the index, or of the scores.
    """
    index, heading, scores = page.partition(SCORES)
    return _renewed(index, INDEX_COLUMNS) + heading + _renewed(scores, SCORE_COLUMNS)


def _renewed(text: str, columns: Sequence[Column]) -> str:
    rows = {column.name: f"| `{column.name}` | {column.type} | {column.meaning} |" for column in columns}
    return ROW.sub(lambda match: rows[match[1]], text)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
