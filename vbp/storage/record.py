"""The record of a run, ``_run/run.json``, and ``_SUCCESS``, which promises that the index is complete.

An attempt writes its name into ``run.json`` before it changes the output.  ``_SUCCESS`` names the attempt that wrote
it, and the files of its index.  If the two attempts differ, the promise does not count.

A sweep has ``_run/sweep.json`` instead of ``run.json``, and its ``_SUCCESS`` also names the promises of its runs.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
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
    """The fields of a JSON file; None if it does not exist.

    Raises:
        StorageError: the file is damaged.
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
    """The fields of ``run.json``; None if it does not exist.

    Raises:
        StorageError: the file is damaged; unknown fields are ignored.
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
    """The value under a dotted ``name``; None if it is missing."""
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
"""A check for each field that is read; it applies if the field is present."""


def save_record(output: Folder, fields: Mapping[str, Any], path: str = RUN) -> None:
    """Replace the JSON file; `fields` must not hold secrets."""
    text = json.dumps(fields, indent=1, ensure_ascii=False)
    # A place that is not UTF-8 holds lone surrogates; backslashreplace writes them as JSON escapes.
    output.write(path, text.encode("utf-8", "backslashreplace") + b"\n")


def withdraw(output: Folder, path: str) -> None:
    """Delete the JSON file; but where a late deletion could hit a successor's file, overwrite it."""
    if output.changes_may_come_late:
        output.write(path, _WITHDRAWN)
    else:
        output.delete(path)


def is_complete(output: Folder, path: str = RUN) -> bool:
    """Whether a valid ``_SUCCESS`` promises that every listed image has its row in ``index/``.

    Args:
        output: OUTPUT.
        path: the record that belongs to the promise.

    Raises:
        StorageError: the record is damaged.
    """
    promise = load_promise(output)
    return promise is not None and _misfit(output, promise, path) is None


def broken_promise(output: Folder, path: str = RUN) -> str | None:
    """Why an existing ``_SUCCESS`` does not count; None if it counts or does not exist; rest as for `is_complete`."""
    promise = load_promise(output)
    if promise is None:
        return "it is not what was written" if output.exists(SUCCESS) else None
    return _misfit(output, promise, path)


def _misfit(output: Folder, promise: Mapping[str, Any], path: str) -> str | None:
    """How a promise differs from the output; None if it fits.

    The record must name the same attempt, the index (and the scores) must have the same files by name and size
    (`changed_files` compares the content), and the promises of a sweep's runs must be unchanged.  Otherwise another
    attempt has changed the output in between, and the next run makes index and promise anew.
    """
    attempt = (load_record(output, path) or {}).get("attempt")
    if attempt != promise.get("attempt"):  # an older vbp recorded no attempt in either
        return f"{path} is of attempt {attempt}, not of {promise.get('attempt')}"
    promised = {path: file["bytes"] for path, file in promise.get("index", {}).items()}
    folders = {INDEX, *(path.partition("/")[0] for path in promised)}
    sizes = dict(chain.from_iterable(_sizes(output, name) for name in folders)) if promise else {}
    for name in sorted(promised.keys() | sizes):
        if promised.get(name) != sizes.get(name):
            return f"{name} has {_bytes(sizes.get(name))}, not {_bytes(promised.get(name))}"
    runs = promise.get("runs", {})
    changed = [name for name, digest in promises_of(output, runs).items() if digest != runs[name]]
    return f"{RUNS}/{changed[0]} has changed since" if changed else None


def _bytes(size: int | None) -> str:
    return "none" if size is None else f"{size} bytes"


def changed_files(output: Folder) -> Iterator[str]:
    """Files of the index whose SHA-256 is not the one in ``_SUCCESS``; reads all files of the index."""
    for path, file in (load_promise(output) or {}).get("index", {}).items():
        digest = hashlib.sha256()
        with output.open(path) as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
        if digest.hexdigest() != file["sha256"]:
            yield path


def promises_of(output: Folder, runs: Iterable[str]) -> dict[str, str | None]:
    """The SHA-256 of the ``_SUCCESS`` of each run of a sweep, by the run's name; None for a run without one."""

    def digest(name: str) -> str | None:
        try:
            return hashlib.sha256(output.read(f"{RUNS}/{name}/{SUCCESS}")).hexdigest()
        except FileNotFoundError:
            return None

    names = list(runs)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def load_promise(output: Folder) -> dict[str, Any] | None:
    """The content of ``_SUCCESS``; empty if an older vbp wrote it, None if it does not exist or is damaged."""
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
    """Write ``_SUCCESS``, the promise that all is done; it is the last write of a run.

    Args:
        output: OUTPUT.
        attempt: the attempt that wrote the record and the index.
        files: the files of the index, by path.
        totals: totals of the index, for people.
        runs: for a sweep, `promises_of` its runs from before their rows were read.
    """
    index = {path: written._asdict() for path, written in sorted(files.items())}
    of_runs = {} if runs is None else {"runs": runs}
    save_record(output, {"attempt": attempt, **totals, "index": index, **of_runs}, SUCCESS)


def mark_incomplete(output: Folder) -> None:
    """Delete ``_SUCCESS``; this comes before a run's first write.

    If the output belongs to a sweep, the sweep's index has rows that will change, so its promise is deleted first.
    """
    sweep, runs, name = output.url.rpartition(f"/{RUNS}/")
    if runs and "/" not in name:
        above = Folder(sweep, output.options)
        if above.exists(SWEEP):
            above.delete(SUCCESS)
    if output.exists(SUCCESS):  # a deletion may take effect late, so none is sent without need
        output.delete(SUCCESS)


def _sizes(output: Folder, folder: str) -> Iterator[tuple[str, int | None]]:
    with suppress(FileNotFoundError):
        for file in output.child(folder).walk():
            if file.path.endswith(".parquet"):
                yield f"{folder}/{file.path}", file.size
