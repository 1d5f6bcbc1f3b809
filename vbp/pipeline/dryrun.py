"""What a run would do, how long it would take and what it would cost; writes nothing and needs no Ray.

The rate is the first known of: the given one; that of the newest attempt in OUTPUT; this machine's on a few images.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vbp.errors import StorageError, UsageError
from vbp.pipeline import prepare
from vbp.pipeline.calibrate import calibrated
from vbp.pipeline.config import RunConfig
from vbp.pipeline.hardware import common_precision, look, refuse_decoding, refuse_integers
from vbp.pipeline.loading import Networks
from vbp.pipeline.recipe import PASSES, Recipe, rows_together
from vbp.pipeline.record import Record, open_record
from vbp.pipeline.runner import is_for_ray
from vbp.pipeline.source import batch_of
from vbp.pipeline.steps import Batch, good_rows
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder
from vbp.storage.ledger.index import pending_shards
from vbp.storage.ledger.pace import pace_of
from vbp.storage.leftout import LeftOut, in_words
from vbp.storage.manifest.manifest import Manifest
from vbp.storage.manifest.rows import MAX_LABELS, rows_of, table_of, with_positions
from vbp.words import counted

_BATCHES = 2
"""Number of batches that are measured, after one that warms up."""
_LEAST_IMAGES = 16
_SHARE = 8
"""At most one of so many images that are left is explained, so that a plan takes less time than the run."""
_NO_WORK = (
    "output", "weights", "seed", "noise", "select", "classes", "resume_mode", "retry_failed", "refresh",
    "max_failures", "shard_size", "workers", "node_labels", "runner",
)  # fmt: skip
"""Settings that have no effect on the work on an image."""
_SHARDS = 64
"""The most shards of the manifest that are read to estimate sizes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do."""

    input: str
    output: str
    images: int
    """Listed images, up to ``--limit``."""
    bytes: int | None
    """Bytes of these images' files; None if the store does not report sizes."""
    done: int
    shards: int
    """Number of shards, done ones included."""
    shard_size: int
    runner: str
    workers: int
    device: str
    precision: str
    batch_size: int
    images_per_second: float | None
    rate_of: str
    """The source of the rate."""
    price_per_hour: float | None
    sampled: int
    """Images that were explained to measure rate and sizes."""
    failures: Mapping[str, int]
    """Failures among them, by ``stage: type``."""
    sample_seconds: Mapping[str, float]
    """Seconds per image, by stage."""
    output_bytes: int | None
    """Bytes of masks and other files that are left to write."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Files of INPUT that are no images, by suffix or kind."""
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def left(self) -> int:
        """Images that are left to do."""
        return max(0, self.images - self.done)

    @property
    def seconds(self) -> float | None:
        """Seconds of work on images, without start-up and listing."""
        if self.left == 0:
            return 0.0
        return self.left / self.images_per_second if self.images_per_second else None

    @property
    def left_out_in_words(self) -> str:
        """`left_out` as a phrase for people."""
        return in_words(self.left_out)

    @property
    def cost(self) -> float | None:
        """Cost in the currency of the price."""
        if self.price_per_hour is None or self.seconds is None:
            return None
        return self.price_per_hour * self.seconds / 3600

    def as_json(self) -> dict[str, Any]:
        """JSON values, derived ones included."""
        return dataclasses.asdict(self) | {"left": self.left, "seconds": self.seconds, "cost": self.cost}


class Known:
    """Results of earlier plans that later ones can use, when runs are planned together."""

    def __init__(self) -> None:
        self.networks = Networks()
        self.measured: dict[str, _Measured] = {}
        """Measurements by kind of work."""


