"""The flags of the main job: one for every field of ``RunConfig``, and the help that shows them by group."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

import click
from click.core import ParameterSource

from vbp.choices import choices_of
from vbp.errors import UsageError
from vbp.pipeline.config import RunConfig, option_fields
from vbp.pipeline.evaluation import SAMPLE, USUAL_METHODS, USUAL_METRICS, Card, Evaluation

ALIASES = {
    "weights": ("--cp", "--checkpoint"),
    "batch_size": ("--bs", "--batch_size"),
    "seed": ("--ms", "--manual_seed"),
}
"""The reference project's names for our flags."""
RESULTS = "results"
"""Folder of the reference project's results; its flags still write there."""

GROUPS: Mapping[str, Sequence[str]] = {
    "Estimate": ("price_per_hour", "images_per_second"),
    "Evaluation": ("truth", "sample", "methods", "metrics"),
    "Input": ("input", "limit", "refresh", "suffixes", "max_bytes", "directory"),
    "Network": (
        "model", "model_args", "submodule", "weights", "size", "fit", "device", "precision", "batch_size", "mean",
        "std", "channels", "interpolation", "fast_decode", "decode",
    ),
    "Method": ("preset", "stages", "target", "smooth", "noise", "pooling", "multiply_input", "seed"),
    "Output": (
        "output", "outputs", "overlay_style", "mask_format", "frame", "layout", "select", "classes",
    ),
    "Run": (
        "retry_failed", "max_failures", "resume_mode", "config_file", "save_config", "runner", "storage_options",
        "as_json",
    ),
    "Cluster": ("address", "workers", "node_labels", "shard_size"),
}  # fmt: skip
"""Parameters by group, as in the help; in a group, rarely needed ones come last."""
METAVARS = {
    "model": "NAME",
    "model_args": "JSON",
    "submodule": "NAME",
    "weights": "NAME|FILE|URL",
    "stages": "LIST",
    "smooth": "N",
    "noise": "SHARE",
    "size": "N",
    "mean": "X,X,X",
    "std": "X,X,X",
    "seed": "N",
    "classes": "FILE",
    "outputs": "LIST",
    "max_failures": "N|N%",
    "suffixes": "LIST",
    "max_bytes": "N",
    "limit": "N",
    "batch_size": "N",
    "shard_size": "N",
    "workers": "N",
    "node_labels": "LIST",
    "storage_options": "JSON",
}


