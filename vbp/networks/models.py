"""Networks by name, with their weights, normalisation and class names: ``load_model`` asks the source that it names."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from torch import nn

from vbp.errors import ModelError, UsageError
from vbp.networks.fitting import input_channels
from vbp.networks.model import Model
from vbp.networks.names import NetworkChoice, source_of, weights_of
from vbp.networks.owncode import OwnCode
from vbp.networks.preprocessing import Preprocessing
from vbp.networks.weights import tensors_sha256


def load_model(
    model: str,
    weights: str | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    submodule: str | None = None,
    size: int | None = None,
    seed: int = 500,
    storage_options: Mapping[str, Any] | None = None,
    code: OwnCode | None = None,
) -> Model:
    """Build a network and load its weights.

    Args:
        model: torchvision's name, such as `vgg16`; ``timm:NAME``; or ``PACKAGE.MODULE:FUNCTION`` or
            ``FILE.py:FUNCTION`` of your own, whose code is run.
        weights: `imagenet`, `demo`, `random`, or the path or fsspec URL of a ``.pth``, ``.pt`` or ``.safetensors``
            file, or of the ``.index.json`` of a sharded one; the network's tensors may be anywhere in it. Of your own
            networks `own`: as the function returns them. None: `own` where the network brings them, else `imagenet`.
        model_args: arguments of your own function, or of timm's, by name.
        submodule: the part of the network to explain, such as `backbone.body`; it predicts nothing.
        size: side of the images on which a network of your own is tried, in pixels; None: as it says itself, or 224.
        seed: seed of random weights.
        storage_options: options as for ``vbp.storage.files.read_uri``.
        code: your own code, if it was read on another machine.

    Raises:
        ModelError: the network does not exist, or weights are to be read for one that is no CNN; or your own code
            fails.
        WeightsError: the checkpoint cannot be fetched or read, or does not fit.
    """
    source = source_of(model)
    if model_args and source not in ("code", "timm"):
        raise ModelError(f"model_args are for a function of your own or timm's, and model {model!r} is none.")
    choice = NetworkChoice(
        model=model,
        weights=weights_of(model, weights),
        model_args=model_args or {},
        size=size,
        seed=seed,
        storage_options=storage_options,
        code=code,
    )
    found: Model = import_module(f"vbp.networks.sources.{source}").load(choice)
    return found if submodule is None else _part(found, submodule)


def _part(model: Model, submodule: str) -> Model:
    """A part of a network as a network.

    Raises:
        ModelError: there is no such part, or it takes no images.
    """
    names = [name for name, _ in model.network.named_modules() if name]
    if submodule not in names:
        close = get_close_matches(submodule, names, n=1)
        parts = ", ".join(name for name, _ in model.network.named_children())
        hint = f"did you mean {close[0]}?" if close else f"its parts are {parts}."
        raise ModelError(f"submodule {submodule!r} is no part of {model.name}: {hint}")
    network = model.network.get_submodule(submodule)
    if (channels := input_channels(network)) not in (1, 3):
        raise ModelError(
            f"submodule {submodule!r} of {model.name} takes maps of {channels} channels, not images: give one that "
            "begins at the image."
        )
    return replace(model, network=network, class_names=None, num_classes=None)


def check_source(model: str, code: OwnCode | None) -> None:
    """Try on this machine whether a network of this name can be made; nothing is read or downloaded.

    Raises:
        ModelError: a package is missing here, or the user's own code cannot be imported.
    """
    if (source := source_of(model)) != "torchvision":
        import_module(f"vbp.networks.sources.{source}").check(code)


def own_model(network: nn.Module, preprocessing: Preprocessing) -> Model:
    """A `Model` of a network that exists already; the network is copied and not changed, and predicts nothing.

    Args:
        network: any CNN.
        preprocessing: the preprocessing with which it was trained.
    """
    copied = deepcopy(network).cpu().float().eval().requires_grad_(False)
    name, sha256 = type(network).__name__, tensors_sha256(copied.state_dict())
    return Model(name, copied, preprocessing, None, None, "own", sha256)


def check_channels(network: nn.Module, preprocessing: Preprocessing) -> None:
    """Refuse a number of channels that the network does not take.

    Raises:
        UsageError: the numbers of channels differ.
    """
    taken = input_channels(network)
    if taken == preprocessing.depth:
        return
    way_out = {1: "give channels grey with its own mean and std", 3: "give channels rgb or bgr"}
    raise UsageError(
        f"channels (={preprocessing.channels}) make an input of {preprocessing.depth}, but the network takes {taken}: "
        f"{way_out.get(taken, 'only 1 or 3 are made of pictures')}."
    )
