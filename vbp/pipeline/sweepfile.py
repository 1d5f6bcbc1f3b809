"""The sweep file: YAML in, the runs of a sweep out.

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

The runs are all combinations of inputs, variants and grid but for the excluded ones.  Settings are the fields of
``RunConfig``.  A run is named by what varies, such as ``input-old--variant-vgg--preset-paper``: the same for ever,
whatever else is added to the file's lists.  (With ``=`` readers of Parquet would take parts of the path for columns.)
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

from vbp.errors import StorageError, UsageError
from vbp.pipeline.config import RunConfig, choices_of

RUNS = "runs"
"""The folder of the runs' outputs, in the sweep's."""
OF_ALL = ("device", "runner", "workers", "node_labels", "storage_options")
"""Settings of the workers that all runs share: they cannot vary."""
ELSEWHERE = {
    "input": "inputs are named under inputs",
    "output": "each run has an output of its own, below the sweep's output",
    "resume_mode": "a sweep always resumes; to start a run over, use vbp explain, or another output",
}
"""Fields of ``RunConfig`` that are no settings of a sweep, and why."""

_HINTS = get_type_hints(RunConfig)
_LISTS = {"outputs": "[mask, overlay]", "suffixes": "[.jpg, .png, none]"}
_SETTINGS = [field.name for field in dataclasses.fields(RunConfig) if field.name not in ELSEWHERE]
_PLACES = ("input", "weights", "classes")
_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_KEYS = ("output", "inputs", "variants", "grid", "exclude", "common", "budget")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all attempts at a sweep may spend together on their work; None: no limit."""

    max_hours: float | None = None
    max_cost: float | None = None
    price_per_hour: float | None = None
    """Of all machines of the sweep together, in the currency of ``max_cost``."""

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
    """Its folder below ``OUTPUT/runs``."""
    varied: Mapping[str, str | int | float | bool]
    """What tells it from the others: the name, or else the value, by input, variant or setting."""
    config: RunConfig


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep file asks for."""

    output: str
    runs: tuple[SweepRun, ...]
    budget: Budget

    @property
    def storage_options(self) -> Mapping[str, Any]:
        """Those of all runs."""
        return self.runs[0].config.storage_options


def read_sweep(place: str) -> Sweep:
    """The sweep that the file at a path or URL describes; places in it are meant as on the command line.

    Raises:
        UsageError: the file cannot be read, or cannot be meant as it stands; names the key and its value.
    """
    from vbp.storage.files import read_uri

    try:
        text = read_uri(place).decode()
    except (OSError, StorageError, UnicodeDecodeError) as error:
        raise UsageError(f"SWEEP (={place}) cannot be read: {error}.") from error
    return parse_sweep(text, place)


def parse_sweep(text: str, name: str = "sweep.yaml") -> Sweep:
    """The sweep that a YAML text describes; `name` is the file's, for messages. Errors as for `read_sweep`."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is not YAML: {error}.") from error
    return _File(name).sweep(content)


@dataclass(frozen=True)
class _Choice:
    """One of the values that something may take in a sweep."""

    label: str
    """In the run's name."""
    shown: str | int | float | bool
    """In the index."""
    settings: Mapping[str, Any]


_Axis = Sequence[_Choice]