CONTEXT: Mapping[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
"""click's settings for every command, whether it runs below ``vbp`` or as a program of its own in ``jobs/``."""


class Command(click.Command):
    """A command whose help shows its parameters by group, and examples to copy.

    Args:
        examples: lines to copy, printed as they stand.
    """

    def __init__(self, *args: Any, examples: str = "", **settings: Any) -> None:
        super().__init__(*args, **{"context_settings": CONTEXT} | settings)
        # click keeps the lines of a paragraph that begins with this mark; a raw docstring spells it out
        self.help = self.help and self.help.replace("\\b\n", "\b\n")
        self.examples = examples

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """Of any context, also of one without our settings: click keeps the help option that it makes first."""
        return list(CONTEXT["help_option_names"])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write examples, then the parameters."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(f"{' ' * formatter.current_indent}{line}".rstrip() + "\n")
        records = {str(param.name): record for param in self.get_params(ctx) if (record := _record(param, ctx))}
        is_of_the_job = "directory" in records
        groups = GROUPS if is_of_the_job else {}
        rest = records.keys() - {name for names in groups.values() for name in names}
        title_of_rest = "Other" if is_of_the_job else "Options"
        for title, names in (*groups.items(), (title_of_rest, [name for name in records if name in rest])):
            rows = [records[name] for name in names if name in records]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _record(param: click.Parameter, ctx: click.Context) -> tuple[str, str] | None:
    """A parameter's entry in the help; arguments of the main job have the help of their fields."""
    if isinstance(param, click.Argument):
        field = RunConfig.__dataclass_fields__.get(str(param.name))
        return (str(param.name).upper(), field.metadata["help"]) if field and not param.required else None
    return param.get_help_record(ctx)


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """INPUT, OUTPUT and all flags of the main job."""
    hints = get_type_hints(RunConfig)
    for field in reversed(option_fields()):
        if field.name not in ("input", "output"):
            command = _flag(field, hints[field.name])(command)
    command = click.option(
        "--save-config", metavar="FILE", help="Write INPUT, OUTPUT and the options to FILE, for --config."
    )(command)
    command = click.option(
        "--config",
        "config_file",
        metavar="FILE",
        help="YAML of options by their names, input and output too; the command line wins.",
    )(command)
    command = click.option(
        "--dir", "--directory", "directory", metavar="DIR",
        help="INPUT, as the reference project spells it; OUTPUT is results/.",
    )(command)  # fmt: skip
    place = click.Path()  # the shell completes it as a file
    command = click.argument("output", required=False, type=place)(command)
    return click.argument("input", required=False, type=place)(command)


def evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags of ``vbp evaluate`` that the main job has not."""
    for name, help_text in (
        ("metrics", f"Comma-separated [default: of {', '.join(USUAL_METRICS)} what can be measured]."),
        ("methods", f"Comma-separated [default: {', '.join(USUAL_METHODS)}]."),
    ):
        command = click.option(f"--{name}", metavar="LIST", help=help_text, callback=_names)(command)
    return truth_option(command)


def card_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags of ``vbp card`` that the main job has not."""
    help_text = "At most so many images, chosen by their names' hashes."
    command = click.option("--sample", metavar="N", type=int, default=SAMPLE, show_default=True, help=help_text)(
        command
    )
    return truth_option(command)


def truth_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the objects are."""
    return click.option(
        "--truth",
        metavar="PLACE",
        help="True objects: a COCO file (.json), or a folder of .xml or masks named like the images.",
    )(command)


def config_of(ctx: click.Context, options: dict[str, Any]) -> RunConfig:
    """The configuration from the arguments of `job_options`, and of `evaluation_options` or `card_options`.

    ``--save-config`` also writes it to a file.

    Raises:
        UsageError: the arguments are wrong.
    """
    from vbp.pipeline.runfile import EVALUATION, read_run, save_run

    input, output, directory = (options.pop(name) for name in ("input", "output", "directory"))
    file, target = options.pop("config_file"), options.pop("save_config")
    kept = {} if file is None else read_run(file)
    places = kept.pop("input", None), kept.pop("output", None)
    if strange := kept.keys() - options.keys():
        name = min(strange)
        raise UsageError(f"{file}: {name} is an option of vbp {EVALUATION[name]}, not of vbp {ctx.command.name}.")
    given = {name for name in options if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    options |= {name: value for name, value in kept.items() if name not in given}
    if directory is not None:
        input, output, options = _as_reference(input, output, directory, options, given | set(kept))
    input, output = input or places[0], output or places[1]
    if input is None or output is None:
        raise UsageError(f"Both INPUT and OUTPUT are needed: vbp {ctx.command.name} INPUT OUTPUT.")
    evaluation = {name: options.pop(name) for name in EVALUATION if name in options}
    kind = Card if "sample" in evaluation else Evaluation
    asked = kind(**evaluation) if evaluation else None
    config = RunConfig(input=input, output=output, evaluation=asked, **options)
    if target is not None:
        save_run(config, target)
    return config


def _as_reference(
    input: str | None, output: str | None, directory: str, options: dict[str, Any], given: set[str]
) -> tuple[str, str, dict[str, Any]]:
    """The meaning of ``--dir``: results, also ``input``, in ``results/``, and the network of the checkpoint."""
    if input is not None and output is not None:
        raise UsageError(f"INPUT (={input}) and --dir (={directory}) both name the images; give one of them.")
    if "outputs" not in given:
        options["outputs"] = ("input", "mask", "overlay")
    if "model" not in given and "weights" in given:
        from vbp.networks.sources.torchvision import fitting_model

        options["model"] = fitting_model(options["weights"], options["storage_options"]) or options["model"]
    return directory, input or output or RESULTS, options


def _flag(field: dataclasses.Field[Any], hint: Any) -> Callable[[Any], Any]:
    """The click option of one field."""
    name, help_text = field.name.replace("_", "-"), field.metadata["help"]
    if hint is bool:
        return click.option(f"--{name}/--no-{name}", field.name, help=help_text)
    settings: dict[str, Any] = {"help": help_text, "default": field.default, "show_default": True}
    settings["metavar"] = METAVARS.get(field.name)
    if choices_of(hint):
        settings |= {"type": click.Choice(choices_of(hint)), "show_default": field.default is not None}
    elif field.name in ("mean", "std"):
        settings |= {"callback": _numbers, "show_default": False}
    elif field.name == "outputs":
        settings |= {"default": ",".join(RunConfig.outputs), "callback": lambda _c, _p, v: tuple(v.split(","))}
    elif field.name == "suffixes":
        settings |= {"callback": lambda _c, _p, v: v and tuple(v.split(",")), "show_default": False}
    elif field.name in ("storage_options", "model_args"):
        settings |= {"default": "{}", "callback": json_object, "show_default": False}
    elif hint == int | None:
        settings |= {"callback": _whole_number_or_auto, "show_default": False}
    else:
        settings["type"] = hint if isinstance(hint, type) else str
    return click.option(f"--{name}", *ALIASES.get(field.name, ()), field.name, **settings)


def json_object(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, Any]:
    """The value of an option that takes a JSON object."""
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"is not JSON ({error}).", ctx, param) from error
    if not isinstance(parsed, dict):
        like = (
            '{"depth": 18}' if param.name == "model_args" else '{"s3://bucket": {"region": "eu-west-1"}}, by URL prefix'
        )
        raise click.BadParameter(f"must be an object like {like}.", ctx, param)
    return parsed


def _whole_number_or_auto(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None or value == "auto":
        return None
    try:
        return int(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a whole number nor auto.", ctx, param) from error


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(value.split(",")) if value else ()


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(number) for number in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} must be numbers, like 0.485,0.456,0.406.", ctx, param) from error
