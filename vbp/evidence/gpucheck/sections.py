"""The sections of the check by name, in the order in which they are done: the most important first."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from vbp.evidence.gpucheck.codecs import codecs
from vbp.evidence.gpucheck.compiling import compiling
from vbp.evidence.gpucheck.correctness import correctness
from vbp.evidence.gpucheck.decoders import decoders
from vbp.evidence.gpucheck.job import job
from vbp.evidence.gpucheck.kernels import kernels
from vbp.evidence.gpucheck.machine import machine
from vbp.evidence.gpucheck.networks import networks
from vbp.evidence.gpucheck.rates import rates
from vbp.evidence.gpucheck.scope import Found, Scope
from vbp.evidence.gpucheck.worker import worker
from vbp.evidence.timing import machine as facts


@dataclass(frozen=True)
class Section:
    """A part of the check."""

    seconds: float
    """How long it may take when the whole check takes `SECONDS`."""
    work: Callable[[Scope], Iterator[Found]]

    def __call__(self, scope: Scope) -> Iterator[Found]:
        """Do the work; a dry check is too small for several threads."""
        if scope.is_dry:
            torch.set_num_threads(1)
        return self.work(scope)


SECTIONS: Mapping[str, Section] = {
    "machine": Section(20, machine),
    "correctness": Section(50, correctness),
    "rates": Section(60, rates),
    "job": Section(95, job),
    "worker": Section(30, worker),
    "codecs": Section(10, codecs),
    "kernels": Section(15, kernels),
    "decoders": Section(20, decoders),
    "networks": Section(35, networks),
    "compiling": Section(30, compiling),
}


def about(device: str) -> Iterator[dict[str, Any] | None]:
    """What the machine is; None if it has no such device."""
    if device != "cpu" and not torch.cuda.is_available():
        yield None
        return
    libraries = {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    # Ray divides the first among its workers, and keeps batches in the second
    memory = {"memory": psutil.virtual_memory().total, "/dev/shm": shutil.disk_usage("/dev/shm").total}
    yield {**facts(device), **libraries, **{name: f"{size / 1e9:.0f} GB" for name, size in memory.items()}}
