"""Networks by name, with their weights, normalisation and class names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from vbp.errors import ModelError, WeightsError
from vbp.saliency.vision import torchvision
from vbp.saliency.weights import Checkpoint, read_checkpoint, tensors_sha256

MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's pixels in [0, 1], red, green, blue: the normalisation of every torchvision classifier."""
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Model:
    """A network that is ready to run."""

    name: str
    network: nn.Module
    """float32, on the CPU, in evaluation mode."""
    mean: tuple[float, float, float]
    """Subtracted from RGB in [0, 1]."""
    std: tuple[float, float, float]
    """Divides what is left."""
    class_names: tuple[str, ...] | None
    """One per output of the classifier, where known."""
    num_classes: int | None
    """None: the checkpoint has no classifier, so the network can be explained but predicts nothing."""
    weights: str
    """As asked for."""
    sha256: str
    """Of the checkpoint file's bytes; of the tensors' bytes for random weights."""


TRANSFORMERS = ("maxvit", "swin", "vit")
"""How the names of torchvision's networks begin that are no CNNs and cannot be explained."""

CLASSIFIERS = ("classifier", "fc")
"""What torchvision's CNNs call the module that ends in their classes."""


def model_names() -> list[str]:
    """The networks that can be explained: every CNN of torchvision."""
    return [name for name in _torchvision_names() if not name.startswith(TRANSFORMERS)]


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """ImageNet's 1000 WordNet ids in the order of torchvision's outputs, which is alphabetical."""
    return tuple((resources.files("vbp.saliency") / "imagenet_wnids.txt").read_text("ascii").split())


def load_model(model: str, weights: str, *, seed: int = 500, storage_options: Mapping[str, Any] | None = None) -> Model:
    """Build a torchvision network and load its weights.

    Channel widths and the number of classes follow the checkpoint's tensors, so that a compact network with
    torchvision's key names loads like the full one.

    Args:
        model: torchvision's name, such as `vgg16`.
        weights: `imagenet`, `demo`, `random`, or the path or fsspec URL of a ``.pth``, ``.pt`` or ``.safetensors``
            file that holds a state dict, bare or under `state_dict`, `model` or `net`.
        seed: of random weights.
        storage_options: as for ``vbp.storage.files.read_uri``.

    Raises:
        ModelError: there is no such network.
        WeightsError: the checkpoint cannot be had or read, or does not fit.
    """
    if model not in _torchvision_names():
        close = get_close_matches(model, _torchvision_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"give one of {', '.join(model_names())}."
        raise ModelError(f"there is no model {model!r}: {hint}")
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _build(model)
        return _model(model, network, weights, tensors_sha256(network.state_dict()), None)
    checkpoint = read_checkpoint(weights, model, storage_options)
    network = _fit(model, checkpoint, weights)
    return _model(model, network, weights, checkpoint.sha256, _class_names(model, network, checkpoint, weights))


def fitting_model(weights: str, storage_options: Mapping[str, Any] | None = None) -> str | None:
    """The torchvision network that a checkpoint file belongs to, by its keys and shapes; None where none fits.

    Raises:
        WeightsError: the checkpoint cannot be had or read.
    """
    if weights in ("imagenet", "demo", "random"):
        return None
    return _most_alike(read_checkpoint(weights, "", storage_options).tensors)


def _model(name: str, network: nn.Module, weights: str, sha256: str, class_names: tuple[str, ...] | None) -> Model:
    network.eval().requires_grad_(False)
    return Model(name, network, MEAN, STD, class_names, _num_classes(network), weights, sha256)


@cache
def _torchvision_names() -> tuple[str, ...]:
    return tuple(torchvision.models.list_models(module=torchvision.models))


def _build(name: str, device: str = "cpu") -> nn.Module:
    with torch.device(device), warnings.catch_warnings():
        # GoogLeNet and Inception announce a change of their initial weights, which we never see trained.
        warnings.simplefilter("ignore", FutureWarning)
        # These two were trained on another normalisation; so they take everyone's.
        settings = {"transform_input": True} if name in ("googlenet", "inception_v3") else {}
        network: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return network


def _build_empty(name: str) -> nn.Module:
    """The network without memory for its tensors, where its constructor allows that."""
    try:
        with _Unfilled():
            return _build(name, "meta")
    except NotImplementedError:
        return _build(name)


class _Unfilled(TorchFunctionMode):
    """Draws no random numbers into tensors: in ones without memory that would load torch's compiler, for 4 s."""

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _fit(name: str, checkpoint: Checkpoint, weights: str) -> nn.Module:
    network = _build_empty(name)
    # DenseNet's published files are older than its names.
    tensors = {re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key): value for key, value in checkpoint.tensors.items()}
    head = _head(network)
    if head and not any(key.startswith(f"{head}.") for key in tensors):
        setattr(network, head, nn.Identity())
    other_widths = _follow_widths(network, tensors)
    expected = network.state_dict()
    for key in expected:
        # Only training reads this counter; files from before PyTorch 0.4.1 lack it.
        if key.endswith("num_batches_tracked"):
            tensors.setdefault(key, torch.tensor(0))
    if difference := _first_difference(expected, tensors):
        raise WeightsError(f"weights {weights!r} do not fit {name}: {difference}. {_what_fits(checkpoint.tensors)}")
    network.load_state_dict(tensors, assign=True)
    if other_widths and (difference := _check_chain(network)):
        raise WeightsError(f"weights {weights!r} do not fit {name}: {difference}.")
    return network


