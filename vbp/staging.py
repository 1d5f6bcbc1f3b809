"""Staged: a function of pixels on a CUDA device, with the copies of one batch beside the computation of another.

A call takes a slot, which has a buffer for its pixels in pinned memory and buffers on the device.  Its work goes
through three streams: pixels in, the function, results out.  Meanwhile the next call fills another slot.

Shapes: B images; the pixels are uint8 (B, H, W, 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from queue import SimpleQueue
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SLOTS = 3
"""Batches at the same time: one on its way in, one computed, one on its way out."""
ALIGNED = 16
"""Bytes: where a result may begin in the packed ones, so that it can be of any type."""
PAGE = 4096
"""Bytes. Where a copy's target lies little behind its source in the last twelve bits of the address, processors take a
read for one of what was just written, and wait: 5 ms for 19 MB instead of 1.1, by writes past the caches. So pixels are
put half a page from where they came from."""

Function = Callable[[Tensor], Sequence[Tensor]]
"""Pixels on the device -> results there, each with one entry an image first."""


class Event(Protocol):
    """A moment in a stream."""

    def synchronize(self) -> None:
        """Wait until all work before it is done, without the GIL."""


class Device(Protocol):
    """What is used of CUDA; a test may give another one."""

    def stream(self) -> Any:
        """A queue of work."""

    def event(self) -> Event:
        """An event for `enqueue`."""

    def enqueue(self, stream: Any, work: Callable[[], None], after: Event | None, done: Event) -> None:
        """Put work into a stream: it begins after an event of another stream, and `done` comes when it is done."""

    def empty(self, size: int) -> Tensor:
        """So many bytes on the device."""

    def pinned(self, size: int) -> Tensor:
        """So many bytes on the host that the device copies by itself."""


class Cuda:
    """A CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def stream(self) -> torch.cuda.Stream:
        """A stream that begins after all work of the current one, such as the copy of the weights."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        return stream

    def event(self) -> torch.cuda.Event:
        """An event for which a thread sleeps instead of asking again and again."""
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def enqueue(self, stream: Any, work: Callable[[], None], after: Any, done: Any) -> None:
        """Launch the work's kernels and copies."""
        with torch.cuda.stream(stream):
            if after is not None:
                after.wait()
            work()
            done.record()

    def empty(self, size: int) -> Tensor:
        """So many bytes on the device."""
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def pinned(self, size: int) -> Tensor:
        """So many bytes; torch keeps and reuses them when the last array on them is gone."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class Staged:
    """Calls the function with batches from the host; several threads may call at the same time.

    Args:
        function: must only enqueue work on the current stream, and not wait for it.
        device: where it computes.
        slots: the most batches at the same time.
    """

    def __init__(self, function: Function, device: Device, slots: int = SLOTS) -> None:
        self._function, self._device = function, device
        self._in, self._work, self._out = (device.stream() for _ in range(3))
        self._launching = Lock()
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(slots):
            self._free.put(_Slot(device))

    def __call__(self, pixels_BHWC: NDArray[np.uint8], rows: int) -> list[NDArray[Any]]:
        """The function's results for the pixels, which are filled up with black images to `rows`.

        The arrays lie in pinned memory, and no later call writes there.
        """
        return self.end(self.begin(pixels_BHWC, rows))

    def begin(self, pixels_BHWC: NDArray[np.uint8], rows: int) -> _Slot:
        """Launch the work; `end` gives the results. It waits if all slots are taken."""
        slot = self._free.get()
        try:
            slot.fill(pixels_BHWC, rows)
            # Kernels of two batches in one stream must not alternate: the function may use the same memory for both.
            with self._launching:
                self._device.enqueue(self._in, slot.send, None, slot.arrived)
                self._device.enqueue(self._work, partial(slot.compute, self._function), slot.arrived, slot.computed)
                self._device.enqueue(self._out, slot.fetch, slot.computed, slot.finished)
        except BaseException:
            self._free.put(slot)
            raise
        return slot

    def end(self, slot: _Slot) -> list[NDArray[Any]]:
        """Wait for the results of `begin`."""
        try:
            slot.finished.synchronize()
            return slot.results()
        finally:
            self._free.put(slot)


class _Slot:
    """The buffers and events of one batch at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.arrived, self.computed, self.finished = (device.event() for _ in range(3))
        self._pinned, self._pixels, self._packed = device.pinned(0), device.empty(0), device.empty(0)
        self._filled = self._pinned
        self._count, self._shape = 0, (0, 0, 0, 3)
        self._places: list[_Place] = []
        self._fetched = device.pinned(0)

    def fill(self, pixels_BHWC: NDArray[np.uint8], rows: int) -> None:
        """Put the pixels into pinned memory."""
        self._count, self._shape = len(pixels_BHWC), (rows, *pixels_BHWC.shape[1:])
        if self._pinned.nbytes < self._size + PAGE:
            self._pinned, self._pixels = self._device.pinned(self._size + PAGE), self._device.empty(self._size)
        begin = (pixels_BHWC.ctypes.data + PAGE // 2 - self._pinned.data_ptr()) % PAGE
        self._filled = self._pinned[begin : begin + self._size]
        buffer_BHWC = self._filled.numpy().reshape(self._shape)
        np.copyto(buffer_BHWC[: self._count], pixels_BHWC)
        buffer_BHWC[self._count :] = 0

    def send(self) -> None:
        """Pixels in."""
        self._pixels[: self._size].copy_(self._filled, non_blocking=True)

    def compute(self, function: Function) -> None:
        """The function, and its results packed, so that one copy brings them all."""
        results = function(self._pixels[: self._size].view(self._shape))
        self._places = _placed(results)
        if self._packed.nbytes < self._places[-1].end:
            self._packed = self._device.empty(self._places[-1].end)
        for place, result in zip(self._places, results, strict=True):
            place.of(self._packed).copy_(result, non_blocking=True)

    def fetch(self) -> None:
        """Results out."""
        self._fetched = self._device.pinned(self._places[-1].end)
        self._fetched.copy_(self._packed[: self._fetched.nbytes], non_blocking=True)

    def results(self) -> list[NDArray[Any]]:
        """The fetched results, without the black images."""
        fetched = self._fetched.numpy()
        return [place.array(fetched)[: self._count] for place in self._places]

    @property
    def _size(self) -> int:
        return math.prod(self._shape)


@dataclass(frozen=True)
class _Place:
    """Where a result lies among the packed ones."""

    begin: int
    end: int
    shape: torch.Size
    dtype: torch.dtype

    def of(self, packed: Tensor) -> Tensor:
        """The result, as a view of the packed bytes."""
        return packed[self.begin : self.end].view(self.dtype).view(self.shape)

    def array(self, packed: NDArray[np.uint8]) -> NDArray[Any]:
        """The same on the host, where NumPy's views take a sixth of the time of torch's."""
        return packed[self.begin : self.end].view(_in_numpy(self.dtype)).reshape(self.shape)


@cache
def _in_numpy(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype


def _placed(results: Sequence[Tensor]) -> list[_Place]:
    places, end = [], 0
    for result in results:
        begin = -(-end // ALIGNED) * ALIGNED
        end = begin + result.nbytes
        places.append(_Place(begin, end, result.shape, result.dtype))
    return places
