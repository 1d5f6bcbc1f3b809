"""Recipe: how one run makes its results: its `RunConfig`, and the values that the run has found out by itself.

A recipe is plain data.  It is sent to every worker, which builds its steps from it, and everything that cannot be
sent: file systems, the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from vbp.choices import Output
from vbp.networks.names import recorded
from vbp.networks.owncode import OwnCode
from vbp.networks.preprocessing import IMAGENET, Preprocessing
from vbp.pipeline.classes import ClassMap
from vbp.pipeline.config import RunConfig
from vbp.pipeline.finishing import Finishing
from vbp.pipeline.source import Source
from vbp.pipeline.steps import Batch, Decode, DecodeOnDevice, Encode, Explain, Fetch, Write
from vbp.storage.outline import suffixes_of

if TYPE_CHECKING:
    from vbp.networks.model import Model

PASSES = 4
"""Batches for each thread of the network on a CPU that are read, explained and written together."""


class Rows(Protocol):
    """The rows of a unit of work that are not done yet."""

    def singles(self, step: Callable[[Batch], Batch], /) -> Iterator[Batch]:
        """What `step` makes of batches of one image; a death during the step is that image's."""

    def batches(self, rows: int) -> Iterator[Batch]:
        """Batches of the remaining images, `rows` images each."""


class Units(Protocol):
    """Opens units of work by their numbers."""

    def open(self, number: int, /) -> AbstractContextManager[Rows]:
        """The rows of a unit; a mark says that it is begun until the context ends."""


