"""A watch over operations on a device: what they launch, what makes the host wait, and which memory they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

READ_BY_HOST = frozenset(
    ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "nonzero_static", "masked_select", "bincount")
    + ("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "histc")
)
"""Operations whose result, or the size of it, the host reads from the device."""
ALLOCATIONS = ("empty", "new_empty", "_unsafe_view", "device", "resize_")
"""Beginnings of the names of operations that only make room; views are told by their schema."""
CONVOLUTIONS = frozenset(("convolution", "_convolution"))
FUSED = frozenset(("cudnn_convolution_relu", "cudnn_convolution_add_relu"))


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes all operations within its context; a composite one as those that it is made of.

    Args:
        device: the type of device that is watched.

    Attributes:
        kernels: how often each operation was launched there. A convolution with a bias is two: torch adds the bias in a
            kernel of its own.
        bytes: memory read and written by them, as if nothing were cached.
        waits: operations that make the host wait for the device, or copy between the two.
        mixed: operations on tensors of different devices that are no copies.
        other_formats: convolutions whose map is not channels_last.
        kept: tensors that existed before; while they live, the operations can be repeated.
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.kernels: Counter[str] = Counter()
        self.bytes = 0
        self.waits: list[str] = []
        self.mixed: list[str] = []
        self.other_formats: list[str] = []
        self.kept: dict[int, Tensor] = {}
        self._made: set[int] = set()

    @override
    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        inputs = list(_tensors((args, kwargs)))
        self._note_inputs(func, inputs)
        result = func(*args, **kwargs)
        self._note(func, inputs, list(_tensors(result)))
        return result

    def _note_inputs(self, func: OpOverload, inputs: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        for tensor in inputs:
            if _storage(tensor) not in self._made:
                self.kept.setdefault(_storage(tensor), tensor)
        if self._is_there(inputs) and (name in READ_BY_HOST or _is_chosen_by_mask(name, inputs)):
            self.waits.append(name)

    def _note(self, func: OpOverload, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        self._made.update(map(_storage, outputs))
        if not self._is_there([*inputs, *outputs]):
            return
        elsewhere = [tensor for tensor in [*inputs, *outputs] if tensor.device.type != self._device]
        if elsewhere and "copy" in name:
            self.waits.append(name)
        elif any(tensor.ndim > 0 for tensor in elsewhere):
            self.mixed.append(name)
        if name in CONVOLUTIONS | FUSED and not inputs[0].is_contiguous(memory_format=torch.channels_last):
            self.other_formats.append(f"{name} of {tuple(inputs[0].shape)}")
        if not _is_view(func) and not name.startswith(ALLOCATIONS):
            self.kernels[name] += 1
            self.bytes += sum(map(_bytes, {id(each): each for each in [*inputs, *outputs]}.values()))
            if name in CONVOLUTIONS and len(inputs) > 2:
                self.kernels["bias"] += 1
                self.bytes += 2 * outputs[0].nbytes

    def _is_there(self, tensors: list[Tensor]) -> bool:
        return any(tensor.device.type == self._device for tensor in tensors)


def _is_chosen_by_mask(name: str, inputs: list[Tensor]) -> bool:
    return name.startswith(("index", "_index")) and any(tensor.dtype is torch.bool for tensor in inputs[1:2])


def _is_view(func: OpOverload) -> bool:
    aliases = [each.alias_info for each in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _bytes(tensor: Tensor) -> int:
    """Of a view that repeats values, each value once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
