"""The sweep file: reads the runs of a sweep from YAML.

::

    output: s3://bucket/sweep                # each run has OUTPUT/runs/NAME
    inputs: {old: s3://bucket/2025, new: s3://bucket/2026}      # or one place, or a list
    variants:                                # settings that belong together
      vgg: {model: vgg16, weights: vgg.safetensors}
      resnet: {model: resnet50, weights: resnet.safetensors}
    grid: {preset: [paper, reference]}       # every combination of the values
    exclude: [{variant: resnet, preset: reference}]
    common: {size: 224, max_failures: 2%}    # of all runs
    budget: {max_hours: 8, price_per_hour: 3, max_cost: 20}

The runs are all combinations of inputs, variants and grid, without the excluded ones.  Settings are the fields of
``RunConfig``.  A run's name has all varied settings, as ``input-old--variant-vgg--preset-paper``; it stays the same
when values are added to the file's lists.  (With ``=`` readers of Parquet would take parts of the path for columns.)
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vbp.errors import UsageError
from vbp.pipeline.config import RunConfig, option_fields
from vbp.pipeline.settings import SettingsReader, parse_yaml, read_text
from vbp.storage.outline import RUNS

OF_ALL = ("device", "runner", "workers", "node_labels", "storage_options")
"""Settings of the workers, which cannot vary because all runs share them."""
ELSEWHERE = {
    "input": "inputs are named under inputs",
    "output": "each run has an output of its own, below the sweep's output",
    "resume_mode": "a sweep always resumes; to start a run over, use vbp explain, or another output",
    "evaluation": "vbp evaluate measures one run at a time",
}
"""Fields of ``RunConfig`` that a sweep cannot set, and why."""

_SETTINGS = [field.name for field in option_fields() if field.name not in ELSEWHERE]
_PLACES = ("input", "weights", "classes")
_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_KEYS = ("output", "inputs", "variants", "grid", "exclude", "common", "budget")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits on the time and cost of all attempts at a sweep together; None: no limit."""

    max_hours: float | None = None
    max_cost: float | None = None
    price_per_hour: float | None = None
    """Price of all machines of the sweep together, in the currency of ``max_cost``."""

    @property
    def hours(self) -> float | None:
        """The tighter of both limits, in hours."""
        limits = [self.max_hours]
        if self.max_cost is not None and self.price_per_hour:
            limits.append(self.max_cost / self.price_per_hour)
        return min((limit for limit in limits if limit is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run of a sweep."""

    name: str
    """Name of its folder below ``OUTPUT/runs``."""
    varied: Mapping[str, str | int | float | bool]
    """Its varied settings: the name, or else the value, by input, variant or setting."""
    config: RunConfig


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The content of a sweep file."""

    output: str
    runs: tuple[SweepRun, ...]
    budget: Budget

    @property
    def storage_options(self) -> Mapping[str, Any]:
        """The storage options of all runs."""
        return self.runs[0].config.storage_options


def read_sweep(place: str) -> Sweep:
    """The sweep in the file at a path or URL; relative places in it count from the working directory.

    Raises:
        UsageError: the file cannot be read, or a setting is wrong; names the key and its value.
    """
    return parse_sweep(read_text(place, "SWEEP"), place)


def parse_sweep(text: str, name: str = "sweep.yaml") -> Sweep:
    """As `read_sweep`, from a YAML text; `name` is the file's name, for messages."""
    return _File(name).sweep(parse_yaml(text, name))


@dataclass(frozen=True)
class _Choice:
    """One value of an input, variant or setting in a sweep."""

    label: str
    """The value in the run's name."""
    shown: str | int | float | bool
    """The value in the index."""
    settings: Mapping[str, Any]


_Axis = Sequence[_Choice]


class _File(SettingsReader):
    """Reads the content of one sweep file; every method refuses content that it does not understand."""

    def sweep(self, content: Any) -> Sweep:
        """Read the whole file."""
        keys = self.mapping("the file", content)
        self.known("", keys, _KEYS, "key of a sweep file")
        output = keys.get("output")
        if not isinstance(output, str) or not output:
            self.refuse("output", output, "must name a place for the results, such as results or s3://bucket/sweep")
        common = self._settings("common", keys.get("common") or {})
        axes = {"input": self._inputs(keys.get("inputs"))}
        axes |= {"variant": self._variants(keys.get("variants"))} if "variants" in keys else {}
        axes |= self._grid(keys.get("grid") or {})
        self._check_once(common, axes)
        excluded = self._excluded(keys.get("exclude") or [], axes)
        runs = [
            self._run(output.rstrip("/"), dict(zip(axes, choices, strict=True)), common)
            for choices in itertools.product(*axes.values())
            if not any(matches(dict(zip(axes, choices, strict=True))) for matches in excluded)
        ]
        if not runs:
            self.refuse("exclude", keys["exclude"], "leaves no run; take something out of it")
        self._check_distinct(runs)
        return Sweep(output=output, runs=tuple(runs), budget=self._budget(keys.get("budget") or {}))

    def _inputs(self, given: Any) -> _Axis:
        """The inputs; several have names, from the file or from the last part of the place, a single one has none."""
        if isinstance(given, str) and given:
            return [_Choice("", "", {"input": given})]
        if not isinstance(given, (list, Mapping)) or not given:
            self.refuse("inputs", given, "must name at least one place, as text, a list, or a mapping of names")
        return self._axis("inputs", "input", given)

    def _variants(self, given: Any) -> _Axis:
        variants = self.mapping("variants", given)
        if not variants:
            self.refuse("variants", given, "must name at least one variant with its settings, or be left out")
        return [
            _Choice(self._label(f"variants.{name}", name), str(name), self._settings(f"variants.{name}", settings))
            for name, settings in variants.items()
        ]

    def _grid(self, given: Any) -> dict[str, _Axis]:
        """The grid in the order of ``RunConfig``, so that a run keeps its name when the file is rearranged."""
        grid = self._by_setting("grid", given)
        for name in grid:
            if name in OF_ALL:
                self.refuse(f"grid.{name}", grid[name], "is of all runs, which share their workers; put it in common")
        for name, values in grid.items():
            if not isinstance(values, (list, Mapping)) or not values:
                self.refuse(
                    f"grid.{name}", values, "must be a list of values, or a mapping of names to them; one value for "
                    f"all runs is common.{name}"
                )  # fmt: skip
        return {name: self._axis(f"grid.{name}", name, grid[name]) for name in _SETTINGS if name in grid}

    def _axis(self, where: str, field: str, given: list[Any] | Mapping[Any, Any]) -> _Axis:
        if isinstance(given, Mapping):
            named = [(self._label(f"{where}.{name}", name), value) for name, value in given.items()]
        else:
            named = [("", value) for value in given]
        axis = []
        for number, (label, value) in enumerate(named):
            place = f"{where}.{label}" if label else f"{where}[{number}]"
            checked = self.value(place, field, value)
            own = label or self._label_of(place, field, checked)
            shown = checked if isinstance(checked, (bool, int, float)) and not label else own
            axis.append(_Choice(own, shown, {field: checked}))
        labels = [choice.label.casefold() for choice in axis]
        for number, label in enumerate(labels):
            if label in labels[:number]:
                self.refuse(
                    f"{where}[{number}]", named[number][1], f"has the name {axis[number].label} as another one does; "
                    "give names: a mapping instead of a list"
                )  # fmt: skip
        return axis

    def _settings(self, where: str, given: Any) -> dict[str, Any]:
        settings = self._by_setting(where, given)
        for name in settings:
            if name in OF_ALL and where != "common":
                self.refuse(f"{where}.{name}", settings[name], "is of all runs; put it in common")
        return {name: self.value(f"{where}.{name}", name, value) for name, value in settings.items()}

    def _by_setting(self, where: str, given: Any) -> dict[str, Any]:
        for name in self.mapping(where, given):
            if (field := str(name).replace("-", "_")) in ELSEWHERE:
                raise UsageError(f"{self._name}: {where}.{name} is no setting of a run: {ELSEWHERE[field]}.")
        return self.by_field(where, given, _SETTINGS)

    def _excluded(self, given: Any, axes: Mapping[str, _Axis]) -> list[Any]:
        if not isinstance(given, list):
            self.refuse("exclude", given, "must be a list like [{preset: reference, weights: random}]")
        return [self._exclusion(f"exclude[{number}]", one, axes) for number, one in enumerate(given)]

    def _exclusion(self, where: str, given: Any, axes: Mapping[str, _Axis]) -> Any:
        wanted = self.mapping(where, given)
        self.known(where, wanted, list(axes), "thing that varies here")
        chosen: dict[str, _Choice] = {}
        for name, value in wanted.items():
            fitting = [c for c in axes[name] if value in (c.label, c.shown) or [value] == list(c.settings.values())]
            if not fitting:
                self.refuse(f"{where}.{name}", value, f"must be one of {', '.join(c.label for c in axes[name])}")
            chosen[name] = fitting[0]
        if not chosen:
            self.refuse(where, given, "names nothing, and so would exclude everything")
        return lambda run: all(run[name] is choice for name, choice in chosen.items())

    def _check_once(self, common: Mapping[str, Any], axes: Mapping[str, _Axis]) -> None:
        """Refuse a setting in two places; but a variant may override a setting of ``common``."""
        variants = {name for choice in axes.get("variant", ()) for name in choice.settings}
        for name in axes:
            for where in ("common",) * (name in common) + ("variants",) * (name in variants):
                raise UsageError(f"{self._name}: {name} stands in grid and in {where}; take it out of one of them.")

    def _run(self, output: str, chosen: Mapping[str, _Choice], common: Mapping[str, Any]) -> SweepRun:
        named = {axis: choice for axis, choice in chosen.items() if choice.label}
        name = "--".join(f"{axis}-{choice.label}" for axis, choice in named.items()) or "run"
        settings = dict(common)
        for choice in chosen.values():
            settings |= choice.settings
        try:
            config = RunConfig(output=f"{output}/{RUNS}/{name}", **settings)
        except UsageError as error:
            raise UsageError(f"{self._name}: run {name}: {error}") from error
        return SweepRun(name=name, varied={axis: choice.shown for axis, choice in named.items()}, config=config)

    def _check_distinct(self, runs: Sequence[SweepRun]) -> None:
        """Refuse two runs with equal settings, which would be computed twice."""
        seen: dict[str, str] = {}
        for run in runs:
            asked = repr(dataclasses.replace(run.config, output="output"))
            if asked in seen:
                raise UsageError(
                    f"{self._name}: the runs {seen[asked]} and {run.name} have the same settings; take one of them out."
                )
            seen[asked] = run.name

    def _budget(self, given: Any) -> Budget:
        keys = self.mapping("budget", given)
        names = [field.name for field in dataclasses.fields(Budget)]
        self.known("budget", keys, names, "limit")
        for name, value in keys.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                self.refuse(f"budget.{name}", value, "must be a number above 0")
        if "max_cost" in keys and "price_per_hour" not in keys:
            self.refuse("budget.max_cost", keys["max_cost"], "needs budget.price_per_hour, of all machines together")
        return Budget(**keys)

    def _label(self, where: str, name: Any) -> str:
        if not _NAME.fullmatch(str(name)):
            self.refuse(where, name, "is no name: letters and digits, with single . _ - between them")
        return str(name)

    def _label_of(self, where: str, field: str, value: Any) -> str:
        """A name for a value without one: for a place its last part, without characters that some disk may refuse."""
        if isinstance(value, tuple):
            text = "-".join(map(str, value))
        elif isinstance(value, bool) or value is None:
            text = {True: "true", False: "false", None: "auto"}[value]
        elif isinstance(value, str) and field in _PLACES:
            text = PurePosixPath(value.rstrip("/")).name if field == "input" else PurePosixPath(value).stem
        else:
            text = str(value)
        label = re.sub(r"[^A-Za-z0-9]+", lambda gap: gap[0] if gap[0] in (".", "_", "-") else "-", text).strip("-._")
        if not label:
            self.refuse(where, value, "makes no name; give one: a mapping instead of a list")
        return label
