"""Find a network's tensors in a checkpoint, and load them into the network.

A network fits at a *place*: a prefix of paths, such as ``state_dict.model.backbone.``, under which all its weights lie,
apart from the classifier's. So the names of wrappers around a network need not be known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Size, Tensor, nn

from vbp.networks.statedict import unwrapped

COUNTER = "num_batches_tracked"
"""A counter of batch norm; only training reads it, and files from before PyTorch 0.4.1 lack it."""

AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""Torchvision's names of the classifiers of GoogLeNet and Inception that only training uses; files may lack them."""

AVERAGED = re.compile(r"(?:^|[^A-Za-z])(?:ema|swa|averaged|shadow)(?:$|[^A-Za-z])|EMA")
"""Places of weights that were averaged over training; they are preferred if a file has both."""

TRAINING = re.compile(r"(?:^|\.)(?:opt|optim|optimizers?|grads?|momentum)(?:_\w+)?\d*\.")
"""Places of an optimiser's state, which has tensors for each weight."""


class MisfitError(Exception):
    """The checkpoint does not fit; says which tensor differs from the network."""


class AmbiguousError(Exception):
    """Several places fit equally well; says which."""


class KindError(Exception):
    """A tensor does not hold plain floating-point numbers; says which."""


@dataclass(frozen=True)
class Wanted:
    """The tensors that a network needs from a checkpoint."""

    shapes: dict[str, Size]
    """Shapes of its parameters and buffers by name, without counters."""
    head: str | None
    """Name of the classifier, which a checkpoint may lack."""
    children: tuple[str, ...]
    """Its modules in order, also those without weights."""

    @classmethod
    def of(cls, network: nn.Module, head: str | None) -> Wanted:
        """The tensors that `network` needs."""
        shapes = {key: tensor.shape for key, tensor in network.state_dict().items() if _counts(key)}
        return cls(shapes, head, tuple(name for name, _ in network.named_children()))

    @cached_property
    def trunk(self) -> list[str]:
        """The names that a checkpoint must have."""
        return [key for key in self.shapes if key.partition(".")[0] != self.head]

    @cached_property
    def spellings(self) -> list[Callable[[str], str]]:
        """Functions from the network's names to the names in different kinds of files."""
        index = {name: str(number) for number, name in enumerate(self.children)}
        found: list[Callable[[str], str]] = [unwrapped]
        if any("denselayer" in key for key in self.trunk):
            found.append(_as_early_densenet)
        # nn.Sequential(*network.children()), as fastai makes it, and network.features alone
        found.append(lambda key: f"{index.get(key.partition('.')[0], '')}.{key.partition('.')[2]}")
        if len({key.partition(".")[0] for key in self.trunk}) == 1:
            found.append(lambda key: key.partition(".")[2])
        return found


@dataclass(frozen=True)
class Match:
    """One place in a checkpoint where a network fits."""

    place: str
    """The prefix of the names; empty, or ends with a dot."""
    trunk: dict[str, str]
    """Path by the network's name."""
    head: dict[str, str] | None
    """As `trunk`, for the classifier; None if the checkpoint has another classifier, or none."""
    ignored: list[str]
    """Names, without the place, of counters, buffers and the like that the network lacks."""
    others: list[str]
    """Names, without the place, of other modules with weights."""


@dataclass(frozen=True)
class Fitted:
    """The result of `fit`."""

    notes: tuple[str, ...]
    """Sentences for the user on how the checkpoint was understood."""
    other_widths: bool
    """Whether the network's layers were given the widths of the checkpoint's tensors."""


def fit(
    network: nn.Module, head: str | None, tensors: Mapping[str, Tensor], *, side: int = 224, in_order: bool = False
) -> Fitted:
    """Load the network's tensors into it; a classifier without tensors becomes ``nn.Identity``.

    Args:
        network: the network, which is changed; its tensors may be without memory.
        head: the name of its classifier; None without one.
        tensors: tensors of a checkpoint, by path.
        side: side of images that the network takes, in pixels.
        in_order: where no names fit, take all tensors in their order, if all shapes fit.

    Raises:
        MisfitError: the tensors fit nowhere.
        AmbiguousError: the network fits at several places.
        KindError: names and shapes fit, but a tensor is of another kind.
    """
    wanted = Wanted.of(network, head)
    found = list(matches(wanted, tensors))
    if not found and in_order and (paths := _in_order(wanted, tensors)):
        _load(network, {key: tensors[path] for key, path in paths.items()}, other_widths=False, side=side)
        first = next(iter(paths.items()))
        return Fitted(
            (f"its names are others ({first[1]} for {first[0]}), so tensors were taken in their order",), False
        )
    if not found:
        raise MisfitError(_difference(wanted, tensors))
    match, notes = _chosen(found, tensors)
    state = {key: tensors[path] for key, path in match.trunk.items()}
    classifier = {key: tensors[path] for key, path in (match.head or {}).items()}
    others = match.others
    other_widths = any(tensor.shape != wanted.shapes[key] for key, tensor in {**state, **classifier}.items())
    if head is not None and not _take(network, head, state, {} if others else classifier, other_widths, side):
        others = others or ([head] if classifier else [])
        if others:
            notes.append(f"no predictions, as its {_listed(others)} is not the classifier of this network")
        else:
            notes.append("no predictions, as it has no classifier")
    elif head is None:
        _load(network, state, other_widths, side)
    if match.ignored:
        notes.append(f"ignored, as the network has no use for it: {_listed(match.ignored)}")
    return Fitted(tuple(notes), other_widths)


