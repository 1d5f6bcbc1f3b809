"""ONNX files: their graph, built again from PyTorch's layers; the extra ``onnx``."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from vbp.errors import ModelError, WeightsError
from vbp.networks.model import Model, classes_of
from vbp.networks.names import NetworkChoice
from vbp.networks.owncode import OwnCode
from vbp.networks.sources.onnx_graph.graph import rebuilt
from vbp.networks.sources.onnx_graph.quantised import is_quantised
from vbp.networks.weights import read_beside, read_model

QUANTISED = "Model {} is quantised: its weights are what its integers stand for, its maps neither rounded nor cut off."


def load(choice: NetworkChoice) -> Model:
    """Read the file and build its network; errors as for ``load_model``."""
    name = choice.model
    if choice.weights != "own":
        raise WeightsError(f"{name} holds its own weights: leave out --weights (={choice.weights}).")
    _onnx()
    data = read_model(name, choice.storage_options)
    model = _parsed(data, name)
    digest = sha256(data)
    for part in _outside(model):
        content = read_beside(name, part, choice.storage_options)
        digest.update(content)
        _take_in(model, part, content)
    network = rebuilt(model, name)
    classes = classes_of(network, choice.size or 224)
    notes = (QUANTISED.format(name),) * is_quantised(model)
    return Model(name, network, None, None, classes, "own", digest.hexdigest(), notes)


def check(code: OwnCode | None) -> None:
    """Refuse a machine without the package onnx.

    Raises:
        ModelError: it is missing.
    """
    _onnx()


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ModelError(f"ONNX files need onnx: pip install 'visualbackprop[onnx]' ({error}).") from error
    return onnx


def _parsed(data: bytes, name: str) -> Any:
    try:
        model = _onnx().load_from_string(data)
    except Exception as error:  # protobuf's own type
        raise ModelError(
            f"model {name!r} is no ONNX file, or it is cut short ({len(data)} bytes): copy or export it again."
        ) from error
    if not model.graph.node:
        raise ModelError(f"model {name!r} is an ONNX file without a graph: copy or export it again.")
    return model


def _outside(model: Any) -> list[str]:
    """Names of the files beside it that hold its weights."""
    return list(dict.fromkeys(entry["location"] for each in model.graph.initializer if (entry := _entry(each))))


def _entry(tensor: Any) -> dict[str, str]:
    """Where a tensor lies outside of the file; empty if it lies in there."""
    return {each.key: each.value for each in tensor.external_data} if tensor.data_location == 1 else {}


def _take_in(model: Any, part: str, content: bytes) -> None:
    for tensor in model.graph.initializer:
        entry = _entry(tensor)
        if entry.get("location") != part:
            continue
        start = int(entry.get("offset", 0))
        length = int(entry.get("length", len(content) - start))
        if start + length > len(content):
            raise ModelError(f"{part}, which holds the weights of the model, is cut short: copy it again.")
        tensor.raw_data = content[start : start + length]
        tensor.data_location = 0
        del tensor.external_data[:]
