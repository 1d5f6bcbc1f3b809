"""What ``--model`` may name, told by its form alone; nothing is loaded or run here."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vbp.choices import DEFAULT_WEIGHTS, Source
from vbp.networks.owncode import OwnCode

FILES: Mapping[str, Source] = {".onnx": "onnx", ".pt2": "exported"}
"""Ends of the names of files that hold a whole network."""


def is_file(model: str) -> bool:
    """Whether it names a file that holds a whole network, at a path or URL."""
    return model.endswith(tuple(FILES))


def source_of(model: str) -> Source:
    """Where a network of this name comes from.

    >>> [source_of(name) for name in ("vgg16", "timm:resnet18", "nets.py:build", "my.nets:build")]
    ['torchvision', 'timm', 'code', 'code']
    """
    if model.startswith("timm:"):
        return "timm"
    if ".py" in (model[-3:], posixpath.splitext(model.rpartition(":")[0])[1]):
        return "code"
    for suffix, source in FILES.items():
        if model.endswith(suffix):
            return source
    return "code" if ":" in model and "://" not in model else "torchvision"


def weights_of(model: str, weights: str) -> str:
    """The weights: where the network brings its own, the default means those."""
    return "own" if weights == DEFAULT_WEIGHTS and source_of(model) not in ("torchvision", "timm") else weights


def recorded(model: str) -> str:
    """The name without folders, since what counts of a file is its content: ``nets.py:f`` of ``/me/nets.py:f``."""
    return model.rpartition("/")[2] if source_of(model) == "code" or is_file(model) else model


def absolute(model: str) -> str:
    """The name with the absolute path of the file that it names, if it names one of this machine."""
    if is_file(model) and "://" not in model:
        return os.path.abspath(os.path.expanduser(model))
    place, colon, function = model.rpartition(":")
    if source_of(model) != "code" or not place.endswith(".py"):
        return model
    return f"{os.path.abspath(os.path.expanduser(place))}{colon}{function}"


def code_of(model: str) -> OwnCode | None:
    """The user's own code that `model` names; None if it names none.

    Raises:
        ModelError: as for ``OwnCode.of``.
    """
    return OwnCode.of(model) if source_of(model) == "code" else None


@dataclass(frozen=True, kw_only=True)
class NetworkChoice:
    """All that says which network is loaded; arguments as of ``load_model``."""

    model: str
    weights: str = DEFAULT_WEIGHTS
    model_args: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    seed: int = 500
    storage_options: Mapping[str, Any] | None = None
    code: OwnCode | None = None
