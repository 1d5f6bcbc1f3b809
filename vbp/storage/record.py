"""The small files that say how a run stands: ``_run/run.json``, and ``_SUCCESS``, which promises that all is done.

``run.json`` names the attempt that changed the output last, before its first change; ``_SUCCESS`` names the attempt
that made it, and the files of the index that it speaks of.

Of a sweep the first is ``_run/sweep.json``, and the second names the promises of its runs, too.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vbp.errors import StorageError
from vbp.storage.files import Folder
from vbp.storage.outline import INDEX, RUNS
from vbp.storage.parquet import Written

RUN = "_run/run.json"
SWEEP = "_run/sweep.json"
SUCCESS = "_SUCCESS"
_THREADS = 16
_PIECE = 1 << 20
_WITHDRAWN = b'{"withdrawn": true}\n'


def load_record(output: Folder, path: str = RUN) -> dict[str, Any] | None:
    """The fields of a JSON file; None where there is no such file.

    Raises:
        StorageError: the file is not what was written.
    """
    try:
        data = output.read(path)
    except FileNotFoundError:
        return None
    if data == _WITHDRAWN:
        return None
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise StorageError(f"{output.uri(path)} is damaged ({error}); restore it, or start a new output") from error


def load_run(output: Folder) -> dict[str, Any] | None:
    """The fields of ``run.json``; None where there is none.

    Raises:
        StorageError: it is not what was written; fields that others have added do not matter.
    """
    record = load_record(output)
    for name, is_right in _RIGHT.items() if record is not None else ():
        value = _at(record, name)
        if not is_right(value):
            said = repr(value)
            raise StorageError(
                f"{output.uri(RUN)} is damaged ({name} is {said[:80]}); restore it, or start a new output"
            )
    config = (record or {}).get("config")
    is_begun = config or (record or {}).get("fingerprint") is not None
    lacking = [name for name in _NEEDED if is_begun and (config or {}).get(name) is None]
    if lacking:
        raise StorageError(f"{output.uri(RUN)} is damaged (no config.{lacking[0]}); restore it, or start a new output")
    return record


def _at(record: Any, name: str) -> Any:
    """The value under ``name``, parts joined by dots; None where there is none."""
    for part in name.split("."):
        record = record.get(part) if isinstance(record, Mapping) else None
    return record


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: value is None or type(value) in kinds


def _are_words(value: Any) -> bool:
    return value is None or (type(value) is list and all(isinstance(each, str) for each in value))


_NEEDED = ("size", "fit", "frame", "mask_format", "outputs")
"""Fields that every configuration on record has."""
_RIGHT: Mapping[str, Callable[[Any], bool]] = {
    "run_id": _is(str),
    "attempt": _is(str),
    "generation": _is(str),
    "input": _is(str),
    "manifest": _is(str),
    "fingerprint": _is(dict),
    "config": _is(dict),
    "config.limit": lambda value: value is None or (type(value) is int and value > 0),
    "config.size": _is(int),
    "config.layout": _is(str),
    "config.outputs": _are_words,
    "config.mask_format": _is(str),
    "config.fit": _is(str),
    "config.frame": _is(str),
    "classes": _is(dict),
    "precision": _is(str),
    "scales": _is(dict),
    "device": _is(str),
    "batch_size": _is(int),
    "versions": _is(dict),
    "summary": _is(dict),
    "summary.images": _is(int),
    "summary.output": _is(str),
    "summary.stage_seconds": _is(dict),
}
"""What the fields that are read must be, where they are there."""


def save_record(output: Folder, fields: Mapping[str, Any], path: str = RUN) -> None:
    """Replace the JSON file; nothing secret belongs into it."""
    text = json.dumps(fields, indent=1, ensure_ascii=False)
    # a place whose name is not UTF-8 is held with lone surrogates, and their escapes are JSON's own
    output.write(path, text.encode("utf-8", "backslashreplace") + b"\n")


def withdraw(output: Folder, path: str) -> None:
    """Take the JSON file back; in a store where a deletion may come late, and hit a successor's, by a write."""
    if output.is_local:
        output.delete(path)
    else:
        output.write(path, _WITHDRAWN)


def is_complete(output: Folder, path: str = RUN) -> bool:
    """Whether every listed image has its row, so that ``index/`` can be relied on.

    Args:
        output: OUTPUT.
        path: of the record that the promise stands beside.

    Raises:
        StorageError: the record is damaged.
    """
    promise = load_promise(output)
    return promise is not None and _misfit(output, promise, path) is None