def plan(
    config: RunConfig,
    *,
    price_per_hour: float | None = None,
    images_per_second: float | None = None,
    known: Known | None = None,
) -> Plan:
    """Look at INPUT and OUTPUT, and explain a few images in memory.

    Args:
        config: the run.
        price_per_hour: price of all machines of the run together.
        images_per_second: rate of the whole run, if known.
        known: results of other plans; those of this one are added.

    Raises:
        UsageError: the run would be refused.
    """
    config = prepare.absolute(config)
    prepare.check_input(config)
    prepare.check_output(config)
    output = Folder(config.output, config.storage_options)
    try:
        record = open_record(config, output)
        manifest = record.manifest(config.input)
        seen = _seen(config, manifest)
        left = _left(config, output, manifest, seen)
        known_rate = pace_of(output, manifest, record.facts.get("run_id")) if manifest else None
    except (StorageError, OSError) as error:
        raise UsageError(str(error)) from error
    known = known or Known()
    sample = _Sample(config, record, seen.rows, known.networks)
    sample.refuse_other()
    if seen.folders is not None:
        sample.refuse_classes(config, seen.folders)
    runner = "ray" if is_for_ray(config, seen.images) else "local"
    workers = 1 if runner == "local" else config.workers or prepare.workers_here(sample.recipe.device)
    kind = sample.kind_of_work()
    of_another = ", for a run of the same kind" if kind in known.measured else ""
    if left and not of_another:
        known.measured[kind] = sample.measure(left)
    measured = known.measured[kind] if left else _Measured()
    rate, rate_of = images_per_second, "given"
    if rate is None:
        rate, rate_of = known_rate, "of the newest run in OUTPUT"
    if rate is None and measured.images_per_second is not None:
        times = workers if runner == "ray" and sample.recipe.device == "cuda" else 1
        rate = times * measured.images_per_second
        rate_of = f"of this machine, measured on {counted(measured.images, 'image')}{of_another}"
    per_image = measured.bytes_per_image
    return Plan(
        input=config.input,
        output=config.output,
        images=seen.images,
        bytes=seen.bytes,
        done=max(0, seen.images - left),
        shards=seen.shards,
        shard_size=seen.shard_size,
        runner=runner,
        workers=workers,
        device=sample.recipe.device,
        precision=sample.recipe.precision,
        batch_size=sample.recipe.batch_size,
        images_per_second=rate,
        rate_of=rate_of if rate is not None else "unknown",
        price_per_hour=price_per_hour,
        sampled=measured.images,
        failures=dict(measured.failures),
        sample_seconds=measured.seconds,
        output_bytes=None if per_image is None else round(left * per_image),
        left_out=dict(seen.left_out),
        notes=tuple(_notes(config, runner, sample)),
    )


@dataclass(frozen=True)
class _Seen:
    """The content of the input."""

    images: int
    bytes: int | None
    shards: int
    shard_size: int
    rows: list[ManifestRow]
    """Some of the images, chosen by ``--seed``."""
    left_out: Mapping[str, int]
    """Files that are no images, by suffix or kind."""
    folders: Sequence[str] | None
    """First-level folders; None if the listing was cut before it reached all of them."""


def _seen(config: RunConfig, manifest: Manifest | None) -> _Seen:
    if manifest is None or config.refresh or prepare.wants_more(config, manifest):
        return _listed(config, manifest)
    end = manifest.images if config.limit is None else min(manifest.images, config.limit)
    wanted = [shard for shard in range(manifest.shards) if manifest.shard_start(shard) < end]
    chosen = sorted(random.Random(config.seed).sample(wanted, min(_SHARDS, len(wanted))))
    look = _Look(config)
    for shard in chosen:
        table = manifest.read_shard(shard).slice(0, end - manifest.shard_start(shard))
        for row in rows_of(table):
            if not row.gone:
                look.add(row)
    images = manifest.images_within(config.limit)
    size = None if look.bytes is None else round(look.bytes * images / max(look.images, 1))
    return _Seen(
        images,
        size,
        len(wanted),
        manifest.shard_size,
        look.rows,
        manifest.left_out,
        prepare.class_folders(config, manifest),
    )


