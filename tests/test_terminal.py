"""What a person sees: lines in logs, a table at the end."""

import io
import re

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

import vbp.terminal
from vbp.pipeline import Summary
from vbp.terminal import Bar, Lines, print_summary


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(vbp.terminal.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_with_rate_failures_and_time_left(clock, capsys):
    lines = Lines()
    lines.started(1000, 200)
    clock[0] += 60  # starting up counts for nothing
    lines.wrote(50, 0)
    for _ in range(20):
        clock[0] += 1
        lines.wrote(9, 1)
    assert capsys.readouterr().err.splitlines() == [
        "1000 images, 200 done before",
        "250 of 1000 images, 0 failed",
        "350 of 1000 images, 10 failed, 10.0/s, 1 min 05 s left",
        "450 of 1000 images, 20 failed, 10.0/s, 55.0 s left",
    ]


def test_a_listing_shows_its_count_in_a_log(clock, capsys):
    lines = Lines()
    for images in range(1000, 31_000, 1000):
        clock[0] += 1
        lines.listed(images)
    assert capsys.readouterr().err.splitlines() == [
        "10000 images listed",
        "20000 images listed",
        "30000 images listed",
    ]


def test_a_listing_shows_its_count_on_a_terminal():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, no_color=True)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn())
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = Bar(progress)
        bar.listed(12_000)
        progress.refresh()
        assert "listing 12000/?" in screen.getvalue()
        bar.started(12_345, 0)
        progress.refresh()
        assert re.search(r"explaining +0/12345", screen.getvalue())


def test_the_table(capsys):
    summary = Summary(
        run_id="r", output="/out", images=103, ok=100, error=3, reasons={"decode: CorruptImageError": 3}, computed=103,
        failures_allowed=1, seconds=10.3, stage_seconds={"fetch": 0.5, "explain": 9.0}, runner="local", device="cpu",
        precision="float32", batch_size=8, workers=1, classes="folders are class names",
    )  # fmt: skip
    print_summary(summary)
    shown = capsys.readouterr().out
    for text in (
        "103",
        "3 x decode: CorruptImageError",
        "10.0 a second",
        "fetch 0.5, explain 9.0",
        "/out",
        "no _SUCCESS",
    ):
        assert text in shown