class _File:
    """Reads the content of one sweep file; every method refuses what it does not understand."""

    def __init__(self, name: str) -> None:
        self._name = name

    def sweep(self, content: Any) -> Sweep:
        """The whole file."""
        keys = self._mapping("the file", content)
        self._known("", keys, _KEYS, "key of a sweep file")
        output = keys.get("output")
        if not isinstance(output, str) or not output:
            self._refuse("output", output, "must name a place for the results, such as results or s3://bucket/sweep")
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
            self._refuse("exclude", keys["exclude"], "leaves no run; take something out of it")
        self._check_distinct(runs)
        return Sweep(output=output, runs=tuple(runs), budget=self._budget(keys.get("budget") or {}))

    def _inputs(self, given: Any) -> _Axis:
        """One place has no name; several have, given or made from their last part."""
        if isinstance(given, str) and given:
            return [_Choice("", "", {"input": given})]
        if not isinstance(given, (list, Mapping)) or not given:
            self._refuse("inputs", given, "must name at least one place, as text, a list, or a mapping of names")
        return self._axis("inputs", "input", given)

    def _variants(self, given: Any) -> _Axis:
        variants = self._mapping("variants", given)
        if not variants:
            self._refuse("variants", given, "must name at least one variant with its settings, or be left out")
        return [
            _Choice(self._label(f"variants.{name}", name), str(name), self._settings(f"variants.{name}", settings))
            for name, settings in variants.items()
        ]

    def _grid(self, given: Any) -> dict[str, _Axis]:
        """In the order of ``RunConfig``, so that a run keeps its name when the file is rearranged."""
        grid = self._mapping("grid", given)
        for name in grid:
            self._check_setting(f"grid.{name}", name)
            if name in OF_ALL:
                self._refuse(f"grid.{name}", grid[name], "is of all runs, which share their workers; put it in common")
        for name, values in grid.items():
            if not isinstance(values, (list, Mapping)) or not values:
                self._refuse(
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
            checked = self._value(place, field, value)
            own = label or self._label_of(place, field, checked)
            shown = checked if isinstance(checked, (bool, int, float)) and not label else own
            axis.append(_Choice(own, shown, {field: checked}))
        labels = [choice.label.casefold() for choice in axis]
        for number, label in enumerate(labels):
            if label in labels[:number]:
                self._refuse(
                    f"{where}[{number}]", named[number][1], f"has the name {axis[number].label} as another one does; "
                    "give names: a mapping instead of a list"
                )  # fmt: skip
        return axis

    def _settings(self, where: str, given: Any) -> dict[str, Any]:
        settings = self._mapping(where, given)
        for name in settings:
            self._check_setting(f"{where}.{name}", name)
            if name in OF_ALL and where != "common":
                self._refuse(f"{where}.{name}", settings[name], "is of all runs; put it in common")
        return {name: self._value(f"{where}.{name}", name, value) for name, value in settings.items()}

    def _check_setting(self, where: str, name: Any) -> None:
        if name in ELSEWHERE:
            raise UsageError(f"{self._name}: {where} is no setting of a run: {ELSEWHERE[name]}.")
        self._known(where.rpartition(".")[0], [name], _SETTINGS, "setting of vbp explain")

    def _value(self, where: str, field: str, value: Any) -> Any:
        """A value of the field's type and domain, as ``RunConfig`` takes it."""
        hint = _HINTS[field]
        if field in _LISTS and (value is not None or field == "outputs"):
            kinds = value.split(",") if isinstance(value, str) else value
            if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
                self._refuse(where, value, f"must be a list like {_LISTS[field]}")
            value = tuple(kinds)
        elif field == "storage_options":
            value = self._mapping(where, value)
        elif field in ("mean", "std"):
            value = self._numbers(where, value)
        elif field == "max_failures" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        else:
            self._check_type(where, value, hint)
        try:
            return getattr(RunConfig(**{"input": "input", "output": "output", field: value}), field)
        except UsageError as error:
            raise UsageError(f"{self._name}: {where}: {error}") from error

    def _numbers(self, where: str, value: Any) -> tuple[float, ...] | None:
        """A list of numbers, or its text, or nothing."""
        if value is None:
            return None
        values = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        try:
            return tuple(float(each) for each in values)
        except (TypeError, ValueError):
            self._refuse(where, value, "must be a list of numbers like [0.485, 0.456, 0.406]")

    def _check_type(self, where: str, value: Any, hint: Any) -> None:
        kinds = {str, *set(get_args(hint)) & {NoneType}} if choices_of(hint) else set(get_args(hint))
        kinds = kinds or {hint}
        if float in kinds:
            kinds.add(int)
        if type(value) in kinds:
            return
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null (auto)"}
        wanted = " or ".join(names[kind] for kind in names if kind in kinds and not (kind is int and float in kinds))
        quotes = "; put it in quotes" if str in kinds and value is not None else ""
        self._refuse(where, value, f"must be {wanted}{quotes}")

    def _excluded(self, given: Any, axes: Mapping[str, _Axis]) -> list[Any]:
        if not isinstance(given, list):
            self._refuse("exclude", given, "must be a list like [{preset: reference, weights: random}]")
        return [self._exclusion(f"exclude[{number}]", one, axes) for number, one in enumerate(given)]

    def _exclusion(self, where: str, given: Any, axes: Mapping[str, _Axis]) -> Any:
        wanted = self._mapping(where, given)
        self._known(where, wanted, list(axes), "thing that varies here")
        chosen: dict[str, _Choice] = {}
        for name, value in wanted.items():
            fitting = [c for c in axes[name] if value in (c.label, c.shown) or [value] == list(c.settings.values())]
            if not fitting:
                self._refuse(f"{where}.{name}", value, f"must be one of {', '.join(c.label for c in axes[name])}")
            chosen[name] = fitting[0]
        if not chosen:
            self._refuse(where, given, "names nothing, and so would exclude everything")
        return lambda run: all(run[name] is choice for name, choice in chosen.items())

    def _check_once(self, common: Mapping[str, Any], axes: Mapping[str, _Axis]) -> None:
        """A variant may set what is common to the others; the grid is for all."""
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
        """Two names for one thing would compute it twice."""
        seen: dict[str, str] = {}
        for run in runs:
            asked = repr(dataclasses.replace(run.config, output="output"))
            if asked in seen:
                raise UsageError(
                    f"{self._name}: the runs {seen[asked]} and {run.name} have the same settings; take one of them out."
                )
            seen[asked] = run.name

    def _budget(self, given: Any) -> Budget:
        keys = self._mapping("budget", given)
        names = [field.name for field in dataclasses.fields(Budget)]
        self._known("budget", keys, names, "limit")
        for name, value in keys.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                self._refuse(f"budget.{name}", value, "must be a number above 0")
        if "max_cost" in keys and "price_per_hour" not in keys:
            self._refuse("budget.max_cost", keys["max_cost"], "needs budget.price_per_hour, of all machines together")
        return Budget(**keys)

    def _label(self, where: str, name: Any) -> str:
        if not _NAME.fullmatch(str(name)):
            self._refuse(where, name, "is no name: letters and digits, with single . _ - between them")
        return str(name)

    def _label_of(self, where: str, field: str, value: Any) -> str:
        """A name for a value without one: of a place its last part, without what any file system may refuse."""
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
            self._refuse(where, value, "makes no name; give one: a mapping instead of a list")
        return label

    def _mapping(self, where: str, value: Any) -> Mapping[Any, Any]:
        if not isinstance(value, Mapping):
            self._refuse(where, value, "must be a mapping of names to values")
        return value

    def _known(self, where: str, names: Iterable[Any], known: Sequence[str], what: str) -> None:
        for name in names:
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"give one of {', '.join(known)}."
                raise UsageError(f"{self._name}: {where + '.' if where else ''}{name} is no {what}: {hint}")

    def _refuse(self, where: str, value: Any, rule: str) -> NoReturn:
        raise UsageError(f"{self._name}: {where} (={value!r}) {rule}.")
