"""RunConfig: the configuration of one run, checked when it is made.

Every field carries its own help text, so the flags of the command line, the documentation and ``run.json``
all come from this one place.  The values that a run finds out by itself (device, precision, batch size) are in
``vbp.pipeline.recipe``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, get_type_hints

from vbp.choices import (
    Channels,
    Decode,
    Device,
    Fit,
    Frame,
    Interpolation,
    Layout,
    MaskFormat,
    Output,
    OverlayStyle,
    Pooling,
    Precision,
    Preset,
    ResumeMode,
    Runner,
    Select,
    TargetChoice,
    choices_of,
)  # fmt: skip
from vbp.errors import UsageError
from vbp.networks import names
from vbp.networks.preprocessing import IMAGENET, Preprocessing, check_mean, check_std
from vbp.pipeline.apart import check_places
from vbp.pipeline.evaluation import Card, Evaluation
from vbp.pipeline.resources import parse_labels
from vbp.saliency.method import Method
from vbp.storage.addresses import check_place, without_secrets
from vbp.storage.leftout import suffixes_in
from vbp.storage.stores.options import secret_in

BY_ORDER = "by-order"
"""Value of ``--classes``: the folders of the input, in the order of their names, are the classes."""

LARGEST_SIZE, LARGEST = 10_000, 2**53
"""The largest ``--size`` in pixels, and the largest whole number: float64 does not hold larger ones exactly."""


def option(default: Any, help: str, *, fingerprint: bool = False) -> Any:
    """A field with its help text; `fingerprint` says that the written results depend on it."""
    return field(default=default, metadata={"help": help, "fingerprint": fingerprint})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of the main job.

    Raises:
        UsageError: a value is outside its domain, or two values exclude each other.
    """

    input: str = field(
        metadata={
            "help": "Image tree (root/class/x.png, any depth), one image, or manifest (.parquet, .csv, .txt); any URL."
        }
    )
    output: str = field(metadata={"help": "Where masks, overlays and the index go; a folder or any URL."})

    model: str = option(
        "vgg16",
        "Network to explain: a CNN of torchvision by its name, timm:NAME, FILE.onnx, FILE.pt2, or your own, as "
        "FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION.",
        fingerprint=True,
    )
    model_args: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "JSON of arguments for your own network's function or timm's, by name.", "fingerprint": True},
    )
    submodule: str | None = option(
        None, "Explain this part of it, such as backbone.body; it predicts nothing.", fingerprint=True
    )
    weights: str = option(  # None only until it is known what the network's source has
        None,
        "imagenet, random, demo (of vgg16), own (as your function returns them), or the path or URL of a .pth or "
        ".safetensors checkpoint [default: imagenet, or own where the network brings them].",
    )
    preset: Preset = option("paper", "paper: Bojarski et al.; reference: devansh20la/VisualBackprop.", fingerprint=True)
    stages: str = option(
        "all",
        "Maps to multiply: all; last, of each resolution; or names, comma-separated (a wrong name lists them).",
        fingerprint=True,
    )
    pooling: Pooling = option(
        "exact",
        "Way down through pooling. exact: layer by layer; merged: one kernel of ones with the convolution; "
        "unpool: back to where the maximum was.",
        fingerprint=True,
    )
    multiply_input: bool = option(
        False, "Multiply masks with the input, as in the paper's theorem 1.", fingerprint=True
    )
    target: TargetChoice = option(
        "none",
        "predicted: weight the deepest map for the predicted class, as Grad-CAM does; none: class-agnostic.",
        fingerprint=True,
    )
    smooth: int = option(
        0, "Average the masks of this many noisy copies of each image; as many more forward passes.", fingerprint=True
    )
    noise: float = option(0.1, "With --smooth: the noise's standard deviation, as a share of the image's range.")
    size: int | None = option(
        None, "Side of the network's square input, in pixels [default: 224, or what the network says]."
    )
    fit: Fit = option(
        "crop",
        "How an image meets that square; original: the image's own size; trained: as the weights were trained.",
        fingerprint=True,
    )
    frame: Frame = option(
        "network",
        "network: masks as the network saw the image; image: at the original size, zero outside the frame.",
        fingerprint=True,
    )
    mean: tuple[float, ...] | None = option(
        None, "Subtracted from pixels in 0..1, one value a channel, comma-separated [default: the network's own]."
    )
    std: tuple[float, ...] | None = option(None, "Divides what is left, as --mean [default: the network's own].")
    interpolation: Interpolation | None = option(None, "How images are resized [default: the network's own].")
    channels: Channels | None = option(
        None, "What the network takes: rgb, bgr (Caffe, OpenCV), or grey, with --mean and --std [default: its own]."
    )
    batch_size: int | None = option(
        None, "Images in one forward pass [default: 128 on a GPU, 2 on each core of a CPU]."
    )
    seed: int = option(500, "Seeds random weights and the noise of --smooth; recorded; else without effect.")
    select: Select = option("all", "Which images get masks; the others get an index row only.", fingerprint=True)
    classes: str | None = option(
        None,
        "File with the model's class names, in the order of its outputs; by-order: the folders' own order.",
        fingerprint=True,
    )
    outputs: tuple[Output, ...] = option(
        ("mask", "overlay"), "Comma-separated: mask, overlay, input, maps.", fingerprint=True
    )
    mask_format: MaskFormat = option(
        "png8", "png8: floor(255 m + 0.5); png16 and npy keep the faint parts.", fingerprint=True
    )
    overlay_style: OverlayStyle = option(
        "heat",
        "heat: even colormap; reference: red as that project drew it; red: as the authors did.",
        fingerprint=True,
    )
    layout: Layout = option(
        "files",
        "files: one file per image and kind; webdataset: tar files of many images; none: the index alone.",
        fingerprint=True,
    )
    fast_decode: bool = option(
        False,
        "Decode large JPEGs at a fraction of their size: faster, but other pixels and masks.",
        fingerprint=True,
    )
    decode: Decode = option(
        "cpu",
        "Where JPEGs are decoded; gpu: on the network's GPU, by TorchCodec, with slightly other pixels and masks.",
        fingerprint=True,
    )
    device: Device = option("auto", "Where the network runs.")
    precision: Precision = option(
        "auto",
        "Of the network; masks are always computed in float32. int8, on CPUs, calibrates on some 80 of the images.",
    )
    resume_mode: ResumeMode = option("resume", "When OUTPUT holds a run: continue it, start over, or refuse.")
    retry_failed: bool = option(False, "Try the images with error rows again.")
    refresh: bool = option(
        False, "List INPUT again: add new images, do changed ones again, no longer count those that are gone."
    )
    max_failures: str = option("1%", "More failed images than this (a number or N%) make the run fail, exit 3.")
    suffixes: tuple[str, ...] | None = option(
        None,
        "Which files of a tree are images, comma-separated; none: names without a suffix [default: all that are read].",
    )
    max_bytes: int = option(1 << 30, "A longer file is an error row, also where a server sends without end.")
    limit: int | None = option(None, "Stop after the first N images of the listing.")
    shard_size: int | None = option(
        None, "Images in one unit of work, fixed when the input is first listed [default: auto]."
    )
    workers: int | None = option(None, "Actors that hold the network [default: auto].")
    node_labels: str | None = option(
        None, "Nodes for these, by Ray's labels: ray.io/accelerator-type=A100,ray.io/market-type=!spot."
    )
    runner: Runner = option(
        "auto", "local: in this process; ray: Ray Data; auto: Ray for over 500 images, or where RAY_ADDRESS is set."
    )
    storage_options: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict,
        metadata={"help": "JSON of non-secret options by URL prefix: endpoint_url, region, anon, requester_pays."},
    )
    evaluation: Evaluation | None = field(default=None, metadata={"group": True})
    """What `vbp evaluate` or `vbp card` measures besides; None in `vbp explain`."""

    def __post_init__(self) -> None:
        if not self.input or not self.output:
            source, output = without_secrets(self.input), without_secrets(self.output)
            raise UsageError(f"INPUT (={source!r}) and OUTPUT (={output!r}) must both name a place.")
        if not isinstance(self.model, str):
            raise UsageError(
                f"model (={type(self.model).__name__}) must be a name, such as vgg16 or your own "
                "PACKAGE.MODULE:FUNCTION; a module itself is for VisualBackProp(module), or for "
                "vbp.pipeline.steps.Explain(module, preprocessing=...), which takes photos."
            )
        object.__setattr__(self, "weights", names.weights_of(self.model, self.weights))
        if self.size is not None and self.fit == "trained":
            raise UsageError(f"--size (={self.size}) and --fit trained both say how large the input is; drop one.")
        if self.size is None and self.fit != "trained" and names.source_of(self.model) == "torchvision":
            object.__setattr__(self, "size", IMAGENET.size)
        if secret := secret_in(self.model_args):
            raise UsageError(
                f"--model-args would put {secret!r} into the record of the run; let your function read it from the "
                "environment of every node."
            )
        # one order and no kind twice, so that results do not depend on how ``--outputs`` was written
        kinds = {kind.strip() for kind in self.outputs}
        order = [*choices_of(Output), *sorted(kinds - set(choices_of(Output)))]
        object.__setattr__(self, "outputs", tuple(kind for kind in order if kind in kinds and kind))
        if self.suffixes is not None:
            object.__setattr__(self, "suffixes", _suffixes(self.suffixes))
        for name, hint in get_type_hints(type(self)).items():
            self._check_choice(name, hint)
        with _as_flags():
            for name, checked in (("mean", check_mean), ("std", check_std)):
                if getattr(self, name) is not None:
                    object.__setattr__(self, name, checked(getattr(self, name)))
        for name in ("size", "batch_size", "max_bytes", "limit", "shard_size", "workers"):
            value = getattr(self, name)
            most = LARGEST_SIZE if name == "size" else LARGEST
            if value is not None and not 1 <= value <= most:
                raise UsageError(f"{_flag(name)} (={value}) must be at least 1 and at most {most}.")
        if self.smooth < 0 or self.noise <= 0:
            raise UsageError(f"--smooth (={self.smooth}) must be at least 0, and --noise (={self.noise}) more than 0.")
        if not self.outputs:
            raise UsageError("--outputs is empty; name at least one of mask, overlay, input, maps.")
        if self.retry_failed and self.resume_mode != "resume":
            raise UsageError(
                f"--retry-failed needs --resume-mode resume, not {self.resume_mode}: it repairs what is there."
            )
        if self.device == "mps" and self.runner == "ray":
            raise UsageError(
                "--device mps is the GPU of this Mac alone, and Ray counts none such: leave out --runner ray."
            )
        if self.decode == "gpu":
            self._check_decoding_on_gpu()
        self.failures_allowed(0)
        parse_labels(self.node_labels)
        check_place("INPUT", self.input)
        check_place("OUTPUT", self.output)
        check_places(self.input, self.output)

    def _check_decoding_on_gpu(self) -> None:
        """Refuse what needs the decoder of the CPU, or no GPU."""
        others = {
            "--fit original": self.fit == "original",
            "--frame image": self.frame == "image",
            "--fast-decode": self.fast_decode,
            f"--device {self.device}": self.device in ("cpu", "mps"),
        }
        if clash := next((other for other, is_given in others.items() if is_given), None):
            raise UsageError(f"--decode gpu and {clash} exclude each other: leave out one of them.")

    def _check_choice(self, name: str, hint: Any) -> None:
        """Refuse a value of a Literal type that is none of its choices."""
        value = getattr(self, name)
        if name == "outputs":
            values, choices = value, choices_of(Output)
        else:
            values, choices = (value,), choices_of(hint)
        if choices and value is not None:
            for item in values:
                if item not in choices:
                    raise UsageError(f"{_flag(name)} (={item}) must be one of {', '.join(choices)}.")

    @property
    def class_file(self) -> str | None:
        """Place of the class file; None if ``classes`` names no file."""
        return None if self.classes == BY_ORDER else self.classes

    @property
    def truth(self) -> str | None:
        """Place of the true objects; None if there are none, or nothing is evaluated."""
        return None if self.evaluation is None else self.evaluation.truth

    @property
    def sample(self) -> int | None:
        """At most so many images are looked at, chosen by their keys; None: all."""
        return self.evaluation.sample if isinstance(self.evaluation, Card) else None

    def failures_allowed(self, images: int) -> int:
        """How many of `images` may fail before the run counts as failed (``max_failures``)."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", self.max_failures.strip())
        if match is None or (match[2] == "" and "." in match[1]):
            raise UsageError(f"--max-failures (={self.max_failures}) must be a number of images or a share like 1%.")
        return int(images * Fraction(match[1]) / 100) if match[2] else int(match[1])

    def fingerprint(self) -> dict[str, Any]:
        """The fields on which the written results depend, by name, as JSON values."""
        chosen = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata.get("fingerprint")}
        chosen["model"] = names.recorded(self.model)
        if self.smooth:
            chosen |= {"noise": self.noise, "noise_seed": self.seed}
        if self.evaluation is not None:
            chosen |= {**self.evaluation.as_json(), "evaluation_seed": self.seed}
        return {name: _recorded(value) for name, value in chosen.items()}

    def preprocessing(self, own: Preprocessing | None = IMAGENET) -> Preprocessing:
        """The preprocessing: the network's `own`, changed by the flags that are given.

        Args:
            own: what the network's source says; None if it says nothing.

        Raises:
            UsageError: the flags contradict each other, or the network's own preprocessing; or neither says what the
                network wants to see.
        """
        if own is None:
            own = self._given()
        if self.fit == "trained" and own.trained is None:
            raise UsageError(
                f"--fit trained: nobody says how images were resized and cut for {names.recorded(self.model)} with "
                f"weights {self.weights}; give --fit crop and --size."
            )
        size = own.trained[1] if self.fit == "trained" and own.trained else self.size
        with _as_flags():
            seen = replace(own, trained=own.trained if self.fit == "trained" else None).changed(
                mean=self.mean, std=self.std, interpolation=self.interpolation, channels=self.channels, size=size
            )
        if seen.size is None and self.fit != "original":
            raise UsageError(f"--size is needed: {names.recorded(self.model)} does not say which size it was made for.")
        return seen

    def _given(self) -> Preprocessing:
        """What the flags alone say; only the way of resizing and the order of colours have usual values."""
        if self.mean is None or self.std is None:
            attribute = (
                ", or let the network have an attribute `preprocessing`, such as "
                "{'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5), 'size': 224}"
            )
            raise UsageError(
                f"--mean and --std are needed: {names.recorded(self.model)} does not say how pixels become its input; "
                f"give what it was trained with{attribute if names.source_of(self.model) == 'code' else ''}."
            )
        with _as_flags():
            return Preprocessing(self.mean, self.std, channels=self.channels or "rgb", size=None)

    @property
    def network(self) -> dict[str, Any]:
        """Arguments of ``load_model``."""
        return {
            "model": self.model,
            "weights": self.weights,
            "model_args": self.model_args,
            "submodule": self.submodule,
            "size": self.size,
            "seed": self.seed,
            "storage_options": self.storage_options,
        }

    @property
    def method(self) -> Method:
        """How masks are made.

        Raises:
            UsageError: two choices exclude each other.
        """
        named = self.stages in ("all", "last")
        return Method(
            preset=self.preset,
            stages=self.stages if named else [name.strip() for name in self.stages.split(",")],
            pooling=self.pooling,
            multiply_input=self.multiply_input,
            target=None if self.target == "none" else self.target,
            smooth=self.smooth,
            noise=self.noise,
            seed=self.seed,
        )

    @property
    def command(self) -> str:
        """Which command of ``vbp`` does such a run."""
        return "explain" if self.evaluation is None else self.evaluation.command

    def arguments(self) -> list[str]:
        """The command line of this configuration: INPUT, OUTPUT, and a flag for each value that is not a default."""
        flags = []
        for each in option_fields():
            value = getattr(self, each.name)
            if each.name in ("input", "output") or value in (each.default, {}) or self.is_implied(each.name):
                continue
            if isinstance(value, tuple):
                value = ",".join(map(str, value))
            elif isinstance(value, Mapping):
                value = json.dumps(value)
            flags.append(_flag(each.name) if value is True else f"{_flag(each.name)}={value}")
        flags += self.evaluation.flags() if self.evaluation else ()
        return [*flags, "--", self.input, self.output]

    def is_implied(self, name: str) -> bool:
        """Whether a field has the value that it gets where none is given."""
        if name == "size":
            return self.size in (None, IMAGENET.size) and names.source_of(self.model) == "torchvision"
        return name == "weights" and self.weights == names.weights_of(self.model, None)

    def as_json(self) -> dict[str, Any]:
        """All fields as JSON values, for ``run.json``; without secrets, because none are accepted or kept."""
        evaluation = {"evaluation": self.evaluation.as_json()} if self.evaluation else {}
        return {f.name: _recorded(getattr(self, f.name)) for f in option_fields()} | evaluation


def option_fields() -> list[dataclasses.Field[Any]]:
    """The fields of a `RunConfig` that are options of ``vbp explain``."""
    return [each for each in dataclasses.fields(RunConfig) if not each.metadata.get("group")]


def _recorded(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    return list(value) if isinstance(value, tuple) else value


def _suffixes(asked: Iterable[str]) -> tuple[str, ...]:
    try:
        return suffixes_in(asked)
    except ValueError as error:
        raise UsageError(
            f"--suffixes (={','.join(asked)}) must name ends of files like .jpg,.heic, or none for names without one; "
            f"{error} is neither."
        ) from error


@contextmanager
def _as_flags() -> Iterator[None]:
    """Put ``--`` before an error of `Preprocessing`, which begins with a field's name, so that it names the flag."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"--{error}") from error


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
