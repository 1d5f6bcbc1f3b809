"""The structure of a network as a hash: two networks of the same code may differ in it, and one's weights fit both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

_DEEPEST = 8
"""Containers in containers beyond this are not looked into; one may hold itself."""


def structure_sha256(network: nn.Module, root: str = "") -> str:
    """SHA-256 of modules, their settings, and names and shapes of weights; values of weights do not count.

    Args:
        network: the network, before its first pass, which may leave traces in it.
        root: folder of its code, which does not count in texts.
    """
    told = "\n".join(_told_of(network))
    return hashlib.sha256((told.replace(root, "") if root else told).encode()).hexdigest()


def _told_of(network: nn.Module) -> Iterator[str]:
    for name, module in network.named_modules(remove_duplicate=False):
        yield f"{name}: {type(module).__qualname__}({module.extra_repr()})"
        if isinstance(module, GraphModule):
            yield module.code
        if not type(module).__module__.startswith("torch."):  # torch's own tell their settings
            settings = {key: value for key, value in vars(module).items() if not key.startswith("_")}
            yield from (f"{name}.{key} = {_told(settings[key])}" for key in sorted(settings))
    stored = network.state_dict()
    yield from (f"{name}: {tensor.dtype}{tuple(tensor.shape)}" for name, tensor in stored.items())
    yield from (f"{name} = {_told(each)}" for name, each in network.named_buffers() if name not in stored)


def _told(value: Any, depth: int = 0) -> str:
    """A setting as text that is the same in every process; of unknown objects their type alone."""
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return repr(value)
    if isinstance(value, torch.dtype | torch.device | torch.Size):
        return str(value)
    if isinstance(value, Tensor):
        return f"{value.dtype}{tuple(value.shape)} {_values(value)}"
    if isinstance(value, partial):
        return _told((value.func, value.args, value.keywords), depth)
    if depth < _DEEPEST and isinstance(value, Mapping):
        return str([(_told(key, depth + 1), _told(value[key], depth + 1)) for key in value])
    if depth < _DEEPEST and isinstance(value, list | tuple):
        return str([_told(each, depth + 1) for each in value])
    if depth < _DEEPEST and isinstance(value, set | frozenset):
        return str(sorted(_told(each, depth + 1) for each in value))
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _values(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
