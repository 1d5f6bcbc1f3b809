"""What a person sees: lines in logs, a table at the end."""

import io
import re
import threading

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

import vbp.terminal
from vbp.pipeline import Summary
from vbp.terminal import Bar, JobLog, Lines, Rows, print_summary, telling, watching


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(vbp.terminal.time, "monotonic", lambda: now[0])
    return now


def test_a_line_has_rate_failures_and_time_left(clock, capsys):
    lines = Lines()
    lines.started(1000, 200)
    clock[0] += 60  # starting up counts for nothing
    lines.wrote(50, 0)
    lines.show()
    for _ in range(10):
        clock[0] += 1
        lines.wrote(9, 1)
    lines.show()
    assert capsys.readouterr().err.splitlines() == [
        "1000 images, 200 done before",
        "250 of 1000 images, 0 failed now",
        "350 of 1000 images, 10 failed now, 10.0/s, 1 min 05 s left",
    ]


def test_a_line_says_what_is_waited_for(clock, capsys):
    lines = Lines()
    clock[0] += 10
    lines.show()
    lines.doing("loading vgg16")
    clock[0] += 20
    lines.show()
    lines.doing("listing INPUT")
    lines.listed(100)
    lines.show()
    lines.started(100, 0)
    for step in (50, 15, 10, 30):
        clock[0] += step
        lines.show()
        lines.wrote(5, 0) if step == 15 else None
    lines.wrote(95, 0)
    lines.show()
    lines.indexed(60)
    lines.show()
    assert [line.split(" failed")[-1] for line in capsys.readouterr().err.splitlines()] == [
        "starting for 10.0 s",
        "loading vgg16 for 20.0 s",
        "listing INPUT for 0.0 s, 100 images so far",
        "100 images",
        ", no results yet after 50.0 s",
        ", no results yet after 1 min 05 s",
        "",
        ", nothing new for 40.0 s",
        ", 2.4/s, 0.0 s left, making the index",
        ", 2.4/s, 0.0 s left, making the index (60 so far)",
    ]


def test_the_last_words_are_shown_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(vbp.terminal, "LINE_SECONDS", 0.01)
    with telling() as tell:
        shown = ""
        tell("1 row\x1b examined")
        while not shown:
            shown = capsys.readouterr().err
    assert "1 row" in shown
    assert "\x1b" not in shown


def test_lines_come_by_themselves_and_stop_with_the_run(monkeypatch, capsys):
    monkeypatch.setattr(vbp.terminal, "LINE_SECONDS", 0.01)
    before = threading.active_count()
    with watching() as observer:
        observer.started(10, 0)
        shown = ""
        while shown.count("no results yet") < 3:
            shown += capsys.readouterr().err
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_listing_shows_its_count_on_a_terminal():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, no_color=True)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn())
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = Bar(progress)
        bar.doing("listing INPUT")
        bar.listed(12_000)
        progress.refresh()
        assert "listing INPUT 12000/?" in screen.getvalue()
        bar.started(12_345, 0)
        progress.refresh()
        assert re.search(r"explaining +0/12345", screen.getvalue())
        bar.indexed(5_000)  # of another run than those at work
        bar.wrote(12_345, 0)
        progress.refresh()
        assert "making the index" not in screen.getvalue()
        bar.indexed(10_000)
        progress.refresh()
        assert re.search(r"making the index +10000/12345", screen.getvalue())


def test_the_table(capsys):
    summary = Summary(
        run_id="r", output="/out", images=103, ok=100, error=3, reasons={"decode: CorruptImageError": 3}, computed=103,
        failures_allowed=1, seconds=10.3, stage_seconds={"fetch": 0.5, "explain": 9.0}, runner="local", device="cpu",
        precision="float32", batch_size=8, workers=1, classes="folders are class names",
        left_out={".heic": 3, "system": 1}, max_failures="1%",
    )  # fmt: skip
    print_summary(summary)
    shown = capsys.readouterr().out
    for text in (
        "103",
        "3 x decode: CorruptImageError",
        "10.0 a second",
        "fetch 0.5, explain 9.0",
        "/out",
        "3 end in .heic, 1 is hidden or a system file",
        "failed the run 3 of 103 images failed, 2.91 %, and --max-failures allows 1 (1% of 103 images): no _SUCCESS",
        "next vbp failures /out shows why; or accept them by --max-failures",
    ):
        assert text in " ".join(shown.split())


def test_a_run_from_the_start_counts_all_failures(capsys):
    lines = Lines()
    lines.started(8, 0)
    lines.wrote(3, 2)
    lines.show()
    assert capsys.readouterr().err.splitlines()[-1] == "5 of 8 images, 2 failed"


@pytest.mark.parametrize(
    ("computed", "classes_match", "is_shown"), [(5, True, True), (5, False, False), (0, False, True)]
)
def test_the_reason_on_classes_is_said_once(computed, classes_match, is_shown, capsys):
    """Where it matches none, a run that works has said why at its start."""
    print_summary(
        Summary(
            run_id="r", output="/out", images=5, ok=5, error=0, computed=computed, failures_allowed=1, seconds=1.0,
            runner="local", device="cpu", precision="float32", batch_size=8, workers=1, classes="the reason",
            classes_match=classes_match,
        )
    )  # fmt: skip
    assert ("the reason" in capsys.readouterr().out) == is_shown


@pytest.mark.parametrize("as_json", [False, True])
def test_the_log_of_a_job_leaves_standard_output_to_the_summary_in_json(as_json, capsys):
    log = JobLog(as_json)
    for words in ("Joining Ray.\n22 ima", 'ges\n{"run_id": "r", ', '"images": 22}\n(raylet) {a worker} died', ""):
        log.write(words)
    log.end()
    out, err = capsys.readouterr()
    summary, others = '{"run_id": "r", "images": 22}', ["Joining Ray.", "22 images", "(raylet) {a worker} died"]
    if as_json:
        assert (out.splitlines(), err.splitlines()) == ([summary], others)
    else:
        assert (out.splitlines(), err) == ([*others[:2], summary, others[2]], "")


def test_no_path_is_cut_short(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = "/data/" + "long/" * 60 + "end"
    table = Rows(show_header=False, box=None)
    table.add_row("place", path)
    Console(width=80).print(table)
    shown = "".join(line.removeprefix(" place ").strip() for line in capsys.readouterr().out.splitlines())
    assert shown == path
