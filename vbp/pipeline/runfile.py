"""The file of one run: YAML that holds the options of ``vbp explain`` by their names.

::

    input: s3://bucket/photos
    output: s3://bucket/out
    weights: model.safetensors
    outputs: [mask]

``vbp explain --config FILE`` reads it, ``vbp explain ... --save-config FILE`` writes it.  That of ``vbp evaluate`` also
has ``truth``, ``methods`` and ``metrics``, that of ``vbp card`` ``truth`` and ``sample``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vbp.errors import UsageError
from vbp.pipeline.config import RunConfig, option_fields
from vbp.pipeline.settings import SettingsReader, parse_yaml, read_text

_FIELDS = {field.name: field for field in option_fields()}


EVALUATION = {"truth": "evaluate", "methods": "evaluate", "metrics": "evaluate", "sample": "card"}
"""Options that the main job has not, each with a command that has it."""


def read_run(place: str) -> dict[str, Any]:
    """The settings in a file, as ``RunConfig`` and ``Evaluation`` take them.

    Relative paths count from the working directory.

    Args:
        place: path or URL of the file.

    Raises:
        UsageError: the file cannot be read, or a setting is wrong; names the key and its value.
    """
    return parse_run(read_text(place, "--config"), place)


def parse_run(text: str, name: str = "run.yaml") -> dict[str, Any]:
    """As ``read_run``, from a YAML text; `name` is the file's name, for messages.  An empty text has no settings."""
    reader = SettingsReader(name)
    given = reader.by_field("", parse_yaml(text, name) or {}, [*_FIELDS, *EVALUATION])
    return {field: _value(reader, field, value) for field, value in given.items()}


def _value(reader: SettingsReader, field: str, value: Any) -> Any:
    if field == "truth":
        return reader.text(field, value)
    if field == "sample":
        return reader.whole_number(field, value)
    if field in EVALUATION:
        return reader.names(field, value, "[vbp, eigencam]" if field == "methods" else "[pointing-game, insertion]")
    return reader.value(field, field, value)


def text_of_run(config: RunConfig) -> str:
    """The YAML text that `parse_run` reads: INPUT, OUTPUT and every value that is not a default.

    Raises:
        UsageError: a value may hold a secret, which must not be written to a file.
    """
    import yaml

    from vbp.storage.stores.options import check_options

    check_options(config.storage_options)
    lines, recorded = [], config.as_json() | (config.evaluation.as_json() if config.evaluation else {})
    values = {
        name: getattr(config, name)
        for name, field in _FIELDS.items()
        if getattr(config, name) not in (field.default, {}) and not config.is_implied(name)
    }
    if config.evaluation is not None:
        values |= {name: value for name in EVALUATION if (value := getattr(config.evaluation, name, None))}
    for name, value in values.items():
        if isinstance(value, str) and recorded[name] != value:
            raise UsageError(
                f"--{name} (={recorded[name]}) is given with a password or a query, which may be secret and would "
                "stand in the file of --save-config; leave out one of the two."
            )
        style = None if isinstance(value, (Mapping, tuple)) else False  # lists in one line
        lines.append(yaml.safe_dump({name: _plain(value)}, default_flow_style=style, allow_unicode=True, width=120))
    return "".join(lines)


def save_run(config: RunConfig, place: str) -> None:
    """Write `text_of_run` to a path or URL.

    Raises:
        UsageError: as for `text_of_run`, or the file cannot be written.
    """
    from vbp.errors import StorageError
    from vbp.storage.files import write_uri

    text = text_of_run(config)
    try:
        write_uri(place, text.encode(), config.storage_options)
    except (OSError, StorageError) as error:
        raise UsageError(f"--save-config (={place}) cannot be written: {error}.") from error


def _plain(value: Any) -> Any:
    """The value in types that YAML has."""
    return json.loads(json.dumps(value)) if isinstance(value, (Mapping, tuple)) else value
