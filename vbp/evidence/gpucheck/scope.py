"""Scope: what all sections of the check have in common: the device, the sizes, the network, and how to time work.

A section is made of pieces, such as a network or an optimisation. One that fails does not end the others. After some
failures CUDA does nothing more in a process; the rest is done in another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbp.evidence.timing import Figure
from vbp.explainer import PRECISIONS
from vbp.networks.model import Model
from vbp.networks.models import load_model
from vbp.saliency.prepared.switches import Switches
from vbp.saliency.visualbackprop import VisualBackProp

PRECISION: Final = "bfloat16"
"""What the main job computes in on a GPU."""
WARM_UPS = 4
"""Calls before any that is timed; the third of them records a graph on CUDA."""
FEW = 10
"""Calls that are timed briefly."""
BUSY_SECONDS = 0.05
"""A timed round takes at least so long; shorter work is repeated."""


@dataclass(frozen=True)
class Piece:
    """Says that a piece of a section begins."""

    name: str


Found = Figure | str | Piece
"""What a section yields: figures, notes on what could not be measured, and its pieces."""


class BrokenDeviceError(Exception):
    """CUDA does nothing more in this process."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is checked, and how large."""

    device: Literal["cpu", "cuda"]
    """``cuda``; ``cpu`` for a dry check."""
    batch_size: int
    size: int
    """Side of the square images that the network sees."""
    rounds: int
    weights: str | None
    """A checkpoint of VGG16; None: random weights."""
    is_dry: bool
    """Whether everything is small, to try the check itself."""
    behind: Collection[str] = ()
    """Pieces that another process has begun before it ended; they are left out."""

    def attempted(self, name: str, figures: Iterable[Figure | str]) -> Iterator[Found]:
        """The figures of a piece; if it fails, those until then and a note, so that others can follow.

        Raises:
            BrokenDeviceError: none can follow in this process.
        """
        if name in self.behind:
            return
        yield Piece(name)
        try:
            yield from figures
        except Exception as error:
            yield f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            return
        self._look_at_device()  # here the exception holds no memory any more

    def _look_at_device(self) -> None:
        if self.device != "cuda" or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise BrokenDeviceError(" ".join(str(error).split())[:100]) from error
        torch.cuda.empty_cache()

    @cached_property
    def vgg16(self) -> Model:
        """VGG16 with the weights that were asked for; in a dry check the demo's, whose layers are narrow."""
        return load_model("vgg16", self.weights or ("demo" if self.is_dry else "random"))

    def pixels(self, count: int | None = None) -> NDArray[np.uint8]:
        """Random pixels, (count, size, size, 3); None: a batch."""
        shape = (count or self.batch_size, self.size, self.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def images(self, precision: str = PRECISION) -> Tensor:
        """A batch as networks take it: normalised, on the device, in channels last."""
        images_BCHW = torch.randn(self.batch_size, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        return images_BCHW.to(self.device, PRECISIONS[precision]).contiguous(memory_format=torch.channels_last)

    def placed(self, model: Model, precision: str = PRECISION) -> Any:
        """A copy of the model's network on the device, in evaluation mode, as the engine places it."""
        network: Any = deepcopy(model.network).eval().to(self.device, PRECISIONS[precision])
        network = network.to(memory_format=torch.channels_last)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.float()
        return network

    def prepared(self, network: torch.nn.Module, switches: Switches | None = None) -> VisualBackProp:
        """The masks of a network that is on the device, with these optimisations; None: all."""
        vbp = VisualBackProp(network)
        vbp.prepare(torch.device(self.device), PRECISION, switches=switches)
        return vbp

    def synchronise(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def rates(self, work: Callable[[], Any], count: float | None = None) -> list[float]:
        """How many images (or whatever `count` counts) a second `work` does, once a round; None: a batch a call."""
        each = self.batch_size if count is None else count
        return [each / seconds for seconds in self.seconds(work)]

    def milliseconds(self, work: Callable[[], Any]) -> list[float]:
        """How long a call of `work` takes, once a round."""
        return [1e3 * seconds for seconds in self.seconds(work)]

    def seconds(self, work: Callable[[], Any]) -> list[float]:
        """Seconds of one call, once a round; calls follow each other as in a run, without waiting in between."""
        for _ in range(WARM_UPS - 1):
            work()
        calls = max(1, int(BUSY_SECONDS / self._timed(work, 1))) if not self.is_dry else 1
        return [self._timed(work, calls) / calls for _ in range(self.rounds)]

    def briefly(self, work: Callable[[], Any]) -> float:
        """Seconds of one call, of few: for much that is to be timed in little time."""
        self._timed(work, 2)
        return self._timed(work, FEW) / FEW

    def _timed(self, work: Callable[[], Any], calls: int) -> float:
        self.synchronise()
        started = time.perf_counter()
        for _ in range(calls):
            work()
        self.synchronise()
        return time.perf_counter() - started
