"""Settings in a YAML file: the names and values of ``RunConfig``, read for the sweep file and the file of one run.

A name may be written as the field or as the flag: ``mask_format`` or ``mask-format``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

from vbp.choices import choices_of
from vbp.errors import StorageError, UsageError, why_unread
from vbp.pipeline.config import RunConfig

_HINTS = get_type_hints(RunConfig)
_LISTS = {"outputs": "[mask, overlay]", "suffixes": "[.jpg, .png, none]"}
_PLACES = ("input", "output")


def read_text(place: str, what: str) -> str:
    """The text at a path or URL.

    Args:
        place: where the file lies.
        what: the option that names the file, for the message.

    Raises:
        UsageError: the file cannot be read.
    """
    from vbp.storage.files import read_uri

    try:
        return read_uri(place).decode()
    except (OSError, StorageError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} (={place}) cannot be read: {why_unread(error)}.") from error


def parse_yaml(text: str, name: str) -> Any:
    """The content of a YAML text; `name` is the file's name, for the message.

    Raises:
        UsageError: the text is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is not YAML: {' '.join(str(error).split())}.") from error


class SettingsReader:
    """Checks the content of one file; every method refuses content that it does not understand.

    Args:
        name: the file's name, for messages.

    Raises:
        UsageError: raised by every method; names the file, the key and its value.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def by_field(self, where: str, given: Any, known: Sequence[str]) -> dict[str, Any]:
        """A mapping of settings by field name.

        Args:
            where: the key that holds the settings; empty for the whole file.
            given: the content of that key.
            known: the allowed names.
        """
        fields: dict[str, Any] = {}
        for name, value in self.mapping(where or "the file", given).items():
            field = str(name).replace("-", "_")
            self.known(where, [field if field in known else name], known, "setting of vbp explain")
            if field in fields:
                self.refuse(f"{where}.{name}" if where else str(name), value, "is given twice; take one of them out")
            fields[field] = value
        return fields

    def value(self, where: str, field: str, value: Any) -> Any:
        """The value as ``RunConfig`` takes it, checked against the field's type and domain."""
        if field in _LISTS and (value is not None or field == "outputs"):
            value = self.names(where, value, _LISTS[field])
        elif field in ("storage_options", "model_args"):
            value = self.mapping(where, value)
        elif field in ("mean", "std"):
            value = self._numbers(where, value)
        elif field == "max_failures" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        else:
            self._check_type(where, value, _HINTS[field])
        if field in _PLACES:  # INPUT and OUTPUT are checked together, by RunConfig
            return value
        try:
            return getattr(RunConfig(**{"input": "input", "output": "output", field: value}), field)
        except UsageError as error:
            raise UsageError(f"{self._name}: {where}: {error}") from error

    def names(self, where: str, value: Any, like: str) -> tuple[str, ...]:
        """Names from a list, or from a text with commas; `like` is an example, for the message."""
        found = value.split(",") if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            self.refuse(where, value, f"must be a list like {like}")
        return tuple(found)

    def text(self, where: str, value: Any) -> str:
        """Return the value, which must be a text."""
        if not isinstance(value, str):
            self.refuse(where, value, "must be text; put it in quotes")
        return value

    def whole_number(self, where: str, value: Any) -> int:
        """Return the value, which must be a whole number."""
        self._check_type(where, value, int)
        return int(value)

    def mapping(self, where: str, value: Any) -> Mapping[Any, Any]:
        """Return the value, which must be a mapping."""
        if not isinstance(value, Mapping):
            self.refuse(where, value, "must be a mapping of names to values")
        return value

    def known(self, where: str, names: Iterable[Any], known: Sequence[str], what: str) -> None:
        """Refuse a name that is not among `known`; `what` says what kind of name it should be."""
        for name in names:
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"give one of {', '.join(known)}."
                raise UsageError(f"{self._name}: {where + '.' if where else ''}{name} is no {what}: {hint}")

    def refuse(self, where: str, value: Any, rule: str) -> NoReturn:
        """Refuse the value of a key; `rule` says what it must be."""
        raise UsageError(f"{self._name}: {where} (={value!r}) {rule}.")

    def _numbers(self, where: str, value: Any) -> tuple[float, ...] | None:
        """Numbers from a list, or from a text with commas; None if there are none."""
        if value is None:
            return None
        values = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        try:
            return tuple(float(each) for each in values)
        except (TypeError, ValueError):
            self.refuse(where, value, "must be a list of numbers like [0.485, 0.456, 0.406]")

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
        self.refuse(where, value, f"must be {wanted}{quotes}")
