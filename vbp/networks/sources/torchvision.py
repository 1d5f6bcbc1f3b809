"""Torchvision's CNNs by their names, and checkpoints of them."""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from vbp.choices import DEMO_NETWORK, NAMED_WEIGHTS
from vbp.errors import ModelError, WeightsError
from vbp.light_torchvision import torchvision
from vbp.networks.fitting import AUXILIARY, Wanted, matches
from vbp.networks.model import Model, fill, head_of, named_classes
from vbp.networks.names import FILES, NetworkChoice, refuse_named
from vbp.networks.nearby import nearby
from vbp.networks.owncode import FORM, SUFFIX
from vbp.networks.preprocessing import IMAGENET, Preprocessing
from vbp.networks.weights import Checkpoint, read_checkpoint, tensors_sha256

TRANSFORMERS = ("maxvit", "swin", "vit")
"""Beginnings of the names of torchvision's networks that are no CNNs and cannot be explained."""


def model_names() -> list[str]:
    """The networks that can be explained: every CNN of torchvision."""
    return [name for name in _torchvision_names() if not name.startswith(TRANSFORMERS)]


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """ImageNet's 1000 WordNet ids in the order of torchvision's outputs, which is alphabetical."""
    return tuple((resources.files("vbp.networks") / "imagenet_wnids.txt").read_text("ascii").split())


def load(choice: NetworkChoice) -> Model:
    """Build a torchvision network and load its weights; errors as for ``load_model``.

    Channel widths and the number of classes follow the checkpoint's tensors, so that a compact network with
    torchvision's key names loads like the full one.
    """
    model, weights = choice.model, choice.weights
    if model not in _torchvision_names():
        raise ModelError(_unknown(model))
    if model.startswith(TRANSFORMERS) and weights != "random":
        raise ModelError(f"model {model!r} is a transformer, and VisualBackProp explains CNNs: give one, as resnet50.")
    refuse_named(model, weights)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(choice.seed)
            network = _build(model)
        return _model(model, network, weights, tensors_sha256(network.state_dict()), None)
    checkpoint = read_checkpoint(weights, model, choice.storage_options)
    network, notes = _fit(model, checkpoint, weights)
    names = _class_names(model, network, checkpoint, weights)
    return _model(model, network, weights, checkpoint.sha256, names, notes)


def _unknown(model: str) -> str:
    """What to say of a name that torchvision does not have."""
    close = get_close_matches(posixpath.basename(model), model_names(), n=1)
    if any(sign in model for sign in "./"):
        near = nearby(model, (SUFFIX, *FILES)) or next(iter(close), "")
        meant = f" (did you mean {near}?)" if near else ""
        return f"there is no model {model!r}{meant}: a network of your own is named as {FORM}, with its function."
    hint = f"did you mean {close[0]}?" if close else "docs/zoo.md lists the names, such as vgg16 and resnet50."
    return f"there is no model {model!r}: {hint}"


def fitting_model(weights: str, storage_options: Mapping[str, Any] | None = None) -> str | None:
    """The torchvision network of a checkpoint file, found by names and shapes of tensors; None if none fits.

    Raises:
        WeightsError: the checkpoint cannot be fetched or read, or fits several networks.
        StorageError: the store does not answer, after retries.
    """
    if weights in NAMED_WEIGHTS:
        return None
    fitting = _most_alike(read_checkpoint(weights, DEMO_NETWORK, storage_options).tensors)
    if len(fitting) > 1:
        raise WeightsError(f"weights {weights!r} fit {' and '.join(fitting)} alike: say which with --model.")
    return next(iter(fitting), None)


def _model(
    name: str,
    network: nn.Module,
    weights: str,
    sha256: str,
    class_names: tuple[str, ...] | None,
    notes: tuple[str, ...] = (),
) -> Model:
    network.eval().requires_grad_(False)
    own = preprocessing_of(name, weights)
    return Model(name, network, own, class_names, _num_classes(network), weights, sha256, notes)


def preprocessing_of(model: str, weights: str) -> Preprocessing:
    """Torchvision's preprocessing for its own weights; ImageNet's for a checkpoint, which does not record any."""
    if weights != "imagenet":
        return IMAGENET
    transforms = torchvision.models.get_model_weights(model).DEFAULT.transforms()
    trained = transforms.resize_size[0], transforms.crop_size[0]
    return Preprocessing(tuple(transforms.mean), tuple(transforms.std), transforms.interpolation.value, trained=trained)


