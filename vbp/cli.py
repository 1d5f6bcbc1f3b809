"""The ``vbp`` command: parse, call, translate exceptions into sentences and exit codes.

Exit codes: 0 done; 1 crashed; 2 usage or configuration, found before any work; 3 done, but more images failed than
``--max-failures`` (or ``vbp validate`` found faults); 4 interrupted: run the same command again to continue.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from vbp.choices import Preset, Runner, choices_of
from vbp.errors import InterruptedRunError, LeaseLostError, UsageError, VBPError
from vbp.flags import CONTEXT, Command, card_options, config_of, evaluation_options, job_options, json_object
from vbp.plain import plain

if TYPE_CHECKING:
    from vbp.pipeline.config import RunConfig
    from vbp.pipeline.sweep.sweepfile import Sweep
    from vbp.review.card import Card
    from vbp.review.evaluation import Evaluated

Shown = TypeVar("Shown", "Evaluated", "Card")

EXIT_CRASHED, EXIT_USAGE, EXIT_WRONG, EXIT_INTERRUPTED = 1, 2, 3, 4
WATCH_SECONDS = 5


EXPLAIN_EXAMPLES = """
vbp explain photos out --weights demo
vbp explain photos out --weights model.safetensors --outputs mask
vbp explain s3://bucket/photos s3://bucket/out --address http://HEAD:8265
vbp explain photos out --size 320 --save-config run.yaml
vbp explain --config run.yaml --refresh
"""
PLAN_EXAMPLES = """
vbp plan photos out --weights model.safetensors --price-per-hour 3
vbp plan --config run.yaml
"""
EVALUATE_EXAMPLES = """
vbp evaluate photos out --truth annotations --weights model.safetensors
vbp evaluate photos out --truth coco.json --methods vbp,eigencam,gradcam
vbp evaluate photos out --weights model.pth --metrics insertion,deletion
"""
CARD_EXAMPLES = """
vbp card photos out --truth annotations --weights model.safetensors
vbp card photos out --weights model.pth --sample 40
"""
SWEEP_EXAMPLES = """
vbp sweep sweep.yaml --plan
vbp sweep sweep.yaml

with, in sweep.yaml:
  output: sweep
  inputs: photos
  grid: {weights: [model.safetensors, random], preset: [paper, reference]}
"""
ATTACH_EXAMPLES = """
vbp attach model.onnx --output with_mask.onnx
vbp attach model.onnx --output with_mask.onnx --uint8
"""


class _Group(click.Group):
    """Commands in the order of their definition, those of the main job first."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from vbp.version import described

        click.echo(f"vbp {described()}")
        ctx.exit()


@click.group(
    cls=_Group,
    context_settings=CONTEXT,
    epilog='Shell completion: put eval "$(_VBP_COMPLETE=bash_source vbp)" into ~/.bashrc; zsh_source and '
    "fish_source are for those shells.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
    help="Show the version, in a checkout also the commit, and exit.",
)  # fmt: skip
def main() -> None:
    """VisualBackProp saliency masks for image collections of any size."""


@main.command(short_help="Masks, overlays and an index of every image.", examples=EXPLAIN_EXAMPLES)
@job_options
@click.option("--address", metavar="URL", help="Run on the Ray cluster whose job API is at this URL: http://HEAD:8265.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on standard output.")
@click.pass_context
def explain(ctx: click.Context, /, address: str | None, as_json: bool, **options: Any) -> None:
    """Explain every image below INPUT; write masks, overlays and an index to OUTPUT."""
    with _translated():
        config = config_of(ctx, options)
        sys.exit(_run(config, as_json) if address is None else _submit(config, address, as_json))


