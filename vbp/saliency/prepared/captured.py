"""Captured: a function of one tensor on a CUDA device, its kernels launched all at once as a CUDA graph.

Launching kernels one by one takes the host microseconds each, and takes Python's lock from other threads. A graph is
recorded once, and then launched with one call. It reads and writes the same memory every time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vbp.saliency.prepared.watch import Watch

LOG = logging.getLogger(__name__)
CALLS = 2
"""Calls with one shape before a graph is recorded. They fill caches, and show that the shape stays."""
GRAPHS = 3
"""Recordings in all; inputs that keep changing their shape are computed without a graph afterwards."""

Function = Callable[[Tensor], Sequence[Tensor]]


class Recorder(Protocol):
    """What is used of CUDA's graphs; a test may give another one."""

    device: str
    """The type of device."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the kernels of `work`, which computes nothing meanwhile: a function that launches them."""

    def release(self) -> None:
        """Give unused memory back to the device."""


class CudaRecorder:
    """CUDA's graphs."""

    device = "cuda"

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record on the current stream, which must not be the default one; work of other threads goes on."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # torch's own stream for this is on the device that recorded first, and may stay the current one on failure
        stream = torch.cuda.current_stream()
        _forget_workspaces()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                work()
        except BaseException:
            # torch does this for a good recording alone; without it memory that others free stays taken, and its own
            with suppress(RuntimeError, AttributeError):
                device = torch.cuda.current_device()
                torch._C._cuda_endAllocateToPool(device, pool)
                torch._C._cuda_releasePool(device, pool)
            raise
        finally:
            _forget_workspaces()
        return graph.replay

    def release(self) -> None:
        """Empty torch's cache."""
        torch.cuda.empty_cache()


def _forget_workspaces() -> None:
    """Let cuBLAS ask for new ones: in a graph's own memory, since others may free the one that it has for a stream."""
    with suppress(AttributeError):  # torch has no public name for this
        torch._C._cuda_clearCublasWorkspaces()


@dataclass
class _Graph:
    shape: torch.Size
    launch: Callable[[], None]
    input: Tensor
    results: Sequence[Tensor]
    kept: Sequence[Tensor]
    """What the kernels read besides; it must not be freed."""


class Captured:
    """A function with the same results, as a graph from the third call in a row with the same shape.

    Results of a graph lie in its memory: they are valid until the next call, and must be read on the same stream. Where
    no graph is possible, the function itself runs, and the log says why, once. Calls must not overlap.

    Args:
        function: only enqueues work on the current stream; it does the same for every tensor of a shape.
        recorder: where graphs are recorded.
    """

    def __init__(self, function: Function, recorder: Recorder | None = None) -> None:
        self._function = function
        self._recorder: Recorder = recorder or CudaRecorder()
        self._graph: _Graph | None = None
        self._shape: torch.Size | None = None
        self._calls = 0
        self._recordings = 0

    def __call__(self, input_: Tensor) -> Sequence[Tensor]:
        """The function's results."""
        graph = self._graph
        if graph is None or graph.shape != input_.shape:
            graph = self._recorded(input_)
        if graph is None:
            return self._plainly(input_)
        graph.input.copy_(input_)
        graph.launch()
        return graph.results

    def _recorded(self, input_: Tensor) -> _Graph | None:
        """A graph for this shape, if it is time for one."""
        self._calls = self._calls + 1 if input_.shape == self._shape else 1
        self._shape = input_.shape
        if self._calls <= CALLS or self._recordings >= GRAPHS:
            return None
        self._drop()
        fixed = input_.clone()
        if self._waits(fixed):
            return None
        self._graph = self._graph_of(fixed)
        if self._graph is None:
            self._recorder.release()
        else:
            self._recordings += 1
        return self._graph

    def _waits(self, fixed: Tensor) -> bool:
        """Whether the host waits for the device within the function, so that there can be no graph.

        This call also makes what CUDA's libraries have for each thread, such as handles, and cannot make while a graph
        is recorded: other threads may have made all calls before.
        """
        watch = Watch(self._recorder.device)
        with watch:
            self._function(fixed)
        if watch.waits:
            self._refuse(f"the host waits for {', '.join(sorted(set(watch.waits)))}")
        return bool(watch.waits)

    def _graph_of(self, fixed: Tensor) -> _Graph | None:
        watch, results = Watch(self._recorder.device), list[Tensor]()

        def work() -> None:
            with watch:
                results.extend(self._function(fixed))

        try:
            launch = self._recorder.record(work)
        except RuntimeError as error:
            self._refuse(str(error))
            return None
        return _Graph(fixed.shape, launch, fixed, results, tuple(watch.kept.values()))

    def _plainly(self, input_: Tensor) -> Sequence[Tensor]:
        try:
            return self._function(input_)
        except torch.OutOfMemoryError:
            if self._graph is None:
                raise
        self._refuse("the device has too little memory for it")
        self._drop()
        return self._function(input_)

    def _refuse(self, why: str) -> None:
        if self._recordings < GRAPHS:
            LOG.warning("no CUDA graph: %s", " ".join(why.split())[:200])
        self._recordings = GRAPHS

    def _drop(self) -> None:
        if self._graph is not None:
            self._graph = None
            self._recorder.release()
