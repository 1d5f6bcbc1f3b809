"""The small files that say how a run stands: ``_run/run.json``, and ``_SUCCESS``, which says that all is done.

Of a sweep the first is ``_run/sweep.json``.
"""

import json
from collections.abc import Mapping
from typing import Any

from vbp.errors import StorageError
from vbp.storage.files import Folder

RUN = "_run/run.json"
SWEEP = "_run/sweep.json"
SUCCESS = "_SUCCESS"


def load_record(output: Folder, path: str = RUN) -> dict[str, Any] | None:
    """The fields of a JSON file; None where there is no such file.

    Raises:
        StorageError: the file is not what was written.
    """
    try:
        data = output.read(path)
    except FileNotFoundError:
        return None
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise StorageError(f"{output.uri(path)} is damaged ({error}); restore it, or start a new output") from error


def save_record(output: Folder, fields: Mapping[str, Any], path: str = RUN) -> None:
    """Replace the JSON file; nothing secret belongs into it."""
    output.write(path, json.dumps(fields, indent=1, ensure_ascii=False).encode() + b"\n")


def is_complete(output: Folder) -> bool:
    """Whether every listed image has its row, so that ``index/`` can be relied on."""
    return output.exists(SUCCESS)


def mark_complete(output: Folder) -> None:
    """Say so; the last write of a run."""
    output.write(SUCCESS, b"")


def mark_incomplete(output: Folder) -> None:
    """Take it back; comes before a run's first write."""
    output.delete(SUCCESS)
