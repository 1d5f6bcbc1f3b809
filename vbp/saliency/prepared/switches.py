"""Which optimisations for CUDA are used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Switches:
    """Each optimisation for CUDA, on or off, so that a measurement can tell what each one gains."""

    fused: bool = True
    """Convolution, batch norm, addition and ReLU as one operation of cuDNN."""
    pools: bool = True
    """Max pooling that writes no indices."""
    means: bool = True
    """Averages over channels as products of matrices."""
    descent: bool = True
    """The way down in few operations."""
    graph: bool = True
    """A CUDA graph over all work of a batch."""
