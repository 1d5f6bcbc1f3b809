"""The help that people read, the file of a run beside the command line, and completion."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from vbp.cli import main
from vbp.errors import UsageError
from vbp.flags import GROUPS, METAVARS, card_options, config_of, evaluation_options, job_options
from vbp.pipeline import RunConfig
from vbp.pipeline.evaluation import Card, Evaluation
from vbp.pipeline.runfile import parse_run

JOBS = ("explain", "plan", "evaluate", "card")
"""Commands with the options of the main job."""
ROOT = Path(__file__).parents[1]


def help_of(*command, width):
    done = CliRunner().invoke(main, [*command, "--help"], terminal_width=width)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("command", [(), *((name,) for name in main.commands)], ids=lambda command: " ".join(command))
def test_help_fits_the_terminal_and_holds_no_escapes(command):
    shown = help_of(*command, width=80)
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert [line for line in shown.splitlines() if line != line.rstrip()] == []
    assert not re.search(r"\\[a-z]|[^\n -~]", shown)  # neither spelt out nor as it is
    assert "..." not in shown.partition("Commands:")[2]  # short enough to be told in full


@pytest.mark.parametrize("job", ["explain", "sweep", "benchmark", "gpu_check"])
def test_a_job_of_its_own_knows_the_short_help_too(job):
    """click keeps the help option of a command's first call, so every call must make the same one."""
    command = main.commands[job.replace("_", "-")]
    assert command.get_help_option_names(click.Context(command)) == ["-h", "--help"]
    done = subprocess.run([sys.executable, "-m", f"jobs.{job}", "-h"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"-h, --help +Show this message and exit\.", done.stdout)


@pytest.mark.parametrize("command", JOBS)
def test_every_option_stands_in_one_group(command):
    shown = help_of(command, width=200)
    titles = re.findall(r"^(\w+):", shown, re.MULTILINE)
    own = {"plan": ["Estimate"], "evaluate": ["Evaluation"], "card": ["Evaluation"]}.get(command, [])
    cluster = ["Cluster"]
    assert titles == ["Usage", "Examples", *own, "Input", "Network", "Method", "Output", "Run", *cluster, "Other"]
    assert shown.partition("\nOther:\n")[2].split() == ["-h,", "--help", "Show", "this", "message", "and", "exit."]
    named = [name for names in GROUPS.values() for name in names]
    known = {param.name for name in JOBS for param in main.commands[name].params}
    assert sorted(named) == sorted(known)
    assert set(METAVARS) <= known


@pytest.mark.parametrize("command", main.commands)
def test_examples_stand_a_line_each_and_are_of_options_that_exist(command):
    shown = help_of(command, width=80)
    examples = re.findall(r"^  vbp (\w+) (.*)$", shown, re.MULTILINE)
    flags = {flag for param in main.commands[command].params for flag in param.opts}
    for name, arguments in examples:
        assert name == command
        assert {word for word in shlex.split(arguments) if word.startswith("--")} <= flags
    assert bool(examples) == (command in (*JOBS, "sweep", "attach"))


@pytest.fixture
def asked():
    """The `RunConfig` that a command line asks for."""

    @click.command()
    @job_options
    @click.pass_context
    def command(ctx, /, **options):
        command.found = config_of(ctx, options)

    def parse(*arguments):
        command.main([str(each) for each in arguments], "vbp explain", standalone_mode=False)
        return command.found

    return parse


FILE = """
input: photos
output: out
weights: random
outputs: [mask, maps]
mask-format: npy
refresh: true
mean: [0.5, 0.5, 0.5]
storage_options: {"s3://b": {anon: true}}
"""


def test_a_file_of_a_run(asked, tmp_path):
    (tmp_path / "run.yaml").write_text(FILE)
    kept = {"weights": "random", "outputs": ("mask", "maps"), "mask_format": "npy", "mean": (0.5, 0.5, 0.5)}
    kept |= {"storage_options": {"s3://b": {"anon": True}}, "refresh": True}
    assert asked("--config", tmp_path / "run.yaml") == RunConfig(input="photos", output="out", **kept)


def test_the_command_line_wins(asked, tmp_path):
    (tmp_path / "run.yaml").write_text(FILE)
    arguments = ["--weights", "imagenet", "--outputs", "mask,overlay", "--no-refresh", "--size", 96, "elsewhere"]
    found = asked(*arguments, "--config", tmp_path / "run.yaml")
    assert (found.input, found.output, found.weights, found.refresh) == ("elsewhere", "out", "imagenet", False)
    assert (found.outputs, found.size, found.mask_format) == (("mask", "overlay"), 96, "npy")


def test_the_reference_projects_flags_beside_a_file(asked, tmp_path):
    (tmp_path / "run.yaml").write_text("{input: photos, outputs: [mask], model: vgg19}")
    found = asked("--dir", "pictures", "--config", tmp_path / "run.yaml")
    assert (found.input, found.output, found.outputs, found.model) == ("pictures", "results", ("mask",), "vgg19")


def test_what_is_saved_asks_for_the_same(asked, tmp_path):
    arguments = ["photos", "out", "--max-failures", "3", "--mean", "0.1,0.2,0.3", "--suffixes", ".JPG,none", "--smooth"]
    arguments += [4, "--storage-options", '{"s3://b": {"region": "x"}}', "--batch-size", 8, "--multiply-input"]
    first = asked(*arguments, "--save-config", tmp_path / "run.yaml")
    assert asked("--config", tmp_path / "run.yaml") == first
    assert set(yaml.safe_load((tmp_path / "run.yaml").read_text())) == {
        "input", "output", "max_failures", "mean", "suffixes", "smooth", "storage_options", "batch_size",
        "multiply_input",
    }  # fmt: skip


def test_no_secret_is_saved(asked, tmp_path):
    with pytest.raises(UsageError, match=r"--weights \(=https://h/w.pth\) is given with a password or a query"):
        asked("a", "b", "--weights", "https://h/w.pth?sig=secret", "--save-config", tmp_path / "run.yaml")
    with pytest.raises(UsageError, match="would put a secret"):
        asked("a", "b", "--storage-options", '{"s3://b": {"token": "t"}}', "--save-config", tmp_path / "run.yaml")
    assert not (tmp_path / "run.yaml").exists()


def test_a_file_that_cannot_be_meant_is_one_sentence(tmp_path):
    (tmp_path / "run.yaml").write_text("wieghts: random")
    done = CliRunner().invoke(main, ["explain", "a", "b", "--config", str(tmp_path / "run.yaml")])
    said = f"vbp: {tmp_path}/run.yaml: wieghts is no setting of vbp explain: did you mean weights?\n"
    assert (done.exit_code, done.stderr) == (2, said)


def test_the_commands_of_the_page(photos, network_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(photos)
    Path("model.safetensors").symlink_to(network_file)
    page = (ROOT / "docs" / "command-line.md").read_text()
    commands, file, _ = re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for line in commands.splitlines():
        done = CliRunner().invoke(main, shlex.split(line)[1:])
        assert done.exit_code == 0, done.output
    assert Path("run.yaml").read_text() == file


@pytest.mark.parametrize(
    ("words", "expected"),
    [("vbp expl", "plain,explain"), ("vbp explain --pre", "plain,--preset"), ("vbp explain --fit p", "plain,pad")],
)
def test_completion(words, expected):
    typed = {"_VBP_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "from vbp.cli import main; main(prog_name='vbp')"
    done = subprocess.run([sys.executable, "-c", code], env=typed, cwd=ROOT, capture_output=True, text=True)
    assert expected in done.stdout.splitlines(), done.stderr


def test_an_evaluation_is_saved_and_read_with_its_options(tmp_path):
    @click.command("evaluate")
    @job_options
    @evaluation_options
    @click.pass_context
    def evaluate(ctx, /, **options):
        evaluate.found = config_of(ctx, options)

    file = tmp_path / "run.yaml"
    asked = ["photos", "out", "--truth", "boxes", "--methods", "vbp,edge", "--size", "96", "--save-config", str(file)]
    evaluate.main(asked, "vbp evaluate", standalone_mode=False)
    first = evaluate.found
    assert first.evaluation == Evaluation(truth="boxes", methods=("vbp", "edge"))
    evaluate.main(["--config", str(file)], "vbp evaluate", standalone_mode=False)
    assert evaluate.found == first
    evaluate.main(["--config", str(file), "--methods", "edge"], "vbp evaluate", standalone_mode=False)
    assert evaluate.found.evaluation == Evaluation(truth="boxes", methods=("edge",))


def test_a_file_of_an_evaluation_is_no_other_commands(asked, tmp_path):
    (tmp_path / "run.yaml").write_text("{input: photos, output: out, truth: boxes}")
    with pytest.raises(UsageError, match=r"run.yaml: truth is an option of vbp evaluate"):
        asked("--config", tmp_path / "run.yaml")


@pytest.mark.parametrize("text", ["truth: [boxes]", "methods: {vbp: 1}", "metrics: [1]", "sample: many"])
def test_options_of_an_evaluation_have_their_types(text):
    with pytest.raises(UsageError, match=r"run.yaml: (truth|methods|metrics|sample) \(=.*must be"):
        parse_run(text)


def test_a_card_is_saved_and_read_with_its_options(tmp_path):
    @click.command("card")
    @job_options
    @card_options
    @click.pass_context
    def card(ctx, /, **options):
        card.found = config_of(ctx, options)

    file = tmp_path / "run.yaml"
    asked = ["photos", "out", "--truth", "boxes", "--sample", "40", "--save-config", str(file)]
    card.main(asked, "vbp card", standalone_mode=False)
    first = card.found
    assert first.evaluation == Card(truth="boxes", sample=40)
    card.main(["--config", str(file)], "vbp card", standalone_mode=False)
    assert card.found == first
    file.write_text("{input: photos, output: out, methods: [vbp]}")
    with pytest.raises(UsageError, match=r"methods is an option of vbp evaluate, not of vbp card"):
        card.main(["--config", str(file)], "vbp card", standalone_mode=False)
