"""Evaluation: what ``vbp evaluate`` and ``vbp card`` measure of each image, besides what ``vbp explain`` leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

from vbp.choices import METHOD_NAMES, METRIC_NAMES
from vbp.errors import UsageError
from vbp.evaluation.methods import METHODS
from vbp.evaluation.metrics import METRICS
from vbp.storage.addresses import check_place, without_secrets

USUAL_METHODS = ("vbp", "random-twin", "eigencam", "gradcam", "centre", "edge", "uniform")
"""``--methods``, if it is not given; without a classifier those that need none."""
USUAL_METRICS = ("pointing-game", "energy-inside", "rank-accuracy", "insertion", "deletion")
"""``--metrics``, if it is not given; those for which truth and classifier are there."""
CARD_METHODS = ("vbp", "random-twin", "eigencam", "gradcam", "centre", "edge", "uniform")
CARD_METRICS = (
    "pointing-game", "energy-inside", "rank-accuracy", "insertion", "deletion", "mprt-last-ssim", "mprt-last-spearman",
    "noise-ssim", "sparseness",
)  # fmt: skip
SAMPLE = 100
"""``--sample`` of ``vbp card``, if it is not given."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Which methods are compared, by which metrics, with which truth.

    Raises:
        UsageError: a name is unknown.
    """

    methods: tuple[str, ...] = ()
    """Empty: `USUAL_METHODS`."""
    metrics: tuple[str, ...] = ()
    """Empty: `USUAL_METRICS`."""
    command: ClassVar[str] = "evaluate"
    """Of ``vbp``."""
    usual_methods: ClassVar[tuple[str, ...]] = USUAL_METHODS
    usual_metrics: ClassVar[tuple[str, ...]] = USUAL_METRICS
    costly_for: ClassVar[tuple[str, ...]] = METHOD_NAMES
    """Methods that get the metrics which need passes through the network."""

    rivals: ClassVar[tuple[str, ...]] = ()
    """Methods that are left out where they do not suit the network."""

    truth: str | None = None
    """A COCO file, or a folder of annotations or masks; None: nobody knows where the objects are."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", _in_order("--methods", self.methods, METHOD_NAMES))
        object.__setattr__(self, "metrics", _in_order("--metrics", self.metrics, METRIC_NAMES))
        if self.truth is not None:
            check_place("--truth", self.truth)

    def chosen(self, has_classifier: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Methods and metrics for a network.

        Raises:
            UsageError: a method or metric that is asked for cannot be had, or no metric is left.
        """
        there = {"truth": self.truth is not None, "classifier": has_classifier, "network": True}
        lacking: dict[str, str] = {
            **{name: "classifier" for name in METHODS if METHODS[name].needs_classifier and not has_classifier},
            **{name: need for name in METRICS for need in sorted(METRICS[name].needs) if not there[need]},
        }
        for flag, asked in (("--methods", self.methods), ("--metrics", self.metrics)):
            for name in asked:
                if name in lacking:
                    raise UsageError(f"{flag} {name} needs {_NEEDED[lacking[name]]}.")
        methods = self.methods or tuple(name for name in self.usual_methods if name not in lacking)
        metrics = self.metrics or tuple(name for name in self.usual_metrics if name not in lacking)
        if not metrics:
            raise UsageError(
                f"None of the usual metrics can be had: they need {_NEEDED['truth']}, or {_NEEDED['classifier']}; "
                "or name others by --metrics."
            )
        return methods, metrics

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; the results depend on all of them."""
        truth = None if self.truth is None else without_secrets(self.truth)
        return {"truth": truth, "methods": list(self.methods), "metrics": list(self.metrics)}

    def flags(self) -> list[str]:
        """The flags of ``vbp evaluate`` for these values."""
        values = (("truth", self.truth), ("methods", ",".join(self.methods)), ("metrics", ",".join(self.metrics)))
        return [f"--{name}={value}" for name, value in values if value]


@dataclass(frozen=True, kw_only=True)
class Card(Evaluation):
    """A fixed choice of methods and metrics on a sample of the images, enough for an answer in short time.

    Raises:
        UsageError: the sample is empty.
    """

    command: ClassVar[str] = "card"
    usual_methods: ClassVar[tuple[str, ...]] = CARD_METHODS
    usual_metrics: ClassVar[tuple[str, ...]] = CARD_METRICS
    costly_for: ClassVar[tuple[str, ...]] = ("vbp", "random-twin")

    rivals: ClassVar[tuple[str, ...]] = ("eigencam", "gradcam")

    sample: int = SAMPLE
    """At most so many images, chosen by the hash of their keys."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample < 1:
            raise UsageError(f"--sample (={self.sample}) must be at least 1.")

    def as_json(self) -> dict[str, Any]:
        """As of every evaluation; a vbp that chooses other methods does not continue this one's card."""
        chosen = {"methods": list(self.usual_methods), "metrics": list(self.usual_metrics)}
        return {**super().as_json(), **chosen, "sample": self.sample}

    def flags(self) -> list[str]:
        """The flags of ``vbp card`` for these values."""
        return [*super().flags(), f"--sample={self.sample}"]


_NEEDED = {
    "truth": "--truth: boxes or masks of the true objects",
    "classifier": "a network with a classifier, whose predictions can be asked for (--weights with one)",
}


def _in_order(flag: str, asked: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names that are asked for, each once, in the order of the tables, so that equal questions are equal."""
    names = {name.strip() for name in asked} - {""}
    for unknown in sorted(names - set(known)):
        close = get_close_matches(unknown, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"give some of {', '.join(known)}."
        raise UsageError(f"{flag} (={unknown}) has no such name: {hint}")
    return tuple(name for name in known if name in names)