def _take(
    network: nn.Module,
    head: str,
    trunk: Mapping[str, Tensor],
    classifier: Mapping[str, Tensor],
    other_widths: bool,
    side: int,
) -> bool:
    """Fill the network, and its classifier if that fits; returns whether the classifier fits."""
    if classifier:
        with suppress(MisfitError):
            _load(network, {**trunk, **classifier}, other_widths, side)
            return True
    setattr(network, head, nn.Identity())
    _load(network, trunk, other_widths, side)
    return False


def matches(wanted: Wanted, tensors: Mapping[str, Tensor]) -> Iterator[Match]:
    """Every place with all of the network's names and fitting shapes, apart from the classifier's."""
    if not wanted.trunk:
        return
    met: set[tuple[int, ...]] = set()
    for number, spell in enumerate(wanted.spellings):
        first = spell(wanted.trunk[0])
        places = [path[: len(path) - len(first)] for path in tensors if path == first or path.endswith(f".{first}")]
        for place in places:
            # many networks have the same names of numbers alone
            match = _match(wanted, tensors, place, spell, exact=number > 0 and spell is not _as_early_densenet)
            same = tuple(id(tensors[path]) for path in match.trunk.values()) if match else ()
            if match and same not in met and not TRAINING.search(place):
                met.add(same)
                yield match


def _in_order(wanted: Wanted, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Path by the network's name, if all tensors have the same shapes and last names in the same order; else None.

    A file that sorts its tensors by name, as safetensors does, has lost their order.
    """
    paths = [path for path in tensors if _counts(path)]
    if paths == sorted(paths):
        return None
    pairs = list(zip(wanted.shapes, paths, strict=False))
    alike = all(
        wanted.shapes[key] == tensors[path].shape and key.rpartition(".")[2] == path.rpartition(".")[2]
        for key, path in pairs
    )
    return dict(pairs) if alike and len(paths) == len(wanted.shapes) else None


def _match(
    wanted: Wanted, tensors: Mapping[str, Tensor], place: str, spell: Callable[[str], str], *, exact: bool
) -> Match | None:
    trunk = {key: place + spell(key) for key in wanted.trunk}
    for key, path in trunk.items():
        if path not in tensors or not _alike(tensors[path].shape, wanted.shapes[key], exact=exact):
            return None
    rest = [path for path in tensors if path.startswith(place)]
    expected = set(trunk.values())
    head = {key: place + spell(key) for key in wanted.shapes if key not in trunk}
    modules = {path[len(place) :].partition(".")[0] for path in expected}
    heads = {path[len(place) :].partition(".")[0] for path in head.values()}
    unknown = [path[len(place) :] for path in rest if path not in expected and path not in head.values()]
    unknown = [name for name in unknown if _counts(name) and name.partition(".")[0] not in AUXILIARY]
    unknown = [name for name in unknown if not TRAINING.search(place + name)]
    ignored = [name for name in unknown if _is_harmless(name, tensors[place + name])]
    others = [name for name in unknown if name not in ignored]
    if any(_is_between(name, modules, tensors[place + name]) for name in others):
        return None
    own = [name for name in others if name.partition(".")[0] in heads]
    fits = (
        bool(head)
        and not own
        and all(path in tensors and len(tensors[path].shape) == len(wanted.shapes[key]) for key, path in head.items())
    )
    beside = {name.rpartition(".")[0] or name for name in others if tensors[place + name].ndim > 1}
    if not fits:
        beside |= {path[len(place) :].rpartition(".")[0] for path in head.values() if path in tensors}
    return Match(place, trunk, head if fits else None, ignored, sorted(beside))


def _alike(found: Size, wanted: Size, *, exact: bool) -> bool:
    """Whether a layer's shape can be changed to the other: channels may differ, kernels may not."""
    return found == wanted if exact else len(found) == len(wanted) and found[2:] == wanted[2:]


def _is_harmless(name: str, tensor: Tensor) -> bool:
    """Whether a tensor that the network lacks has no effect on its results."""
    if tensor.numel() <= 1 or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    is_of_layer = name.rpartition(".")[2].startswith(("weight", "bias", "running"))
    return not is_of_layer and tensor.numel() <= 4  # such as mean and std of the colours


def _is_between(name: str, modules: set[str], tensor: Tensor) -> bool:
    """Whether a tensor that the network lacks lies among its layers, so that the file is of another network."""
    module = name.partition(".")[0]
    if module in modules:
        return True
    numbers = [int(each) for each in modules if each.isdigit()]
    return module.isdigit() and bool(numbers) and (int(module) < max(numbers) or tensor.ndim > 2)


def _chosen(found: Sequence[Match], tensors: Mapping[str, Tensor]) -> tuple[Match, list[str]]:
    averaged = [match for match in found if AVERAGED.search(match.place)]
    candidates = averaged or found
    match = candidates[0]
    others = [other for other in candidates[1:] if not _equal(match, other, tensors)]
    if others:
        places = [_named(each.place) for each in (match, *others)]
        raise AmbiguousError(f"{', '.join(places[:-1])} and {places[-1]}")
    if averaged:
        beside = ", not those beside them" if len(averaged) < len(found) else ""
        return match, [f"the averaged weights under {_named(match.place)} are taken{beside}"]
    return match, []


def _equal(one: Match, other: Match, tensors: Mapping[str, Tensor]) -> bool:
    return all(_same(tensors[path], tensors[other.trunk[key]]) for key, path in one.trunk.items())


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one.float(), other.float()))


