"""What a person sees: lines in logs, a table at the end."""

import pytest

import vbp.terminal
from vbp.pipeline import Summary
from vbp.terminal import Lines, print_summary


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
