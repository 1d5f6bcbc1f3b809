"""All tensors of a checkpoint by their dotted paths, at any depth of dicts and lists, without names of wrappers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""Names that ``DataParallel``, ``torch.compile``, FSDP and Fabric insert into keys, at any depth."""


def flat_tensors(content: Any) -> dict[str, Tensor]:
    """Every tensor in nested dicts and lists by its path, in the file's order.

    A path is the keys joined by dots, as in ``state_dict.features.0.weight``, without the names of wrappers.
    If two tensors would get the same path, the later one keeps its wrapper's name. Weights that were pruned by
    ``torch.nn.utils.prune`` are multiplied with their masks.
    """
    found: dict[str, Tensor] = {}
    for path, tensor in _walk(content):
        plain = unwrapped(path)
        found[path if plain in found else plain] = tensor.detach()
    return _pruned(found)


def unwrapped(path: str) -> str:
    """The path without the names of wrappers."""
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def _walk(content: Any) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()  # a pickle may hold a dict in itself
    waiting = [("", content)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Tensor):
            yield path, value
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            inside = [(f"{path}.{key}" if path else str(key), each) for key, each in items]
            waiting += reversed(inside)


def _pruned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for path, tensor in tensors.items():
        name, ending = path[:-5], path[-5:]
        partner = tensors.get(f"{name}_mask" if ending == "_orig" else f"{name}_orig")
        if partner is None or ending not in ("_orig", "_mask") or partner.shape != tensor.shape:
            result[path] = tensor
        elif ending == "_orig":
            result[name] = tensor * partner
    return result