def broken_promise(output: Folder, path: str = RUN) -> str | None:
    """Why a ``_SUCCESS`` that is there does not count; None where it does, or there is none; else as `is_complete`."""
    promise = load_promise(output)
    if promise is None:
        return "it is not what was written" if output.exists(SUCCESS) else None
    return _misfit(output, promise, path)


def _misfit(output: Folder, promise: Mapping[str, Any], path: str) -> str | None:
    """In what a promise does not fit what is there.

    The record must be of the attempt that made it, the index of the very files, by name and size (`changed_files` looks
    into them), and the runs of a sweep must promise what they did. Else another attempt has come in between, and the
    next run makes both anew.
    """
    attempt = (load_record(output, path) or {}).get("attempt")
    if attempt != promise.get("attempt"):  # an older vbp wrote neither
        return f"{path} is of attempt {attempt}, not of {promise.get('attempt')}"
    promised = {path: file["bytes"] for path, file in promise.get("index", {}).items()}
    sizes = _sizes(output) if promise else {}
    for name in sorted(promised.keys() | sizes):
        if promised.get(name) != sizes.get(name):
            return f"{name} has {_bytes(sizes.get(name))}, not {_bytes(promised.get(name))}"
    runs = promise.get("runs", {})
    changed = [name for name, digest in promises_of(output, runs).items() if digest != runs[name]]
    return f"{RUNS}/{changed[0]} has changed since" if changed else None


def _bytes(size: int | None) -> str:
    return "none" if size is None else f"{size} bytes"


def changed_files(output: Folder) -> Iterator[str]:
    """Files of the index that are not, byte for byte, what ``_SUCCESS`` promises; reads all of them."""
    for path, file in (load_promise(output) or {}).get("index", {}).items():
        digest = hashlib.sha256()
        with output.open(path) as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
        if digest.hexdigest() != file["sha256"]:
            yield path


def promises_of(output: Folder, runs: Iterable[str]) -> dict[str, str | None]:
    """By the name of a run of a sweep the SHA-256 of what it promises; None where it promises nothing."""

    def digest(name: str) -> str | None:
        try:
            return hashlib.sha256(output.read(f"{RUNS}/{name}/{SUCCESS}")).hexdigest()
        except FileNotFoundError:
            return None

    names = list(runs)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def load_promise(output: Folder) -> dict[str, Any] | None:
    """What ``_SUCCESS`` says; nothing where an older vbp wrote it, None where there is none that can be read."""
    try:
        data = output.read(SUCCESS)
        promise = json.loads(data) if data.strip() else {}
    except (FileNotFoundError, ValueError):
        return None
    return promise if not data.strip() or _is_wellformed(promise) else None


def _is_wellformed(promise: Any) -> bool:
    if type(promise) is not dict:
        return False
    index, runs = promise.get("index"), promise.get("runs", {})
    if type(promise.get("attempt")) is not str or type(index) is not dict or type(runs) is not dict:
        return False
    return all(type(file) is dict and set(Written._fields) <= file.keys() for file in index.values())


def mark_complete(
    output: Folder,
    attempt: str,
    files: Mapping[str, Written],
    totals: Mapping[str, int],
    runs: Mapping[str, str | None] | None = None,
) -> None:
    """Promise that all is done; the last write of a run.

    Args:
        output: OUTPUT.
        attempt: that has made the record and the index.
        files: of the index, by path.
        totals: of the index, for people.
        runs: of a sweep, what they promised before their rows were read.
    """
    index = {path: written._asdict() for path, written in sorted(files.items())}
    of_runs = {} if runs is None else {"runs": runs}
    save_record(output, {"attempt": attempt, **totals, "index": index, **of_runs}, SUCCESS)


def mark_incomplete(output: Folder) -> None:
    """Take it back; comes before a run's first write.

    Where the output is of a sweep, the index of all runs holds rows that are about to change: its promise goes first.
    """
    sweep, runs, name = output.url.rpartition(f"/{RUNS}/")
    if runs and "/" not in name:
        above = Folder(sweep, output.options)
        if above.exists(SWEEP):
            above.delete(SUCCESS)
    if output.exists(SUCCESS):  # a deletion may come late, so there is none without need
        output.delete(SUCCESS)


def _sizes(output: Folder) -> dict[str, int | None]:
    index = output.child(INDEX)
    try:
        return {f"{INDEX}/{file.path}": file.size for file in index.walk() if file.path.endswith(".parquet")}
    except FileNotFoundError:
        return {}
