"""The commands of the page can be typed: its files exist, and its commands have the options that it shows."""

import re
import shlex
from pathlib import Path

import click
import pytest
from ray.scripts.scripts import cli as ray_cli

from vbp.cli import explain
from vbp.cli import main as vbp_cli

FOLDER = Path(__file__).parents[2] / "cluster"
TEXT = (FOLDER / "README.md").read_text()


def commands(text):
    """Every command of ours and Ray's that the page shows, in blocks and in sentences, as words."""
    shown = [
        line for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]
    shown += [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    for line in shown:
        words = shlex.split(line)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        yield words


def faults(text):
    for words in commands(text):
        if words[:1] == ["vbp"] and len(words) > 1:
            yield from option_faults(vbp_cli, words)
        elif words[:1] == ["ray"] and len(words) > 1:
            mine, _, job = " ".join(words).partition(" -- ")
            yield from option_faults(ray_cli, shlex.split(mine))
            if job:
                assert job.startswith("python -m jobs.explain ")
                yield from unknown(explain, job.split())
    for path in re.findall(r"(?<![\w/.-])cluster/[\w./-]*\w", text):
        if not (FOLDER.parent / path).exists():
            yield f"there is no {path}"
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        if not (FOLDER / path).exists():
            yield f"there is no {path}"
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE)}
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        if anchor not in headings:
            yield f"there is no section {anchor}"


def option_faults(group, words):
    """The options of a command line that the command does not have."""
    command, rest = group, words[1:]
    while isinstance(command, click.Group) and rest:
        found = command.commands.get(rest[0])
        if found is None:
            return [f"{' '.join(words)}: no command {rest[0]}"]
        command, rest = found, rest[1:]
    return unknown(command, rest)


def unknown(command, words):
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    return [
        f"{command.name}: no option {word}"
        for word in words
        if word.startswith("--") and word.split("=")[0] not in known
    ]


def test_the_page_is_right():
    assert [*faults(TEXT)] == []


def test_it_shows_a_command_for_each_way():
    firsts = {tuple(words[:2]) for words in commands(TEXT)}
    assert {
        ("kubectl", "apply"),
        ("ray", "up"),
        ("ray", "down"),
        ("ray", "start"),
        ("ray", "job"),
        ("sky", "jobs"),
    } <= firsts
    assert ("sbatch", "cluster/slurm/vbp.sbatch") in firsts


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--num-cpus=0", "--num-cpu=0"),
        ("ray job submit", "ray jobs submit"),
        ("--device cuda", "--devices cuda"),
        ("vbp benchmark", "vbp bench"),
        ("vbp status s3://BUCKET/out --watch", "vbp status s3://BUCKET/out --wach"),
        ("cluster/launcher/aws.yaml", "cluster/launcher/aw.yaml"),
        ("](kuberay)", "](kubray)"),
        ("(#bare-hosts)", "(#bare-host)"),
    ],
)
def test_a_wrong_page_is_noticed(old, new):
    assert old in TEXT
    assert [*faults(TEXT.replace(old, new))]


def test_the_runtime_environment_has_known_fields_and_leaves_the_job_its_code():
    import yaml
    from ray.runtime_env import RuntimeEnv

    fields = yaml.safe_load((FOLDER / "runtime_env.yaml").read_text())
    assert fields.keys() <= RuntimeEnv.known_fields
    assert fields["working_dir"] == "."
    assert not {"vbp", "jobs", "vbp/", "*"} & set(fields["excludes"])
    rooms = {folder.name for folder in (FOLDER.parent / "vbp").rglob("*") if folder.is_dir()} - {"__pycache__"}
    assert not rooms & set(fields["excludes"]), "a name without a / in front is left out at any depth"
