"""Two versions in alternating rounds: what is read from their pages, and what the table shows."""

from pathlib import Path

from vbp.evidence.beside import OWN, compared, resume_in
from vbp.evidence.scale import figure, markdown

NAME = "the whole command, to know that nothing is left of 100 images, on a disk"


def test_the_seconds_of_a_page_of_scale():
    figures = [figure("pending_shards", 7, "s"), figure(NAME, 1234.5, "s", 10, "3.2 s of CPU")]
    assert resume_in(markdown(figures, ["resume"])) == {NAME: 1234.0, f"{NAME}, of CPU": 3.2}


def test_the_table_shows_the_spread():
    turns = {"other": [{"a": 1.0}, {"a": 3.0}, {"a": 2.0}], "this": [{"a": 1.5}]}
    assert compared(turns).splitlines()[-1] == "| a       | 2.00 s (1.00 to 3.00) | 1.50 s (1.50 to 1.50) |"


def test_its_own_tree():
    assert Path(__file__).parents[2] == OWN
