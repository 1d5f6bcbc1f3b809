"""Recipe: how one run makes its results; what `RunConfig` asked for plus what the run found out by itself.

A recipe is plain data.  It travels to every worker, which builds from it the steps that it needs, and with them
everything that cannot travel: file systems, the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from vbp.networks.preprocessing import IMAGENET, Preprocessing
from vbp.pipeline.classes import ClassMap
from vbp.pipeline.config import RunConfig
from vbp.pipeline.source import Source
from vbp.pipeline.steps import Batch, Decode, Encode, Explain, Fetch, Write
from vbp.storage.outline import suffixes_of

if TYPE_CHECKING:
    from vbp.networks.models import Model

PASSES = 4
"""Batches that each thread of the network on a CPU takes on between reading and writing."""


class Rows(Protocol):
    """What a unit of work still has to do."""

    def singles(self) -> Iterator[Batch]:
        """Batches of one image, to be done with before the next."""

    def batches(self, rows: int) -> Iterator[Batch]:
        """The others, `rows` at a time."""


class Units(Protocol):
    """Opens units of work by their numbers."""

    def open(self, number: int, /) -> AbstractContextManager[Rows]:
        """The rows of a unit; it counts as begun until the context ends."""


class Steps(Protocol):
    """What workers follow, whoever made it: where rows come from, and the five steps that they go through."""

    @property
    def batch_size(self) -> int:
        """Images in one forward pass."""

    @property
    def rows(self) -> int:
        """Images that a process reads and writes together."""

    def source(self) -> Units:
        """Numbers of units -> rows that are not done yet."""

    def fetch(self) -> Callable[[Batch], Batch]:
        """The first step."""

    def decode(self) -> Callable[[Batch], Batch]:
        """The second step."""

    def explain(self) -> Callable[[Batch], Batch]:
        """The third step."""

    def encode(self) -> Callable[[Batch], Batch]:
        """The fourth step."""

    def write(self) -> Callable[[Batch], Batch]:
        """The last step: a report of each part."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a worker needs to know."""

    config: RunConfig
    run_id: str
    """Names this attempt in the lease, the parts and the index."""
    device: str
    """cpu, cuda or mps."""
    precision: str
    """float32, bfloat16 or int8, resolved."""
    processors: Sequence[str] = ()
    """Names of the processors of the workers, each once."""
    batch_size: int
    """Images in one forward pass, resolved."""
    weights_sha256: str
    contents: Mapping[str, str] = field(default_factory=dict)
    """Digests of other files on which the results depend, by their name in the fingerprint."""
    preprocessing: Preprocessing = IMAGENET
    """What the network wants to see, resolved."""
    scales: Mapping[str, Any] | None = None
    """For int8: what calibration found, as JSON values; None before it."""
    classes: ClassMap | None = None
    """How folders and outputs match; None without a classifier."""
    generation: str = ""
    """Of the manifest: parts of another do not count."""
    threads: int = 0
    """CPU threads of one worker's network; 0 leaves the default."""
    network: Model | None = field(default=None, compare=False, repr=False)
    """The loaded model, for a worker in this very process; None elsewhere."""

    def with_network(self, network: Model) -> Recipe:
        """The same for a worker in a process where the network is loaded already."""
        return replace(self, network=network)

    @property
    def computing(self) -> str:
        """Precision and processors, for people: ``bfloat16 on NVIDIA H200``."""
        return f"{self.precision} on {' and '.join(self.processors) or self.device}"

    @property
    def rows(self) -> int:
        """Images that a process reads and writes together."""
        return rows_together(self.config, self.device, self.batch_size, self.threads)

    @property
    def side_by_side(self) -> bool:
        """Whether each thread of the network on a CPU has a batch to itself; a size that was asked for gets all."""
        return self.device == "cpu" and self.config.batch_size is None and self.config.fit != "original"

    def source(self) -> Source:
        """Shard numbers -> rows that are not done yet."""
        return Source(self.config)

    def fetch(self) -> Fetch:
        """The first step."""
        return Fetch(self.config.input, self.config.storage_options, max_bytes=self.config.max_bytes)

    def decode(self) -> Decode:
        """The second step."""
        config = self.config
        return Decode(
            config.size,
            config.fit,
            fast=config.fast_decode,
            keep_data=config.frame == "image",
            preprocessing=self.preprocessing,
        )

    def explain_arguments(self) -> dict[str, Any]:
        """Arguments of the third step, which is built where the accelerator is."""
        config = self.config
        engine = {
            "model": config.model if self.network is None else self.network,
            "weights": config.weights,
            "seed": config.seed,
            "method": config.method,
            "device": self.device,
            "precision": self.precision,
            "batch_size": None if config.fit == "original" else self.batch_size,
            "side_by_side": self.side_by_side,
            "storage_options": config.storage_options,
            "preprocessing": self.preprocessing,
            **self._calibration(),
        }
        return {
            "engine": engine,
            "weights_sha256": self.weights_sha256,
            "classes": self.classes,
            "select": config.select,
            "maps": "maps" in config.outputs,
            "threads": self.threads,
        }

    def _calibration(self) -> dict[str, Any]:
        if self.scales is None:
            return {}
        from vbp.saliency.prepared.int8 import Scales

        return {"calibration": Scales.from_json(self.scales)}

    def explain(self) -> Explain:
        """The third step."""
        return Explain(**self.explain_arguments())

    def encode(self) -> Encode:
        """The fourth step."""
        config = self.config
        outputs = () if config.layout == "none" else config.outputs
        return Encode(outputs, config.mask_format, config.overlay_style, config.frame, self.preprocessing)

    def write(self) -> Write:
        """The last step."""
        config = self.config
        return Write(
            config.output,
            self.run_id,
            suffixes=suffixes_of(config.mask_format),
            constants={
                "model": config.model,
                "weights": self.weights_sha256,
                "preset": config.preset,
                "run_id": self.run_id,
            },
            storage_options=config.storage_options,
            layout=config.layout,
            generation=self.generation,
        )


def rows_together(config: RunConfig, device: str, batch_size: int, threads: int = 0) -> int:
    """Images that a process reads and writes together: enough for all threads of a network on a CPU.

    Args:
        config: asks for a batch size, or for none.
        device: cpu, cuda or mps.
        batch_size: images in one forward pass, resolved.
        threads: of the network on a CPU; 0: as many as torch has.
    """
    if config.batch_size or device != "cpu":
        return batch_size
    import torch

    return batch_size * PASSES * (threads or torch.get_num_threads())