def _head(network: nn.Module) -> str | None:
    """The name of the classifier, where the network has one."""
    return next((name for name, _ in network.named_children() if name in CLASSIFIERS), None)


def _num_classes(network: nn.Module) -> int | None:
    """The width of the classifier's last layer, which is linear but for SqueezeNet's 1x1 convolution."""
    head = _head(network)
    layers = list(network.get_submodule(head).modules()) if head else []
    linear = [layer.out_features for layer in layers if isinstance(layer, nn.Linear)]
    widths = linear or [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)]
    return widths[-1] if widths else None


def _follow_widths(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Give layers the widths of their tensors, where only a width differs; whether any did."""
    followed = False
    for name, module in network.named_modules():
        weight = tensors.get(f"{name}.weight")
        own = getattr(module, "weight", None)
        if weight is None or own is None or weight.shape == own.shape or weight.ndim != own.ndim:
            continue
        if isinstance(module, nn.Conv2d) and module.groups == 1 and weight.shape[2:] == own.shape[2:]:
            module.out_channels, module.in_channels = weight.shape[:2]
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(weight)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        else:
            continue
        for key, old in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            new = tensors.get(f"{name}.{key}", old).to("meta")
            setattr(module, key, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        followed = True
    return followed


def _first_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    for key, tensor in expected.items():
        if key not in found:
            return f"{key} is missing"
        if found[key].shape != tensor.shape:
            return f"{key} has shape {tuple(found[key].shape)}, not {tuple(tensor.shape)}"
    return next((f"{key} is not part of it" for key in found if key not in expected), None)


def _check_chain(network: nn.Module) -> str | None:
    """What is wrong with the widths from layer to layer, found by a forward pass."""
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, 224, 224))
    except RuntimeError as error:
        return f"the widths of its layers do not chain for a batch of RGB images ({error})"
    return None


def _what_fits(tensors: Mapping[str, Tensor]) -> str:
    fitting = _most_alike(tensors)
    if fitting is not None:
        return f"It fits {fitting}."
    return f"Its first key is {next(iter(tensors))}; it fits no network of torchvision."


def _most_alike(tensors: Mapping[str, Tensor]) -> str | None:
    """The torchvision network with these keys, its classifier's aside, and the most of these shapes."""

    def likeness(name: str) -> int:
        shapes = _shapes_by_network()[name]
        return sum(key in tensors and shape == tensors[key].shape for key, shape in shapes.items())

    keys = _weight_keys(tensors)
    features = {key for key in keys if key.startswith("features.")}
    fitting = [
        name
        for name, shapes in _shapes_by_network().items()
        if shapes.keys() == keys or (keys == features == {key for key in shapes if key.startswith("features.")})
    ]
    return max(fitting, key=likeness, default=None)


@cache
def _shapes_by_network() -> dict[str, dict[str, torch.Size]]:
    """Shape by key for every torchvision network that can be built without memory."""
    shapes = {}
    for name in _torchvision_names():
        with suppress(NotImplementedError):
            state = _build(name, "meta").state_dict()
            shapes[name] = {key: state[key].shape for key in _weight_keys(state)}
    return shapes


def _weight_keys(keys: Iterable[str]) -> set[str]:
    return {key for key in keys if not key.endswith("num_batches_tracked")}


def _class_names(name: str, network: nn.Module, checkpoint: Checkpoint, weights: str) -> tuple[str, ...] | None:
    classes = _num_classes(network)
    if classes is None:
        return None
    if checkpoint.class_names is not None:
        if len(checkpoint.class_names) != classes:
            count = len(checkpoint.class_names)
            raise WeightsError(f"weights {weights!r} name {count} classes, but their classifier has {classes}.")
        return checkpoint.class_names
    if classes == len(imagenet_wnids()):
        return tuple(torchvision.models.get_model_weights(name).DEFAULT.meta["categories"])
    return None
