"""The options of a command, and the fields of a run's configuration, as Markdown tables from the code itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import click

from vbp.cli import main
from vbp.flags import GROUPS

STATED = re.compile(r" ?\[default: (.*)\]")
"""A default that the help tells in words, since it depends on the network or the machine."""


def tables(name: str) -> Iterator[str]:
    """Lines of Markdown: every option of the command ``vbp NAME``, its default, and what it does."""
    command = main.commands[name]
    context = click.Context(command, info_name=name)
    yield "```"
    yield " ".join(["vbp", name, *command.collect_usage_pieces(context)])
    yield "```\n"
    for title, options in grouped(command).items():
        yield f"**{title}**\n"
        yield "| option | default | |"
        yield "|---|---|---|"
        yield from map(row, options)
        yield ""


def grouped(command: click.Command) -> dict[str, list[click.Option]]:
    """The options under the headings that the command's help has."""
    options = {str(option.name): option for option in command.params if isinstance(option, click.Option)}
    if "directory" not in options:  # the help of all but the main job has no headings
        return {"Options": list(options.values())}
    named = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "Other": [name for name in options if name not in named]}
    found = {title: [options[name] for name in names if name in options] for title, names in groups.items()}
    return {title: members for title, members in found.items() if members}


def row(option: click.Option) -> str:
    """One line of the table."""
    own = "--" + str(option.name).replace("_", "-")
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=lambda name: name != own))
    help_text = option.help or ""
    stated = STATED.search(help_text)
    told = STATED.sub("", help_text)
    if isinstance(option.type, click.Choice):
        told += " Choices: " + ", ".join(f"`{choice}`" for choice in option.type.choices) + "."
    return f"| {names} | {stated[1] if stated else default(option)} | {told} |".replace("\n", " ")


def default(option: click.Option) -> str:
    """What holds where the option is not given; nothing where that is said by its absence."""
    if option.is_flag:
        return "off"
    value = option.default
    return f"`{value}`" if isinstance(value, (str, int, float)) and value not in ("", "{}") else ""


def fields(configuration: type[Any]) -> Iterator[str]:
    """Lines of Markdown: every field of a dataclass like ``RunConfig``, its type, its default and its help."""
    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    for field in dataclasses.fields(configuration):
        kind = str(field.type).replace("|", r"\|")
        given = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        told = STATED.sub("", field.metadata.get("help", ""))
        yield f"| `{field.name}` | {kind} | {given} | {told} |"
