"""What ``--model`` may name, told by its form alone; nothing is loaded or run here."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vbp.choices import DEMO_NETWORK, NAMED_WEIGHTS, WEIGHTS_OF, Source
from vbp.errors import WeightsError
from vbp.networks.owncode import SUFFIX, OwnCode, is_python

FILES: Mapping[str, Source] = {".onnx": "onnx", ".pt2": "exported"}
"""Ends of the names of files that hold a whole network."""


def is_file(model: str) -> bool:
    """Whether it names a file that holds a whole network, at a path or URL."""
    return model.lower().endswith(tuple(FILES))


def source_of(model: str) -> Source:
    """Where a network of this name comes from.

    >>> [source_of(name) for name in ("vgg16", "timm:resnet18", "nets.py:build", "my.nets:build")]
    ['torchvision', 'timm', 'code', 'code']
    """
    if model.startswith("timm:"):
        return "timm"
    if SUFFIX in (model.lower()[-3:], posixpath.splitext(model.lower().rpartition(":")[0])[1]):
        return "code"
    for suffix, source in FILES.items():
        if model.lower().endswith(suffix):
            return source
    return "code" if ":" in model and "://" not in model else "torchvision"


def weights_of(model: str, weights: str | None) -> str:
    """The weights; where none are asked for, those that the network's source has first."""
    return WEIGHTS_OF[source_of(model)][0] if weights is None else weights


def named_weights(model: str) -> tuple[str, ...]:
    """The named weights that this network may have."""
    return tuple(name for name in WEIGHTS_OF[source_of(model)] if name != "demo" or model == DEMO_NETWORK)


def weights_in_words(model: str) -> str:
    """All that ``--weights`` may be for this network.

    >>> weights_in_words("resnet50")
    'imagenet, random, a file or a URL'
    """
    return f"{', '.join(named_weights(model))}, a file or a URL"


def refuse_named(model: str, weights: str) -> None:
    """Refuse a name of weights that this network does not have.

    Raises:
        WeightsError: there are no such weights.
    """
    if weights in NAMED_WEIGHTS and weights not in named_weights(model):
        raise WeightsError(f"there are no {weights} weights for {model}: give {weights_in_words(model)}.")


def recorded(model: str) -> str:
    """The name without folders, since what counts of a file is its content: ``nets.py:f`` of ``/me/nets.py:f``."""
    return model.rpartition("/")[2] if source_of(model) == "code" or is_file(model) else model


def absolute(model: str) -> str:
    """The name with the absolute path of the file that it names, if it names one of this machine."""
    if is_file(model) and "://" not in model:
        return os.path.abspath(os.path.expanduser(model))
    place, colon, function = model.rpartition(":")
    if source_of(model) != "code" or not is_python(place) or "://" in place:
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
    weights: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    seed: int = 500
    storage_options: Mapping[str, Any] | None = None
    code: OwnCode | None = None