@main.command(short_help="What a run would do: images, time, cost, bytes.", examples=PLAN_EXAMPLES)
@job_options
@click.option("--price-per-hour", type=click.FloatRange(min=0), help="Of all machines of the run together.")
@click.option(
    "--images-per-second",
    type=click.FloatRange(min=0, min_open=True),
    help="Of the whole run [default: the newest run's in OUTPUT, else measured here on a few images].",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.pass_context
def plan(
    ctx: click.Context,
    /,
    price_per_hour: float | None,
    images_per_second: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """What vbp explain would do with the same arguments: images, time, cost, bytes. Writes nothing."""
    with _translated():
        from vbp.pipeline.dryrun import plan as look
        from vbp.tables import print_plan

        config = config_of(ctx, options)
        with _prints_aside():
            found = look(config, price_per_hour=price_per_hour, images_per_second=images_per_second)
        if as_json:
            _print_json(found.as_json())
        else:
            print_plan(found)


def _run(config: RunConfig, as_json: bool) -> int:
    """Run, with progress on standard error and the summary on standard output."""
    from vbp.pipeline.job import run
    from vbp.terminal import print_summary, watching

    with watching() as observer, _prints_aside():
        summary = run(config, observer)
    if as_json:
        _print_json(summary.as_json())
    else:
        print_summary(summary)
    return summary.exit_code


def _submit(config: RunConfig, address: str, as_json: bool) -> int:
    """Run on a cluster; the log goes to standard output, with ``--json`` all but the summary to standard error."""
    from vbp.pipeline.on_ray.submit import submit
    from vbp.terminal import JobLog

    log = JobLog(as_json)
    try:
        return submit(config, address, as_json=as_json, show=log.write)
    finally:
        log.end()


@main.command(short_help="How good the masks are, beside other methods.", examples=EVALUATE_EXAMPLES)
@job_options
@evaluation_options
@click.option("--address", metavar="URL", help="Run on the Ray cluster whose job API is at this URL: http://HEAD:8265.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary and the table as JSON on standard output.")
@click.pass_context
def evaluate(ctx: click.Context, /, address: str | None, as_json: bool, **options: Any) -> None:
    """Explain every image below INPUT, and score the masks and those of other methods.

    Writes what vbp explain does to OUTPUT, one row for each image, method and metric to OUTPUT/scores, and a page,
    OUTPUT/evaluation.html.
    """
    with _translated():
        config = config_of(ctx, options)
        sys.exit(_evaluate(config, as_json) if address is None else _submit(config, address, as_json))


def _evaluate(config: RunConfig, as_json: bool) -> int:
    """Run, then make table and page from what lies in OUTPUT."""
    from vbp.review.evaluation import evaluation, save
    from vbp.tables import print_evaluation

    return _run_and_show(config, as_json, "evaluation", evaluation, save, print_evaluation)


@main.command(short_help="Whether a network's masks are worth something.", examples=CARD_EXAMPLES)
@job_options
@card_options
@click.option("--address", metavar="URL", help="Run on the Ray cluster whose job API is at this URL: http://HEAD:8265.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary and the card as JSON on standard output.")
@click.pass_context
def card(ctx: click.Context, /, address: str | None, as_json: bool, **options: Any) -> None:
    """Answer four questions about the masks of a network, from a sample of the images below INPUT.

    Does the mask find objects, does training matter, is it stable, what does it cost? Does what vbp evaluate does, with
    methods and metrics of its own choice, and writes one page, OUTPUT/card.html, and OUTPUT/card.json.
    """
    with _translated():
        config = config_of(ctx, options)
        sys.exit(_card(config, as_json) if address is None else _submit(config, address, as_json))


def _card(config: RunConfig, as_json: bool) -> int:
    """Run, then make the card from what lies in OUTPUT."""
    from vbp.review.card import card, save
    from vbp.tables import print_card

    return _run_and_show(config, as_json, "card", card, save, print_card)


def _run_and_show(
    config: RunConfig,
    as_json: bool,
    name: str,
    make: Callable[[str, Mapping[str, Any]], Shown],
    save: Callable[[Shown, Mapping[str, Any]], str],
    show: Callable[[Shown], None],
) -> int:
    """Run, and print the summary; if all is done, make the page of the output, save it and show it."""
    from vbp.pipeline.job import run
    from vbp.terminal import print_summary, watching

    with watching() as observer, _prints_aside():
        summary = run(config, observer)
    if not as_json:
        print_summary(summary)
    found = make(summary.output, config.storage_options) if summary.succeeded else None
    if found is not None:
        save(found, config.storage_options)
    if as_json:
        _print_json({**summary.as_json(), name: None if found is None else found.as_json()})
    elif found is not None:
        show(found)
    return summary.exit_code


@main.command(short_help="Many runs as one: combinations of settings.", examples=SWEEP_EXAMPLES)
@click.argument("sweep_file", metavar="SWEEP")
@click.option("--plan", "only_plan", is_flag=True, help="What would be done: images, time, cost; writes nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def sweep(sweep_file: str, only_plan: bool, as_json: bool) -> None:
    """Do many runs as one: all combinations of inputs and settings that the YAML file SWEEP names."""
    with _translated():
        from vbp.pipeline.sweep.sweepfile import read_sweep

        asked = read_sweep(sweep_file)
        if not only_plan:
            sys.exit(_sweep(asked, as_json))
        from vbp.pipeline.sweep.dryrun import plan_sweep
        from vbp.tables import print_sweep_plan

        with _prints_aside():
            found = plan_sweep(asked, lambda name: _say(f"Planning {name}.", err=True))
        if as_json:
            _print_json(found.as_json())
        else:
            print_sweep_plan(found)


def _sweep(asked: Sweep, as_json: bool) -> int:
    """Do the runs, compare them if all are completed, and print how they ended."""
    from vbp.pipeline.sweep.sweep import sweep
    from vbp.tables import print_comparison
    from vbp.terminal import print_sweep, watching

    found = None
    with watching() as observer, _prints_aside():
        summary = sweep(asked, observer)
        if summary.is_combined:
            from vbp.review.compare import compare, save

            found = compare(summary.output, asked.storage_options)
            save(found, asked.storage_options)
    if as_json:
        _print_json(summary.as_json() | {"comparison": found and found.as_json()})
        return summary.exit_code
    print_sweep(summary)
    if found is not None:
        print_comparison(found)
    return summary.exit_code


@main.command(short_help="Explain generated scenes; nothing to download.")
@click.argument("output", default="vbp-demo", type=click.Path(file_okay=False, path_type=Path))
@click.option("--scenes", default=200, show_default=True, type=click.IntRange(min=1), help="How many to generate.")
def demo(output: Path, scenes: int) -> None:
    """Explain generated scenes through Ray and score the masks against the true objects; nothing to download."""
    with _translated():
        from vbp.demo.show import show
        from vbp.terminal import print_summary, watching

        with watching() as observer:
            observer.note(f"Generating {scenes} scenes.")
            outcome = show(output, scenes, observer)
        print_summary(outcome.summary)
        _say(f"\nresults: {output / 'results'} (masks/, overlays/, index/)")
        click.echo(f"without distractors: {outcome.plain}")
        click.echo(f"with distractors: {outcome.distracted}")
        if not outcome.leads_clearly:
            click.echo("The trained network does not clearly beat the other three on these scenes.")
        click.echo(str(outcome.total))
        click.echo("your own photos: vbp explain PHOTOS OUT    (a folder of class folders; needs ImageNet weights)")
        sys.exit(outcome.summary.exit_code)


@main.command(short_help="An ONNX model with one more output, its mask.", examples=ATTACH_EXAMPLES)
@click.argument("model", metavar="MODEL.onnx", type=click.Path())
@click.option("--output", required=True, metavar="FILE", type=click.Path(), help="The model to write, .onnx.")
@click.option(
    "--stages",
    default="all",
    show_default=True,
    metavar="LIST",
    help="Which maps are multiplied: all; last, the last of each resolution; or names of tensors.",
)
@click.option(
    "--preset",
    default="paper",
    show_default=True,
    type=click.Choice(get_args(Preset)),
    help="The published method, or the masks of devansh20la/VisualBackprop.",
)
@click.option("--uint8", is_flag=True, help="One output more: mask_uint8, whole numbers from 0 to 255.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def attach(model: str, output: str, stages: str, preset: Preset, uint8: bool, as_json: bool) -> None:
    """Write the ONNX model with one more output, mask: (N, 1, H, W), float32 in [0, 1].

    Nodes, names and outputs of the model stay as they are. The result runs in onnxruntime, without vbp.
    """
    with _translated():
        try:
            from vbp.attach.files import attach_file
        except ModuleNotFoundError as error:
            raise UsageError("ONNX needs one more package: pip install 'visualbackprop[onnx]'.") from error
        attached = attach_file(model, output, stages=stages.split(","), preset=preset, uint8=uint8)
        if as_json:
            _print_json({"output": output, **attached.as_json()})
            return
        _say(f"{output}: {model} and its mask, ({', '.join(map(str, attached.shape))}), in opset {attached.opset}")
        _say(f"stages multiplied: {', '.join(attached.stages)}")


MEASURED = ("engine", "codecs", "storage", "pipeline", "worker", "start", "scaling")
"""Parts of ``vbp benchmark``; the last one takes half an hour and must be asked for."""


@main.command(short_help="Measure this machine beside limits and rivals.")
@click.argument("parts", nargs=-1, type=click.Choice(MEASURED), metavar="[PARTS]...")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images a forward pass [default: as vbp explain].")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Timings of each case.")
@click.option(
    "--capabilities", is_flag=True, help="Of engine: only it beside the bare forward pass, as on each weaker processor."
)
@click.option("--place", metavar="URL", help="Whose storage is measured [default: a temporary folder].")
@click.option(
    "--storage-options", default="{}", callback=json_object, metavar="JSON", help="For --place, as for vbp explain."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the figures as JSON; beside it the printed page as .md.",
)
def benchmark(parts: tuple[str, ...], output: Path | None, **options: Any) -> None:
    r"""Measure this machine, side by side with limits, rivals and targets: PARTS, or all but scaling.

    \b
    engine    masks, beside the bare forward pass, other methods and the roofline
    codecs    decoding and encoding, beside other libraries
    storage   writing, reading and listing small files
    pipeline  the main job, beside its slowest stage; what it uses
    worker    the process of a GPU worker, on a stand-in for the GPU
    start     the help, and the first mask
    scaling   workers; memory of 20,000 images; a finished run found finished

    On two CPU cores, 5 rounds of them take about 4, 1, 1, 14, 5, 8 and 18 minutes.
    """
    with _translated():
        from vbp.evidence.benchmark import benchmark as measure
        from vbp.evidence.page import page

        figures = measure(parts or MEASURED[:-1], **options, report=lambda line: click.echo(line, err=True))
        click.echo(page(figures), nl=False)
        if output is not None:
            output.write_text(json.dumps(figures, indent=1) + "\n")
            output.with_suffix(".md").write_text(page(figures))


CHECKED = ("machine", "correctness", "rates", "job", "worker", "codecs", "kernels", "decoders", "networks", "compiling")
"""Sections of ``vbp gpu-check``."""


@main.command("gpu-check", short_help="Check and measure this machine's GPU.")
@click.option("--sections", default=",".join(CHECKED), metavar="LIST", help="Only these, comma-separated.")
@click.option(
    "--budget",
    default=345.0,
    show_default=True,
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="For all sections together.",
)
@click.option("--weights", metavar="FILE", help="A checkpoint of VGG16 [default: random weights].")
@click.option("--dry", is_flag=True, help="Everything small and on the CPU, to try the check itself.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for gpu-check.json and the printed page, gpu-check.md; written anew after each section.",
)
def gpu_check(sections: str, budget: float, weights: str | None, dry: bool, output: Path | None) -> None:
    r"""Check and measure this machine's GPU in less than six minutes: one table at the end, and the same as JSON.

    Each section has its time, and ends alone if it fails or takes longer.

    \b
    machine      products and copies on the GPU
    correctness  masks of six networks beside those of the CPU
    rates        VGG16, from the bare forward pass to masks as NumPy arrays
    job          the main job through Ray: 1 to 3 workers, decoding on the GPU
    worker       one GPU worker through Ray, given ready pixels
    codecs       decoding and encoding, in a process a core
    kernels      which kernels the time goes to, and each fused convolution
    decoders     JPEG decoded by other libraries, on the GPU
    networks     ResNet, DenseNet, MobileNet
    compiling    torch.compile
    """
    with _translated():
        from vbp.evidence.gpucheck.check import gpu_check as check
        from vbp.evidence.page import page

        def keep(found: Mapping[str, Any], line: str) -> None:
            click.echo(line, err=True)
            if output is not None:
                output.mkdir(parents=True, exist_ok=True)
                (output / "gpu-check.json").write_text(json.dumps(found, indent=1) + "\n")
                (output / "gpu-check.md").write_text(page(found))

        found = check(sections.split(","), seconds=budget, is_dry=dry, weights=weights, report=keep)
        click.echo(page(found))
        _print_json(found)


def look_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """OUTPUT and the flags of all commands that read an output."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")(command)
    command = click.option(
        "--storage-options",
        default="{}",
        callback=json_object,
        metavar="JSON",
        help="Non-secret options by URL prefix, as for vbp explain.",
    )(command)
    return click.argument("output")(command)


@main.command(short_help="How the run of OUTPUT stands.")
@look_options
@click.option("--watch", is_flag=True, help=f"Look again every {WATCH_SECONDS} s for as long as the run works.")
def status(output: str, storage_options: dict[str, Any], as_json: bool, watch: bool) -> None:
    """How the run stands that writes, wrote or was to write OUTPUT."""
    with _translated():
        from vbp.review.status import status as look
        from vbp.tables import print_status

        while True:
            seen = look(output, storage_options)
            if as_json:
                _print_json(seen.as_json())
            else:
                print_status(seen)
            if not (watch and seen.is_live):
                break
            time.sleep(WATCH_SECONDS)
            if not as_json:
                click.echo()


@main.command(short_help="Which images failed, grouped by cause.")
@look_options
@click.option("--keys", is_flag=True, help="Only the keys of the failed images, one a line (with --json quoted).")
@click.option("--export", metavar="FILE", help="Write them as a manifest to run again: .csv, .parquet or .txt.")
def failures(output: str, storage_options: dict[str, Any], as_json: bool, keys: bool, export: str | None) -> None:
    """Which images of OUTPUT failed, grouped by cause; also while the run is at work."""
    with _translated():
        from vbp.review import failures as module
        from vbp.review.output import Output
        from vbp.tables import print_failures
        from vbp.words import counted

        opened = Output.open(output, storage_options)
        if export is not None:
            written = module.export(opened, export, storage_options)
            _say(f"{counted(written, 'image')} written to {export}", err=True)
        if keys:
            for key in module.failed_keys(opened):
                told = json.dumps(key, ensure_ascii=False) if as_json else key
                click.echo(plain(told) if as_json or _is_terminal() else told)  # other programs want names as they are
            return
        found = module.failures(opened)
        if as_json:
            _print_json(found.as_json())
        else:
            print_failures(found)


@main.command(short_help="Whether OUTPUT is sound; repairs what is not.")
@look_options
@click.option("--sample", default=200, show_default=True, type=click.IntRange(min=0), help="Masks to reopen.")
@click.option("--deep", is_flag=True, help="Reopen all masks.")
@click.option("--seed", default=500, show_default=True, help="Another one reopens other masks.")
@click.option("--repair", is_flag=True, help="Take wrong rows back, so that the next run does these images again.")
@click.option("--remove-orphans", is_flag=True, help="List result files that no row names, and delete them if told so.")
@click.option("--yes", is_flag=True, help="With --remove-orphans: delete them without asking.")
@click.option("--rebase", is_flag=True, help="After OUTPUT was moved: make the index anew, for where it is now.")
@click.option(
    "--runner",
    default="auto",
    show_default=True,
    type=click.Choice(choices_of(Runner)),
    help="local: in this process; ray: by tasks of Ray; auto: Ray for over 262,144 images where RAY_ADDRESS is set.",
)
def validate(
    output: str, storage_options: dict[str, Any], as_json: bool, yes: bool, runner: Runner, **options: Any
) -> None:
    """Whether OUTPUT is sound: rows, index and files held against each other, and a sample of masks reopened.

    Exit code 0: sound; 3: something is wrong, and the last line says what to run.
    """
    with _translated():
        from vbp.pipeline.runner import spreading
        from vbp.review.output import Output
        from vbp.review.validate import validate as check
        from vbp.tables import print_validation
        from vbp.terminal import telling

        opened = Output.open(output, storage_options)
        with spreading(runner, opened.is_large) as spread, telling() as tell:
            found = check(
                opened,
                **options,
                spread=spread,
                on_progress=tell,
                on_wait=lambda sentence: _say(sentence, err=True),
                on_orphans=lambda paths: yes or _may_delete(paths),
            )
        if as_json:
            _print_json(found.as_json())
        else:
            print_validation(found)
        sys.exit(0 if found.is_sound else EXIT_WRONG)


def _may_delete(paths: Sequence[str]) -> bool:
    """Show files and ask whether to delete them; without a terminal the answer is no."""
    for path in paths:
        _say(path, err=True)
    if not _can_ask():
        _say("Nothing is deleted without being asked for: add --yes.", err=True)
        return False
    return click.confirm("Delete this file?" if len(paths) == 1 else f"Delete these {len(paths)} files?", err=True)


@main.command(short_help="One HTML page about OUTPUT.")
@look_options
@click.option("--to", "target", default="report.html", show_default=True, metavar="FILE", help="Where the page goes.")
@click.option("--sample", default=24, show_default=True, type=click.IntRange(min=0), help="Images to show.")
@click.option("--seed", default=500, show_default=True, help="Another one shows other images.")
def report(output: str, storage_options: dict[str, Any], as_json: bool, target: str, sample: int, seed: int) -> None:
    """Write one HTML page about OUTPUT: totals, failures, a sample of masks, and a table by folder."""
    with _translated():
        from vbp.review import report as module
        from vbp.review.output import Output

        found = module.report(Output.open(output, storage_options), storage_options, sample=sample, seed=seed)
        if as_json:
            _print_json(found.as_json())
        else:
            module.save(found, target, storage_options)
            _say(f"report: {target}")


def _print_json(value: dict[str, Any]) -> None:
    click.echo(plain(json.dumps(value, ensure_ascii=False)))


def _prints_aside() -> AbstractContextManager[Any]:
    """What code of the user's own prints, and Ray about its workers, goes to standard error: results stand alone."""
    return redirect_stdout(sys.stderr)


def _can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _say(text: str, *, err: bool = False) -> None:
    """Print text that may contain names."""
    click.echo(plain(text, keep="\n"), err=err)


class _Terminated(KeyboardInterrupt):
    """SIGTERM; like Ctrl-C it is no ``Exception``, so that no library handles it as an error of its own."""


class _Stop:
    """What SIGINT and SIGTERM do: the first is answered at once and raised, the second ends the process.

    Threads that are at work cannot be ended in any other way.  The ledger allows it: it survives any death.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._has_come = False

    def install(self) -> None:
        """Take the signals over; a background job of a shell goes on ignoring Ctrl-C."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signum == signal.SIGTERM or signal.getsignal(signum) is signal.default_int_handler:
                self._before[signum] = signal.signal(signum, self)

    def restore(self) -> None:
        """Give the signals back, but not once one has come: threads may keep the process from ending for long."""
        if not self._has_come:
            for signum, handler in self._before.items():
                signal.signal(signum, handler)

    def __call__(self, signum: int, frame: object) -> None:
        """Handle a signal."""
        if self._has_come:
            self._exit()
        self._has_come = True
        _write_stderr("vbp: Stopping: what is in hand may be finished first. A second Ctrl-C ends at once.\n")
        raise _Terminated if signum == signal.SIGTERM else KeyboardInterrupt

    def _exit(self) -> None:
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the progress bar hides it
        _write_stderr(f"{cursor}vbp: Ended at once. Run the same command again to continue.\n")
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(EXIT_INTERRUPTED)


def _write_stderr(text: str) -> None:
    """Past Python's buffer, which the code that a signal interrupts may be using."""
    with suppress(OSError):
        os.write(2, text.encode())


@contextmanager
def _translated() -> Iterator[None]:
    """Turn exceptions of vbp into one sentence on standard error and an exit code."""
    stop = _Stop()
    stop.install()
    try:
        yield
    except _Terminated:
        _end("Stopped by SIGTERM.", EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        _end("Interrupted.", EXIT_INTERRUPTED)
    except (InterruptedRunError, LeaseLostError) as error:
        _end(str(error), EXIT_INTERRUPTED)
    except UsageError as error:
        _end(str(error), EXIT_USAGE)
    except VBPError as error:
        _end(str(error), EXIT_CRASHED)
    finally:
        stop.restore()


def _end(message: str, code: int) -> None:
    hint = " Run the same command again to continue." if code == EXIT_INTERRUPTED and "again" not in message else ""
    click.echo(plain(f"vbp: {message}{hint}"), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
