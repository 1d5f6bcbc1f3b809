"""Models as files: read one, attach its mask, write the result."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from vbp.attach.attach import Attached, attach
from vbp.choices import Preset
from vbp.errors import UsageError

LIMIT = 2**31
"""Bytes that a protobuf file may have; larger models keep their weights in other files."""


def attach_file(
    source: str, target: str, *, stages: Sequence[str] = ("all",), preset: Preset = "paper", uint8: bool = False
) -> Attached:
    """Write the model `source` with its mask to `target`, which is replaced if it exists.

    Weights in files of their own stay in these files: beside `source` both models share them, and into another folder
    they are copied.

    Args:
        source: an ``.onnx`` file.
        target: the file to write.
        stages: see `vbp.attach.attach.attach`.
        preset: see there.
        uint8: see there.

    Raises:
        UsageError: the model cannot be read or explained, or the result cannot be written there.
    """
    old, new = Path(source), Path(target)
    if not new.parent.is_dir():
        raise UsageError(f"{target}: the folder {new.parent} does not exist: make it first.")
    if new.is_dir():
        raise UsageError(f"{target} is a folder: name a file in it.")
    model = _read(old)
    if new.exists() and new.samefile(old):
        raise UsageError(f"the output {target} is the model itself, which stays as it is: name another file.")
    weights = _weights(model, old)
    try:
        attached = attach(model, stages=stages, preset=preset, uint8=uint8, folder=str(old.parent))
    except UsageError as error:
        raise type(error)(f"{source}: {error}") from error
    _copy(weights, old.parent, new.parent)
    _write(attached.model, new)
    return attached


def _read(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size >= LIMIT:
            raise UsageError(
                f"{path} has 2 GiB or more, which ONNX's format does not allow: save it with its weights as external "
                "data."
            )
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give an .onnx file of this machine.") from error
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # a damaged file can raise anything
        model = onnx.ModelProto()
    if not model.graph.node:
        raise UsageError(f"{path} {_fault(data)}.")
    return model


def _fault(data: bytes) -> str:
    """What is wrong with a file that holds no model."""
    if not data:
        return "is empty: copy or export it again"
    if data.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the model that it stands for: run `git lfs pull`"
    if data[0] == 8:  # the tag of the first field of a model
        return f"is cut short or damaged ({len(data)} bytes): copy or export it again"
    return "is no ONNX model: export the network to ONNX first, as with torch.onnx.export or tf2onnx"


def _weights(model: onnx.ModelProto, source: Path) -> set[str]:
    """Places of the model's weights in other files, below its folder.

    Raises:
        UsageError: such a file is missing, cut short, or elsewhere.
    """
    found = set()
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = entries.get("location", "")
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise UsageError(f"{source}: the weights {tensor.name!r} are at {place!r}, outside the model's folder.")
        path = source.parent / place
        if not path.is_file():
            raise UsageError(
                f"{source}: the file of its weights, {place!r}, is not beside it: copy it there, under that name."
            )
        if path.stat().st_size < int(entries.get("offset", 0)) + int(entries.get("length", 0)):
            raise UsageError(f"{source}: the file of its weights, {place!r}, is cut short: copy it again.")
        found.add(place)
    return found


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All constants of a graph, those within its nodes too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)


def _copy(places: set[str], source: Path, target: Path) -> None:
    for place in sorted(places):
        old, new = source / place, target / place
        if new.exists() and (new.samefile(old) or filecmp.cmp(old, new, shallow=False)):
            continue
        if new.exists():
            raise UsageError(f"{new} exists and is not the file of the model's weights: choose another folder.")
        new.parent.mkdir(parents=True, exist_ok=True)
        temporary = new.with_name(f"{new.name}.tmp")
        shutil.copyfile(old, temporary)
        os.replace(temporary, new)


def _write(model: onnx.ModelProto, path: Path) -> None:
    try:
        data = model.SerializeToString()
    except ValueError as error:
        raise UsageError(f"{path}: the model and its mask exceed 2 GiB: save the weights as external data.") from error
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error