def _named(place: str) -> str:
    return repr(place.rstrip(".")) if place else "its top"


def _check_kinds(state: Mapping[str, Tensor]) -> None:
    for key, tensor in state.items():
        if tensor.is_quantized or not tensor.is_floating_point() or tensor.itemsize < 2:
            raise KindError(
                f"{key} is of {tensor.dtype}, and quantised weights are not explained: "
                "save those from before they were quantised"
            )
        if tensor.layout != torch.strided or tensor.is_meta:
            raise KindError(
                f"{key} is {'without content (meta)' if tensor.is_meta else 'sparse'}: save it as a plain tensor"
            )


def _load(network: nn.Module, state: Mapping[str, Tensor], other_widths: bool, side: int) -> None:
    """Fill the network, after its layers were given the widths of the tensors.

    Raises:
        MisfitError: a shape differs in more than a width, or layers do not fit each other.
    """
    _check_kinds(state)
    full = {key: tensor.float() for key, tensor in state.items()}
    if other_widths:
        _follow_widths(network, full)
    complete = network.state_dict()  # it has the versions of its modules, which MNASNet needs
    for key, tensor in complete.items():
        found = full[key] if _counts(key) else full.get(key, torch.tensor(0))
        if found.shape != tensor.shape:
            raise MisfitError(_shapes_differ(key, found.shape, tensor.shape))
        complete[key] = found
    network.load_state_dict(complete, assign=True)
    if other_widths and (broken := _broken_chain(network, side)):
        raise MisfitError(broken)


def _follow_widths(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give layers the widths of their tensors, if only a width differs."""
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


def input_channels(network: nn.Module) -> int:
    """Number of input channels of the first convolution; 3 without one."""
    return next((layer.in_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)), 3)


def _broken_chain(network: nn.Module, side: int) -> str | None:
    """A sentence on widths that do not fit from layer to layer, found by a forward pass; None if they do."""
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, input_channels(network), side, side))
    except RuntimeError as error:
        return f"the widths of its layers do not chain for a batch of RGB images ({error})"
    return None


def _difference(wanted: Wanted, tensors: Mapping[str, Tensor]) -> str:
    """The first difference at the most likely place."""
    hits: dict[str, int] = {"": 0}
    names = set(wanted.trunk)
    for path in tensors:
        for at in [0, *(found.end() for found in re.finditer(r"\.", path))]:
            if path[at:] in names:
                hits[path[:at]] = hits.get(path[:at], 0) + 1
    place = max(hits, key=lambda each: hits[each])
    for key in wanted.trunk:
        found = tensors.get(place + key)
        if found is None:
            how = next((way for ending, way in REMADE.items() if f"{place}{key}{ending}" in tensors), None)
            return f"{key} is missing" + (f" (it is saved with {how}, which has to be removed before)" if how else "")
        if not _alike(found.shape, wanted.shapes[key], exact=False):
            return _shapes_differ(key, found.shape, wanted.shapes[key])
    modules = {key.partition(".")[0] for key in wanted.trunk}
    for path, tensor in tensors.items():
        name = path.removeprefix(place)
        known = name in wanted.shapes or not path.startswith(place) or not _counts(name)
        if not known and not _is_harmless(name, tensor) and _is_between(name, modules, tensor):
            return f"{name} is not part of it"
    return "its tensors are what an optimiser keeps, not weights"


REMADE = {"_g": "weight normalisation", "_orig": "spectral normalisation or pruning"}
"""Ends of the names of tensors from which a weight is computed in each pass, by the end of the weight's name."""


def _shapes_differ(key: str, found: Size, wanted: Size) -> str:
    return f"{key} has shape {tuple(found)}, not {tuple(wanted)}"


def _as_early_densenet(key: str) -> str:
    """The name in DenseNet's published files, which are older than its present names."""
    return re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", key)


def _counts(key: str) -> bool:
    return not key.endswith(COUNTER)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
