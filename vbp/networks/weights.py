"""Checkpoints: read the trained tensors of a network from a file, a store or torchvision."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors.torch
import torch
from torch import Tensor

from vbp.choices import DEMO_NETWORK
from vbp.errors import ModelError, StorageError, WeightsError, why_unread
from vbp.light_torchvision import torchvision
from vbp.networks import pickled
from vbp.networks.foreign import AGAIN, describe
from vbp.networks.names import named_weights, weights_in_words
from vbp.networks.nearby import meant, nearby
from vbp.networks.statedict import flat_tensors
from vbp.storage.files import Folder, read_uri


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read, before it is fitted to a network."""

    tensors: dict[str, Tensor]
    """Tensors by path, on the CPU, as they were saved; see ``flat_tensors``."""
    sha256: str
    """SHA-256 of the file's bytes; of a sharded checkpoint, of all files' bytes one after the other."""
    class_names: tuple[str, ...] | None
    """The safetensors metadata `classes` (a JSON list); None if missing."""


def read_checkpoint(weights: str, model: str, storage_options: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read the checkpoint that `weights` names.

    Args:
        weights: `imagenet` (torchvision's, for `model`), `demo` (packaged), or the path or fsspec URL of a
            ``.pth``, ``.pt`` or ``.safetensors`` file, or of the ``.index.json`` of a sharded one.
        model: the network as ``--model`` names it.
        storage_options: options as for ``vbp.storage.files.read_uri``.

    Raises:
        WeightsError: the checkpoint cannot be fetched or read.
        StorageError: the store does not answer, after retries.
    """
    if weights == "imagenet":
        uri = str(_imagenet_file(model))
    elif weights == "demo":
        uri = str(_demo_file())
    else:
        uri = weights
    data = _read(uri, model, storage_options)
    digest = hashlib.sha256(data)
    content: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for name in _parts(data, uri) or [""]:
        if name:
            data = _read_part(uri, name, storage_options)
            digest.update(data)
        part, described = _parse(data, f"{uri} (its part {name})" if name else uri)
        content, metadata = ({**content, **part} if name else part), metadata | described
    tensors = flat_tensors(content)
    if not tensors:
        raise WeightsError(f"{uri} holds no tensors: save the weights with torch.save(model.state_dict(), FILE).")
    return Checkpoint(tensors, digest.hexdigest(), _class_names(metadata, uri))


def read_model(place: str, storage_options: Mapping[str, Any] | None) -> bytes:
    """The bytes of a file that holds a whole network.

    Raises:
        ModelError: it cannot be read.
        StorageError: the store does not answer, after retries.
    """
    try:
        return read_uri(place, storage_options)
    except (FileNotFoundError, PermissionError) as error:
        raise ModelError(f"model {place!r} cannot be read: {why_unread(error)}{meant(place)}.") from error
    except StorageError as error:
        if not isinstance(error.__cause__, (IsADirectoryError, NotADirectoryError)):
            raise
        raise ModelError(f"model {place!r} is a folder; give the file.") from error


def read_beside(place: str, name: str, storage_options: Mapping[str, Any] | None) -> bytes:
    """The bytes of a file that lies beside another; errors as for checkpoints in parts."""
    return _read_part(place, name, storage_options)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the tensors' bytes in order of their names, for weights without a file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def imagenet_is_here(model: str) -> bool:
    """Whether torchvision's checkpoint was downloaded before.

    Raises:
        WeightsError: there is no such checkpoint for `model`.
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
        # torchvision names its files NAME-HASH.pth; HASH is the start of the file's SHA-256.
        hash_prefix = file.stem.rpartition("-")[2]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"the ImageNet weights of {model} cannot be downloaded from {url} ({error}). Without a network: "
                f"put {file.name} in hub/checkpoints/ of a directory and set TORCH_HOME to it, "
                f"or give --weights FILE_OR_URL{', or use --weights demo' * (model == DEMO_NETWORK)}."
            ) from error
    return file


def _demo_file() -> Path:
    file = Path(str(resources.files("vbp"))) / "demo" / "vgg16_demo.safetensors"
    if not file.is_file():
        raise WeightsError(f"the demo weights are missing from this installation ({file}): install vbp again.")
    return file


def _read(uri: str, model: str, storage_options: Mapping[str, Any] | None) -> bytes:
    try:
        return read_uri(uri, storage_options)
    except (FileNotFoundError, PermissionError) as error:
        close = get_close_matches(uri, named_weights(model), n=1) or [nearby(uri)]
        hint = f"did you mean {close[0]}? Otherwise give" if close[0] else "give"
        raise WeightsError(
            f"weights {uri!r} cannot be read: {why_unread(error)}; {hint} {weights_in_words(model)}."
        ) from error
    except StorageError as error:
        if not isinstance(error.__cause__, (IsADirectoryError, NotADirectoryError)):
            raise
        raise WeightsError(f"weights {uri!r} are a folder{_files_in(uri)}; give the file.") from error


def _files_in(folder: str) -> str:
    try:
        names = sorted(path.name for path in Path(folder).iterdir())
    except OSError:
        return ""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f" that holds {shown}" if names else " that is empty"


def _parts(data: bytes, uri: str) -> list[str]:
    """Names of the files if `data` is an index like Hugging Face's ``*.index.json``; empty if it is a checkpoint."""
    if data[:64].lstrip()[:1] != b"{" or b'"weight_map"' not in data:
        return []
    try:
        files = sorted({str(name) for name in json.loads(data)["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise WeightsError(f"{uri} is a damaged index of a checkpoint in parts: {AGAIN}.") from error
    if not files:
        raise WeightsError(f"{uri} is an index of a checkpoint in parts, and names none: {AGAIN}.")
    return files


def _read_part(index: str, name: str, storage_options: Mapping[str, Any] | None) -> bytes:
    """The bytes of a file beside the index; a name that leads elsewhere is refused."""
    folder = index.rpartition("/")[0] if "://" in index else posixpath.dirname(index)
    try:
        return Folder(folder or ("." if not index.startswith("/") else "/"), storage_options).read(name)
    except (FileNotFoundError, PermissionError) as error:
        raise WeightsError(
            f"{name}, which {index} names, cannot be read: {why_unread(error)}; put all parts beside it."
        ) from error
    except StorageError as error:
        if ".." in name or name.startswith("/"):
            raise WeightsError(f"{index} names the part {name!r}, which does not lie beside it.") from error
        raise


def _parse(data: bytes, uri: str) -> tuple[Any, dict[str, str]]:
    """The content and metadata of a checkpoint; its first bytes, not its name, decide the format."""
    # A safetensors file begins with the length of its JSON header in 8 bytes, which are no text.
    if data[8:9] == b"{" and b"\0" in data[:8]:
        return _safetensors(data, uri)
    if foreign := describe(data):
        raise WeightsError(f"{uri} {foreign}.")
    return pickled.load(data, uri), {}


def _safetensors(data: bytes, uri: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        whole = 8 + length + max((each["data_offsets"][1] for each in header.values()), default=0)
        if whole > len(data):
            raise WeightsError(f"{uri} is cut short: it has {len(data)} of {whole} bytes; {AGAIN}.")
        return safetensors.torch.load(data), metadata
    except WeightsError:
        raise
    except Exception as error:  # a damaged header can raise anything
        raise WeightsError(f"{uri} is a damaged or cut safetensors file ({len(data)} bytes): {AGAIN}.") from error


def _class_names(metadata: Mapping[str, str], uri: str) -> tuple[str, ...] | None:
    if "classes" not in metadata:
        return None
    try:
        return tuple(str(name) for name in json.loads(metadata["classes"]))
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"{uri}: the metadata `classes` must be a JSON list of names, not {metadata['classes']!r}."
        ) from error