@cache
def _torchvision_names() -> tuple[str, ...]:
    return tuple(torchvision.models.list_models(module=torchvision.models))


def _build(name: str, device: str = "cpu") -> nn.Module:
    with torch.device(device), warnings.catch_warnings():
        # GoogLeNet and Inception warn of a change of their initial weights, which we replace.
        warnings.simplefilter("ignore", FutureWarning)
        # These two were trained with another normalisation; with this setting they take ImageNet's.
        settings = {"transform_input": True} if name in ("googlenet", "inception_v3") else {}
        network: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return network


def _build_empty(name: str) -> nn.Module:
    """The network without memory for its tensors."""
    with _Unfilled():
        return _build(name)


class _Unfilled(TorchFunctionMode):
    """Tensors get no memory and no random numbers; random numbers without memory would load torch's compiler, 4 s.

    Tensors from which a network computes its widths, as RegNet does, stay on the CPU.
    """

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


def _fit(name: str, checkpoint: Checkpoint, weights: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with its weights, and sentences for the user on them."""
    network = _without_auxiliary(_build_empty(name))
    other_widths, notes = fill(
        network, head_of(network), checkpoint, (name, weights), hint=lambda: _what_fits(name, checkpoint.tensors)
    )
    if other_widths and (twins := _exact_twins(name, network)):
        raise WeightsError(f"weights {weights!r} do not fit {name}: their widths are those of {' and '.join(twins)}.")
    return network, notes


def _without_auxiliary(network: nn.Module) -> nn.Module:
    for name in AUXILIARY:
        if hasattr(network, name):
            setattr(network, name, None)
    return network


def _num_classes(network: nn.Module) -> int | None:
    """The width of the classifier's last layer: a linear layer, or SqueezeNet's 1x1 convolution."""
    head = head_of(network)
    layers = list(network.get_submodule(head).modules()) if head else []
    linear = [layer.out_features for layer in layers if isinstance(layer, nn.Linear)]
    widths = linear or [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)]
    return widths[-1] if widths else None


def _exact_twins(name: str, network: nn.Module) -> list[str]:
    """Other networks of the same family with exactly these names and shapes of tensors.

    Shapes do not show strides and groups, so a network with changed widths might be computed as the wrong one.
    """
    found = {key: tensor.shape for key, tensor in network.state_dict().items()}
    head = head_of(network)
    of_family = [other for other in _torchvision_names() if _family(other) == _family(name) and other != name]
    twins = []
    for other in of_family:
        wanted = _wanted(other)
        shapes = {key: wanted.shapes[key] for key in wanted.trunk}
        own = {key: shape for key, shape in found.items() if key in shapes or key.partition(".")[0] != head}
        if shapes == {key: shape for key, shape in own.items() if not key.endswith("num_batches_tracked")}:
            twins.append(other)
    return twins


def _family(name: str) -> str:
    return str(torchvision.models.get_model_builder(name).__module__)


def _what_fits(name: str, tensors: Mapping[str, Tensor]) -> str:
    fitting = [other for other in _most_alike(tensors) if other != name]
    if fitting:
        return f"It fits {' and '.join(fitting)}."
    return f"Its first key is {next(iter(tensors))}; it fits no network of torchvision."


def _most_alike(tensors: Mapping[str, Tensor]) -> list[str]:
    """The torchvision network that fits and shares the most shapes with the checkpoint; several if they are equal."""
    likeness: dict[str, int] = {}
    for name in _torchvision_names():
        wanted = _wanted(name)
        for match in matches(wanted, tensors):
            paths = match.trunk | (match.head or {})
            same = sum(tensors[path].shape == wanted.shapes[key] for key, path in paths.items())
            likeness[name] = max(likeness.get(name, 0), same)
    most = max(likeness.values(), default=0)
    return [name for name, same in likeness.items() if same == most]


@cache
def _wanted(name: str) -> Wanted:
    """The tensors that a torchvision network needs from a checkpoint."""
    network = _without_auxiliary(_build_empty(name))
    return Wanted.of(network, head_of(network))


def _class_names(name: str, network: nn.Module, checkpoint: Checkpoint, weights: str) -> tuple[str, ...] | None:
    classes = _num_classes(network)
    if classes == len(imagenet_wnids()) and checkpoint.class_names is None:
        return tuple(torchvision.models.get_model_weights(name).DEFAULT.meta["categories"])
    return named_classes(classes, checkpoint, weights)
