"""Characters that control a terminal or a page are shown as codes, in every kind of output."""

import io
import json

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.progress import Progress

from vbp import cli, tables, terminal
from vbp.errors import UsageError
from vbp.plain import plain
from vbp.review.failures import Cause, Failures

NASTY = "a\x1b]0;title\x07\x9b31m\x85\u202egpj.exe\u2066\u2028\x7f\r\nb[bold]c[/bold]\udcff"
SHOWN = r"a\u001b]0;title\u0007\u009b31m\u0085\u202egpj.exe\u2066\u2028\u007f\u000d\u000ab[bold]c[/bold]\udcff"
OBEYED = [c for c in map(chr, [*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])]


@pytest.mark.parametrize("character", [*OBEYED, "\u2028", "\u2029", "\u200e", "\u200f", "\u061c", "\ud800"])
def test_characters_that_are_obeyed(character):
    assert plain(f"x{character}y") == f"x\\u{ord(character):04x}y"


@pytest.mark.parametrize("text", ["photo.jpg", "Ünïcödé 写真　二.jpg", "👩‍👧.png", "می‌خواهم", "a b-c_d~(1)[2]'\"\\"])
def test_names_of_all_scripts_stay(text):
    assert plain(text) == text


def test_what_is_kept_and_what_json_says():
    assert plain(NASTY) == SHOWN
    assert plain("a\nb\tc", keep="\n") == "a\nb\\u0009c"
    assert json.loads(plain(json.dumps({"key": NASTY}, ensure_ascii=False))) == {"key": NASTY}


def test_notes_in_a_log(capsys):
    terminal.Lines().note(NASTY)
    assert capsys.readouterr().err == SHOWN + "\n"


def test_notes_beside_a_bar():
    screen = io.StringIO()
    with Progress(console=Console(file=screen, force_terminal=True, width=200, color_system=None)) as progress:
        terminal.Bar(progress).note(NASTY)
    assert SHOWN in screen.getvalue()


@pytest.mark.parametrize("as_json", [False, True])
def test_the_log_of_a_job(capsys, as_json):
    log = terminal.JobLog(as_json)
    log.write(f"x{NASTY}\n")
    log.end()
    written = capsys.readouterr()
    assert not set("\x1b\x9b\u202e\u2066") & set(written.out + written.err)


def test_tables(capsys, monkeypatch):
    monkeypatch.setattr(tables, "_LOG_WIDTH", 2000)
    cause = Cause(stage=NASTY, type=NASTY, message=NASTY, images=2, example=NASTY, keys=(NASTY, NASTY))
    tables.print_failures(Failures(output="out", images=2, causes=(cause,)))
    printed = capsys.readouterr().out
    assert not set("\x1b\x9b\u202e\u2066\r") & set(printed)
    assert "[bold]c[/bold]" in printed


def test_sentences_of_errors(monkeypatch):
    def fail(*arguments):
        raise UsageError(NASTY)

    monkeypatch.setattr("vbp.review.status.status", fail)
    result = CliRunner().invoke(cli.main, ["status", "out"])
    assert (result.exit_code, result.stderr) == (2, f"vbp: {SHOWN}\n")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_keys_go_to_other_programs_as_they_are(monkeypatch, is_terminal):
    """And to a terminal as codes."""
    key = "a\u202eb\x9bc"
    monkeypatch.setattr("vbp.review.output.Output.open", lambda *arguments: None)
    monkeypatch.setattr("vbp.review.failures.failed_keys", lambda output: [key])
    monkeypatch.setattr(cli, "_is_terminal", lambda: is_terminal)
    result = CliRunner().invoke(cli.main, ["failures", "out", "--keys"])
    assert result.stdout == (plain(key) if is_terminal else key) + "\n"
    assert "\u202e" not in CliRunner().invoke(cli.main, ["failures", "out", "--keys", "--json"]).stdout