def _listed(config: RunConfig, manifest: Manifest | None) -> _Seen:
    """List INPUT as a run would."""
    left_out = LeftOut()
    shard_size, rows = prepare.choose_shard_size(config, prepare.list_input(config, left_out=left_out))
    shard_size = manifest.shard_size if manifest else shard_size
    look = _Look(config)
    folders: set[str] | None = set()
    for row in rows:
        if look.images == config.limit:
            folders = None
            break
        if folders is not None and row.label is not None and len(folders) < MAX_LABELS:
            folders.add(row.label)
        look.add(row)
    return _Seen(
        look.images,
        look.bytes,
        -(-look.images // shard_size),
        shard_size,
        look.rows,
        left_out.counts,
        None if folders is None else sorted(folders),
    )


class _Look:
    """Counts rows, and keeps an even choice of them."""

    def __init__(self, config: RunConfig) -> None:
        device = prepare.choose_device(config)
        batch_size = prepare.choose_batch_size(config, device, {})
        self._most = max(_LEAST_IMAGES, _BATCHES * batch_size, rows_together(config, device, batch_size))
        self._random = random.Random(config.seed)
        self.images = 0
        self.bytes: int | None = 0
        self.rows: list[ManifestRow] = []

    def add(self, row: ManifestRow) -> None:
        """Add the row of an image."""
        self.bytes = None if self.bytes is None or row.size is None else self.bytes + row.size
        if len(self.rows) < self._most:
            self.rows.append(row)
        elif (place := self._random.randrange(self.images + 1)) < self._most:
            self.rows[place] = row
        self.images += 1


def _left(config: RunConfig, output: Folder, manifest: Manifest | None, seen: _Seen) -> int:
    """Images that a run would do."""
    if manifest is None:
        return seen.images
    pending = sum(shard.images for shard in pending_shards(output, manifest, config.retry_failed, config.limit))
    return pending + max(0, seen.images - manifest.images_within(None))


class _Sample:
    """A few images, taken through all steps but the last.

    Args:
        config: the run.
        record: the record of earlier attempts.
        rows: the images.
        networks: loads the network, or has it loaded.
    """

    def __init__(self, config: RunConfig, record: Record, rows: list[ManifestRow], networks: Networks) -> None:
        self._record, self._rows = record, rows
        self.stands_in = prepare.weights_are_missing(config)
        # --select needs the classes of the whole collection; the files of all images are an upper bound
        named = "random" if self.stands_in else config.weights
        self._config = dataclasses.replace(config, weights=named, select="all")
        with prepare.weights_as_usage(self._config):
            self._model = networks.load(self._config)
        if self.stands_in:  # random weights lack the preprocessing of the weights that they replace
            self._model = dataclasses.replace(self._model, preprocessing=prepare.own_preprocessing(config))
        prepare.check_network(self._config, self._model)
        self.notes = self._model.notes
        device = prepare.choose_device(config)
        here = [look(device)]
        precision = common_precision(config.precision, record.facts.get("precision"), here)
        refuse_integers(precision, here)
        refuse_decoding(config.decode, here)
        self.recipe = Recipe(
            config=config,
            run_id="plan",
            device=device,
            precision=precision,
            scales=record.facts.get("scales") if precision == "int8" else None,
            batch_size=prepare.choose_batch_size(config, device, record.facts),
            weights_sha256=self._model.sha256,
            contents=prepare.contents_sha256(config, self._model),
            preprocessing=config.preprocessing(self._model.preprocessing),
            network=self._model,
        )

    def kind_of_work(self) -> str:
        """A key that is equal for runs with the same work on each image; the values of the weights do not matter."""
        settings = {name: value for name, value in self._config.as_json().items() if name not in _NO_WORK}
        parameters = sum(each.numel() for each in self._model.network.parameters())
        return repr((settings, parameters, self.recipe.device, self.recipe.precision, self.recipe.batch_size))

    def refuse_other(self) -> None:
        """Refuse another configuration than the output's, as a run would.

        Raises:
            UsageError: names each field that differs.
        """
        before = self._record.facts.get("fingerprint")
        known = self.recipe
        if self.stands_in and before:
            known = dataclasses.replace(known, weights_sha256=before.get("weights"))
        self._record.refuse_other(known)

    def refuse_classes(self, config: RunConfig, folders: Sequence[str]) -> None:
        """Refuse folders that are no classes but must be, as a run would; errors as there."""
        before = self._record.facts.get("classes")
        prepare.choose_classes(config, self._model.num_classes, self._model.class_names, folders, before)

    def measure(self, left: int) -> _Measured:
        """Fetch, decode, explain and encode some images in memory: at most an eighth of the `left` ones.

        One round of all threads, which also warms up, is always done.
        """
        recipe = self._with_scales(dataclasses.replace(self.recipe, config=self._config))
        steps = (recipe.fetch(), recipe.decode(), recipe.explain(), recipe.encode())
        is_shared = recipe.device == "cpu" and self._config.batch_size is None
        round_of_all = max(1, recipe.rows // PASSES) if is_shared else recipe.rows
        count = max(round_of_all, left // _SHARE // round_of_all * round_of_all)
        rows = self._rows
        if count < len(rows):
            rows = random.Random(self._config.seed).sample(rows, count)
        batches = [rows[first : first + recipe.rows] for first in range(0, len(rows), recipe.rows)]
        measured = _Measured()
        for number, some in enumerate([rows[:round_of_all], *batches]):
            started = time.perf_counter()
            batch = batch_of(with_positions(table_of(some)))
            for step in steps:
                batch = step(batch)
            if number:  # the first round warms up
                measured.count(batch, time.perf_counter() - started)
        return measured

    def _with_scales(self, recipe: Recipe) -> Recipe:
        """For int8: the recipe, calibrated on these images; with random weights it stays in float32."""
        if recipe.precision != "int8" or recipe.scales:
            return recipe
        if self.stands_in:
            return dataclasses.replace(recipe, precision="float32")
        return dataclasses.replace(recipe, scales=calibrated(recipe, self._model, self._rows))


class _Measured:
    """Time and results of explaining some images."""

    def __init__(self) -> None:
        self.images, self.ok, self.bytes, self.wall = 0, 0, 0, 0.0
        self.failures: Counter[str] = Counter()
        """Failures by ``stage: type``."""
        self.seconds: dict[str, float] = {}
        """Seconds per image, by stage."""

    @property
    def images_per_second(self) -> float | None:
        """Rate of this machine with all its threads; None if no image could be explained."""
        return self.images / self.wall if self.ok else None

    @property
    def bytes_per_image(self) -> float | None:
        """Bytes of the files of one image; None if unknown."""
        return self.bytes / self.images if self.ok else None

    def count(self, batch: Batch, seconds: float) -> None:
        """Add a batch that took `seconds`."""
        rows, good = len(batch["key"]), good_rows(batch)
        self.images += rows
        self.ok += len(good)
        self.wall += seconds
        for row in set(range(rows)) - set(good):
            self.failures[f"{batch['error_stage'][row]}: {batch['error_type'][row]}"] += 1
        for name, values in batch.items():
            if name.startswith("file_"):
                self.bytes += sum(len(data) for data in values if data is not None)
            if name.startswith("seconds_"):
                stage, before = name.removeprefix("seconds_"), self.images - rows
                mean = (self.seconds.get(stage, 0.0) * before + float(np.sum(values))) / self.images
                self.seconds[stage] = round(mean, 6)


def _notes(config: RunConfig, runner: str, sample: _Sample) -> Iterable[str]:
    yield from sample.notes
    if sample.stands_in:
        precision = " in float32" if sample.recipe.precision == "int8" else ""
        yield (
            f"The weights of --model {config.model} are not here yet: measured with random ones{precision}, sizes may "
            "differ."
        )
    if config.select != "all":
        yield f"Bytes to write are those of all images; --select {config.select} writes fewer."
    if runner == "ray":
        yield "Workers are those of this machine; vbp plan takes the rate of a cluster as --images-per-second."
