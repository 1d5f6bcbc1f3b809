"""Checkpoints: the trained tensors of a network, from wherever they are kept."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vbp.errors import WeightsError
from vbp.saliency.vision import torchvision
from vbp.storage.files import read_uri

NESTS = ("state_dict", "model", "net", "model_state_dict")
"""Keys under which training scripts store the state dict, the first found first."""

PREFIXES = ("module.", "_orig_mod.")
"""What ``DataParallel`` and ``torch.compile`` put before every key."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: nothing is known yet of the network that it fits."""

    tensors: dict[str, Tensor]
    """float32 where floating, on the CPU, keys without wrappers' prefixes."""
    sha256: str
    """Of the file's bytes."""
    class_names: tuple[str, ...] | None
    """The safetensors metadata `classes` (a JSON list), where present."""


def read_checkpoint(weights: str, model: str, storage_options: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read the checkpoint that `weights` names.

    Args:
        weights: `imagenet` (torchvision's, for `model`), `demo` (packaged), or the path or fsspec URL of a
            ``.pth``, ``.pt`` or ``.safetensors`` file.
        model: torchvision's name of the network.
        storage_options: as for ``vbp.storage.files.read_uri``.

    Raises:
        WeightsError: the checkpoint cannot be had or read.
    """
    if weights == "imagenet":
        uri = str(_imagenet_file(model))
    elif weights == "demo":
        uri = str(_demo_file())
    else:
        uri = weights
    try:
        data = read_uri(uri, storage_options)
    except (FileNotFoundError, PermissionError) as error:
        hint = "give imagenet, demo, random, a file or a URL"
        raise WeightsError(f"weights {weights!r} cannot be read: {error}; {hint}.") from error
    tensors, metadata = _parse(data, uri)
    return Checkpoint(_unwrap(tensors, uri), hashlib.sha256(data).hexdigest(), _class_names(metadata, uri))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the tensors' bytes in order of their names, for weights that come from no file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def imagenet_is_here(model: str) -> bool:
    """Whether torchvision's checkpoint was downloaded before.

    Raises:
        WeightsError: there is none for `model`.
    """
    return _imagenet_place(model)[1].exists()


def _imagenet_place(model: str) -> tuple[str, Path]:
    """The URL of torchvision's checkpoint, and its file in torch.hub's cache."""
    try:
        url = torchvision.models.get_model_weights(model).DEFAULT.url
    except (AttributeError, ValueError) as error:
        raise WeightsError(f"torchvision has no ImageNet weights for {model}: give --weights FILE_OR_URL.") from error
    return url, Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _imagenet_file(model: str) -> Path:
    """Torchvision's checkpoint in torch.hub's cache, downloaded on first use and checked against its hash."""
    url, file = _imagenet_place(model)
    if not file.exists():
        # torchvision names its files NAME-HASH.pth, the hash being the start of the file's SHA-256.
        hash_prefix = file.stem.rpartition("-")[2]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"the ImageNet weights of {model} cannot be downloaded from {url} ({error}). Without a network: "
                f"put {file.name} in hub/checkpoints/ of a directory and set TORCH_HOME to it, "
                f"or give --weights FILE_OR_URL, or use --weights demo."
            ) from error
    return file


def _demo_file() -> Path:
    file = Path(str(resources.files("vbp"))) / "demo" / "vgg16_demo.safetensors"
    if not file.is_file():
        raise WeightsError(f"the demo weights are missing from this installation ({file}): install vbp again.")
    return file


def _parse(data: bytes, uri: str) -> tuple[Any, dict[str, str]]:
    """The content and metadata of a checkpoint; its format is told by its first bytes, not by its name."""
    try:
        # A safetensors file begins with the length of its JSON header in 8 bytes.
        if data[8:9] == b"{":
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
            return safetensors.torch.load(data), metadata
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{uri} is no checkpoint of tensors alone, and nothing else is read because a pickle can run code: "
            f"save it again with torch.save(model.state_dict(), FILE)."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{uri} is no readable checkpoint: {str(error).partition(chr(10))[0]}") from error


def _unwrap(content: Any, uri: str) -> dict[str, Tensor]:
    nest = next((key for key in NESTS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    if nest:
        return _unwrap(content[nest], uri)
    items = content.items() if isinstance(content, dict) else ()
    tensors = {str(key): value for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{uri} holds no tensors, neither bare nor under {', '.join(NESTS)}.")
    while prefix := next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def _class_names(metadata: Mapping[str, str], uri: str) -> tuple[str, ...] | None:
    if "classes" not in metadata:
        return None
    try:
        return tuple(str(name) for name in json.loads(metadata["classes"]))
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"{uri}: the metadata `classes` must be a JSON list of names, not {metadata['classes']!r}."
        ) from error