class Steps(Protocol):
    """The interface for workers: the source of rows, and the five steps."""

    @property
    def batch_size(self) -> int:
        """Images in one forward pass."""

    @property
    def rows(self) -> int:
        """Images that a process reads and writes together."""

    @property
    def own_sizes(self) -> bool:
        """Whether the pixels of each image have a size of their own."""

    @property
    def is_slow(self) -> bool:
        """Whether an image takes so long that each batch is stored at once."""

    @property
    def read_by_explain(self) -> frozenset[str] | None:
        """Columns that the third step reads; None: it may read all."""

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
        """The last step, which returns a report for each part."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a worker needs to know about a run."""

    config: RunConfig
    run_id: str
    """Name of this attempt in the lease, the parts and the index."""
    device: str
    """cpu, cuda or mps."""
    precision: str
    """float32, bfloat16 or int8, resolved."""
    processors: Sequence[str] = ()
    """The different names of the workers' processors."""
    batch_size: int
    """Images in one forward pass, resolved."""
    weights_sha256: str
    contents: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of other files on which the results depend, by name in the fingerprint."""
    preprocessing: Preprocessing = IMAGENET
    """The preprocessing, resolved."""
    code: OwnCode | None = None
    """The code of a network of the user's own, for workers that do not have it."""
    scales: Mapping[str, Any] | None = None
    """For int8: the scales from calibration, as JSON values; None before it."""
    classes: ClassMap | None = None
    """Which class each folder stands for; None without a classifier."""
    generation: str = ""
    """The manifest's generation; parts of another generation do not count."""
    truth_rule: str = ""
    """For an evaluation: how a truth is named after its image; empty without one."""
    threads: int = 0
    """CPU threads of one worker's network; 0 leaves the default."""
    alone: bool = False
    """Whether one process does all steps, with all cores of its machine."""
    network: Model | None = field(default=None, compare=False, repr=False)
    """The loaded model, for a worker in this process; None elsewhere."""

    def with_network(self, network: Model) -> Recipe:
        """The recipe for a worker in a process that has loaded the network already."""
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
    def own_sizes(self) -> bool:
        """Whether the pixels of each image have a size of their own."""
        return self.config.fit == "original"

    @property
    def is_slow(self) -> bool:
        """Whether an image takes so long that each batch is stored at once: in an evaluation it takes seconds."""
        return self.config.evaluation is not None

    @property
    def read_by_explain(self) -> frozenset[str] | None:
        """Columns that the third step reads, with ``--decode gpu`` also the rest of the second; None: it may all."""
        if self.config.evaluation is not None:
            return None
        return Explain.reads if self.config.decode == "cpu" else Explain.reads | DecodeOnDevice.reads

    @property
    def side_by_side(self) -> bool:
        """Whether each CPU thread of the network has its own batch; with ``--batch-size`` all threads share one."""
        return self.device == "cpu" and self.config.batch_size is None and self.config.fit != "original"

    @property
    def cores_are_free(self) -> bool:
        """Whether images are decoded and encoded on all cores, since neither the network nor others need them."""
        return self.alone and self.device != "cpu"

    @property
    def outputs(self) -> Sequence[Output]:
        """The kinds of files that are made."""
        return () if self.config.layout == "none" else self.config.outputs

    @property
    def finishing(self) -> Finishing | None:
        """What a CUDA device makes of its masks; None where the masks themselves are needed, or there is no such."""
        config = self.config
        if self.device != "cuda" or config.frame == "image" or config.evaluation is not None:
            return None
        return Finishing(
            mask_format=config.mask_format,
            overlay_style=config.overlay_style if "overlay" in self.outputs else None,
            preprocessing=self.preprocessing,
            keep_pixels="input" in self.outputs,
        )

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
            self.preprocessing.size or 1,
            config.fit,
            fast=config.fast_decode,
            keep_data=config.frame == "image",
            preprocessing=self.preprocessing,
            side_by_side=self.cores_are_free,
            before_device=config.decode == "gpu",
        )

    def explain_arguments(self) -> dict[str, Any]:
        """Arguments of the third step, which is built where the accelerator is."""
        config = self.config
        engine = {
            **config.network,
            **({"code": self.code} if self.network is None else {"model": self.network}),
            "method": config.method,
            "device": self.device,
            "precision": self.precision,
            "batch_size": None if config.fit == "original" else self.batch_size,
            "side_by_side": self.side_by_side,
            "preprocessing": self.preprocessing,
            **self._calibration(),
        }
        return {
            "engine": engine,
            "weights_sha256": self.weights_sha256,
            "structure_sha256": self.contents.get("structure_sha256"),
            "classes": self.classes,
            "select": config.select,
            "maps": "maps" in config.outputs,
            "threads": self.threads,
            "finishing": self.finishing,
        }

    def _calibration(self) -> dict[str, Any]:
        if self.scales is None:
            return {}
        from vbp.saliency.prepared.int8 import Scales

        return {"calibration": Scales.from_json(self.scales)}

    def explain(self) -> Callable[[Batch], Batch]:
        """The third step; in an evaluation with the scores, and with ``--decode gpu`` after the rest of the second."""
        explain = self._explain()
        if self.config.decode == "cpu":
            return explain
        from vbp.images.device_decode import torchcodec

        decode = DecodeOnDevice(
            torchcodec(self.device), self.preprocessing.size or 1, self.config.fit, preprocessing=self.preprocessing
        )
        return lambda batch: explain(decode(batch))

    def _explain(self) -> Callable[[Batch], Batch]:
        if self.config.evaluation is None:
            return Explain(**self.explain_arguments())
        from vbp.pipeline.evaluate import evaluated

        return evaluated(self, self.config.evaluation)

    def encode(self) -> Encode:
        """The fourth step."""
        config = self.config
        finished = self.finishing is not None
        return Encode(
            self.outputs,
            config.mask_format,
            config.overlay_style,
            config.frame,
            self.preprocessing,
            finished=finished,
            side_by_side=self.cores_are_free,
        )

    def write(self) -> Write:
        """The last step."""
        config = self.config
        return Write(
            config.output,
            self.run_id,
            suffixes=suffixes_of(config.mask_format),
            constants={
                "model": recorded(config.model),
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
        config: has ``--batch-size``, or None.
        device: cpu, cuda or mps.
        batch_size: images in one forward pass, resolved.
        threads: threads of the network on a CPU; 0: as many as torch has.
    """
    if config.batch_size or device != "cpu" or config.evaluation is not None:
        return batch_size  # an image that is evaluated takes seconds, and the batch in flight is lost when a run ends
    import torch

    return batch_size * PASSES * (threads or torch.get_num_threads())
