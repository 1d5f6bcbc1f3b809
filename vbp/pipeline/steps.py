"""The five steps of the main job: Fetch, Decode, Explain, Encode, Write.

Each takes a batch of columns (``dict[str, np.ndarray]``, one entry an image) and returns one; each drops the
bulky column that it consumed.  The way of one image::

    key, uri -> Fetch -> data -> Decode -> pixels -> Explain -> mask -> Encode -> file_* -> Write -> index row

An image that fails keeps its row: the step that failed names itself in ``error_stage``, with ``error_type`` and
``error_message``, and the later steps pass the row on.  The steps know nothing of Ray; any of them serves in a
Ray Dataset of your own: ``dataset.map_batches(Decode, fn_constructor_kwargs={"size": 224}, ...)``.

Shape legend: B = batch, H, W = height and width of the network's frame, 3 = RGB.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from typing_extensions import override

from vbp.errors import ImageError, NonFiniteActivationError, StorageError, UsageError
from vbp.networks.preprocessing import IMAGENET, Preprocessing
from vbp.pipeline.breaker import Breaker
from vbp.storage.addresses import without_secrets
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder, read_uri
from vbp.storage.ledger.held import HeldFolder
from vbp.storage.ledger.parts import PART_SCHEMA, write_part
from vbp.storage.outline import KINDS
from vbp.storage.results.layouts import make_layout

if TYPE_CHECKING:
    from torch import nn

    from vbp.images.frame import Frame
    from vbp.networks.models import Model
    from vbp.pipeline.classes import ClassMap

Batch = dict[str, Any]
"""Columns by name: NumPy arrays, one entry an image."""


def objects(values: Sequence[Any]) -> np.ndarray:
    """A one-dimensional object array, also of values that NumPy would stack or that are None."""
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value
    return array


def batch_of(rows: Iterable[ManifestRow]) -> Batch:
    """Rows of the manifest, at least one, as a batch."""
    columns = zip(*rows, strict=True)
    return {name: objects(list(column)) for name, column in zip(ManifestRow._fields, columns, strict=True)}


class Step:
    """One stage of the way; subclasses implement `run` and name their `stage`."""

    stage: ClassVar[str]

    def __call__(self, batch: Batch) -> Batch:
        """Run the step and add its share of seconds an image as the column ``seconds_<stage>``."""
        started = time.perf_counter()
        rows = len(batch["key"])
        batch = dict(batch)
        for name in ("error_stage", "error_type", "error_message"):
            # a fresh column: batches that come through shared memory are read-only, and null comes back as NaN
            batch[name] = objects([None if is_missing(value) else value for value in batch.get(name, [None] * rows)])
        batch = self.run(batch)
        batch[f"seconds_{self.stage}"] = np.full(rows, (time.perf_counter() - started) / max(rows, 1))
        return batch

    def run(self, batch: Batch) -> Batch:
        """Add this step's columns to `batch` and drop what it consumed."""
        raise NotImplementedError

    def fail(self, batch: Batch, row: int, error: BaseException) -> None:
        """Turn `error` into data: row `row` becomes an error row of this stage."""
        batch["error_stage"][row] = self.stage
        batch["error_type"][row] = type(error).__name__
        batch["error_message"][row] = str(error)[:500] or type(error).__name__


def good_rows(batch: Batch) -> list[int]:
    """Rows that have not failed."""
    return [row for row, stage in enumerate(batch["error_stage"]) if is_missing(stage)]


class Fetch(Step):
    """``path`` or ``uri`` -> ``data`` (bytes), ``bytes`` (their number), ``sha256``; ``uri`` loses what is secret.

    Args:
        root: the input folder that ``path`` is relative to; rows without ``path`` are read by ``uri``.
        storage_options: non-secret options by URL prefix.
        max_bytes: of one file; None: any number. A longer one is an error row, of which no more is held.
        threads: reads in flight.
        breaker: stops the run when most reads fail for reasons that lie in the store.

    Raises:
        InterruptedRunError: the store refuses or does not answer most of the time.
    """

    stage = "fetch"

    def __init__(
        self,
        root: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        max_bytes: int | None = None,
        threads: int = 16,
        breaker: Breaker | None = None,
    ) -> None:
        self._root = root
        self._options = storage_options
        self._max_bytes = max_bytes
        self._threads = threads
        self._breaker = breaker or Breaker(is_gone=self._root_is_gone)
        self._folder: Folder | None = None

    @override
    def run(self, batch: Batch) -> Batch:
        paths = batch.pop("path", None)
        if paths is None:
            paths = [None] * len(batch["key"])
        rows = good_rows(batch)
        tasks = [(paths[row], batch["uri"][row]) for row in rows]
        data: list[bytes | None] = [None] * len(paths)
        with ThreadPoolExecutor(min(self._threads, max(len(tasks), 1))) as pool:
            for row, result in zip(rows, self._breaker.watch(pool, self._read, tasks), strict=True):
                if isinstance(result, BaseException):
                    self.fail(batch, row, result)
                else:
                    data[row] = result
        batch["uri"] = objects([without_secrets(uri) for uri in batch["uri"]])
        batch["data"] = objects(data)
        batch["bytes"] = objects([None if d is None else len(d) for d in data])
        batch["sha256"] = objects([None if d is None else hashlib.sha256(d).hexdigest() for d in data])
        return batch

    def _read(self, task: tuple[bytes | None, str]) -> bytes:
        path, uri = task
        if path is None:
            return read_uri(uri, self._options, limit=self._max_bytes)
        if self._folder is None:
            self._folder = Folder(self._root, self._options)
        return self._folder.read(os.fsdecode(path), limit=self._max_bytes)

    def _root_is_gone(self) -> bool:
        """Whether the input folder is not there any more, or holds nothing, as an empty mount point does."""
        if self._folder is None:
            return False
        try:
            return self._folder.first() is None
        except (StorageError, OSError):
            return True


class Decode(Step):
    """``data`` -> ``pixels`` (B,H,W,3 uint8; ragged with fit original), ``width``, ``height``, ``format``, ``frame_*``.

    Args:
        size: side of the network's frame.
        fit: crop, pad, stretch or original.
        fast: DCT-scaled decoding of large JPEGs: other pixels.
        keep_data: leave ``data`` in, for an Encode that draws on the original image.
        preprocessing: how the network wants pictures resized.
    """

    stage = "decode"

    def __init__(
        self,
        size: int = 224,
        fit: Any = "crop",
        *,
        fast: bool = False,
        keep_data: bool = False,
        preprocessing: Preprocessing = IMAGENET,
    ) -> None:
        self._size, self._fit, self._keep_data = size, fit, keep_data
        self._how: dict[str, Any] = {"size": size, "fit": fit, "fast": fast, "preprocessing": preprocessing}

    @override
    def run(self, batch: Batch) -> Batch:
        from vbp.images.decode import Picture, decode

        data = batch["data"] if self._keep_data else batch.pop("data")
        pictures: list[Picture | None] = [None] * len(data)
        for row in good_rows(batch):
            try:
                pictures[row] = decode(data[row], **self._how)
            except ImageError as error:
                self.fail(batch, row, error)
        side = 1 if self._fit == "original" else self._size
        blank = np.zeros((side, side, 3), np.uint8)
        pixels = [blank if p is None else p.pixels_HWC for p in pictures]
        batch["pixels"] = objects(pixels) if self._fit == "original" else np.stack(pixels)
        for name in ("width", "height", "format"):
            batch[name] = objects([None if p is None else getattr(p, name) for p in pictures])
        for name in ("left", "top", "right", "bottom"):
            batch[f"frame_{name}"] = objects([None if p is None else getattr(p.frame, name) for p in pictures])
        return batch


class Explain(Step):
    """``pixels`` -> ``mask`` (B,H,W float32 in [0, 1]), ``flat``, ``log10_max``, ``device`` and the prediction columns.

    Keeps ``pixels`` for the overlay.  With ``maps`` also ``map_NN`` and ``submask_NN``, the averaged maps and the
    intermediate masks, deepest last.

    Args:
        engine: keyword arguments of ``vbp.saliency.Explainer``, which is built here, once an actor; or a network of
            your own, or a function that makes it. Either may also stand for ``model`` among the arguments.
        preprocessing: what a network of your own wants to see.
        weights_sha256: the checkpoint that this must turn out to be; None accepts any.
        classes: how folders and outputs match; None without a classifier.
        select: all, misclassified or correct: which rows get a mask.
        maps: keep averaged maps and intermediate masks.
        threads: CPU threads of the network in this process; 0 leaves the default.

    Raises:
        UsageError: this worker found another checkpoint than the driver did, or a network of your own comes without
            its preprocessing.
    """

    stage = "explain"

    def __init__(
        self,
        engine: Mapping[str, Any] | nn.Module | Callable[[], nn.Module],
        *,
        preprocessing: Preprocessing | None = None,
        weights_sha256: str | None = None,
        classes: ClassMap | None = None,
        select: str = "all",
        maps: bool = False,
        threads: int = 0,
    ) -> None:
        from vbp.explainer import Explainer

        if threads:
            import torch

            torch.set_num_threads(threads)
        engine = dict(engine) if isinstance(engine, Mapping) else {"model": engine, "preprocessing": preprocessing}
        if callable(engine.get("model")):
            engine["model"] = _own_network(engine["model"], engine.get("preprocessing"))
        self._explainer = Explainer(**engine, classify=classes is not None, keep_maps=maps)
        found = self._explainer.model.sha256
        if weights_sha256 not in (None, found):
            raise UsageError(
                f"--weights (={engine['weights']}) is {found} on this worker, but {weights_sha256} where the run "
                "was started; put the same file everywhere, or name it by a URL that all workers can read."
            )
        self._classes = classes
        self._select = select

    @override
    def run(self, batch: Batch) -> Batch:
        rows = len(batch["key"])
        pixels = batch["pixels"]
        masks: list[np.ndarray | None] = [None] * rows
        columns = {name: objects([None] * rows) for name in _EXPLAIN_COLUMNS}
        columns["device"] = objects([self._explainer.device] * rows)
        maps: dict[str, list[np.ndarray | None]] = {}
        for group in self._groups(batch, pixels):
            try:
                result = self._explainer(np.stack([pixels[row] for row in group]))
            except ImageError as error:
                for row in group:
                    self.fail(batch, row, error)
                continue
            for i, row in enumerate(group):
                if not result.finite_B[i]:
                    self.fail(
                        batch,
                        row,
                        NonFiniteActivationError("The network gave infinity or NaN for this image."),
                    )
                    continue
                masks[row] = result.mask_BHW[i]
                columns["flat"][row] = bool(result.flat_B[i])
                columns["log10_max"][row] = float(result.log10_max_B[i])
                if result.logits_BK is not None and self._classes is not None:
                    self._predict(columns, row, result.logits_BK[i], batch["label"][row], self._classes)
                for name, kept in (("map", result.maps), ("submask", result.masks)):
                    for n, map_Bhw in enumerate(kept or ()):
                        maps.setdefault(f"{name}_{n:02d}", [None] * rows)[row] = map_Bhw[i]
        batch |= columns
        batch["mask"] = _stack(masks)
        for name, values in maps.items():
            batch[name] = _stack(values)
        wanted = {"misclassified": False, "correct": True}.get(self._select)
        batch["selected"] = np.array([wanted is None or correct is wanted for correct in batch["correct"]], bool)
        return batch

    def _groups(self, batch: Batch, pixels: np.ndarray) -> list[list[int]]:
        """Rows that go to the engine together, which cuts them to batches: all where they have one shape."""
        rows = good_rows(batch)
        if pixels.dtype == object:  # fit original: an image's mask may not depend on which sizes came with it
            return [[row] for row in rows]
        return [rows] if rows else []

    def _predict(self, columns: Batch, row: int, logits_K: np.ndarray, label: str | None, classes: ClassMap) -> None:
        number = int(logits_K.argmax())
        shifted = np.exp(logits_K.astype(np.float64) - logits_K.max())
        columns["prediction"][row] = number
        columns["predicted_label"][row] = classes.name(number)
        columns["probability"][row] = float(shifted[number] / shifted.sum())
        if label is not None and label in classes.index:
            columns["correct"][row] = classes.index[label] == number


def _own_network(network: nn.Module | Callable[[], nn.Module], preprocessing: Preprocessing | None) -> Model:
    from torch import nn

    from vbp.networks.models import own_model

    if preprocessing is None:
        raise UsageError(
            "A network of your own needs preprocessing: Explain(network, preprocessing=Preprocessing(mean, std)) of "
            "vbp.networks.preprocessing, with the values that it was trained with."
        )
    return own_model(network if isinstance(network, nn.Module) else network(), preprocessing)


_EXPLAIN_COLUMNS = ("flat", "log10_max", "device", "prediction", "predicted_label", "probability", "correct")


def _stack(arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    """One array where the shapes agree, else ragged; missing entries are zeros."""
    present = [a for a in arrays if a is not None]
    shapes = {a.shape for a in present}
    blank = np.zeros(next(iter(shapes)) if len(shapes) == 1 else (1, 1), np.float32)
    filled = [blank if a is None else a for a in arrays]
    return np.stack(filled) if len(shapes) <= 1 else objects(filled)


class Encode(Step):
    """``mask`` and ``pixels`` -> ``file_<kind>`` (bytes) and what the index says of a mask (`_MASK_COLUMNS`).

    It takes masks of your own too: float32 in [0, 1], with ``pixels`` where an overlay is drawn.  Without a column
    ``selected`` all images count; without ``frame_*`` it is unknown where the mask lies in the photograph.

    Args:
        outputs: of mask, overlay, input, maps.
        mask_format: png8, png16 or npy.
        overlay_style: heat, reference or red.
        frame: network, or image for results at the size of the original (needs ``data``).
        preprocessing: the network's, which the style reference draws with.
    """

    stage = "encode"

    def __init__(
        self,
        outputs: Sequence[str] = ("mask", "overlay"),
        mask_format: Any = "png8",
        overlay_style: Any = "heat",
        frame: str = "network",
        preprocessing: Preprocessing = IMAGENET,
    ) -> None:
        self._outputs, self._mask_format, self._style, self._frame = (
            outputs,
            mask_format,
            overlay_style,
            frame,
        )
        self._preprocessing = preprocessing

    @override
    def run(self, batch: Batch) -> Batch:
        rows = len(batch["key"])
        columns = {name: objects([None] * rows) for name in _MASK_COLUMNS}
        selected = batch.get("selected", np.ones(rows, bool))
        files = {f"file_{kind}": objects([None] * rows) for kind in self._outputs}
        for row in good_rows(batch):
            if not selected[row]:
                continue
            try:
                mask_HW, pixels_HWC = self._in_frame(batch, row)
                for kind in self._outputs:
                    files[f"file_{kind}"][row] = self._encode(kind, batch, row, mask_HW, pixels_HWC)
            except (ImageError, OSError, ValueError) as error:  # encoders refuse sizes that their format cannot hold
                self.fail(batch, row, error)
                continue
            for name, value in _facts_of(mask_HW, self._covered(batch, row, mask_HW)).items():
                columns[name][row] = value
        dropped = ("pixels", "mask", "data", *[n for n in batch if n.startswith(("map_", "submask_"))])
        return {n: v for n, v in batch.items() if n not in dropped} | columns | files

    def _covered(self, batch: Batch, row: int, mask_HW: np.ndarray) -> Frame | None:
        """What the written mask covers of the photograph; None where that is unknown."""
        from vbp.images.frame import Frame

        if self._frame == "image":
            return Frame(0, 0, mask_HW.shape[1], mask_HW.shape[0])
        return _frame_of(batch, row) if "frame_left" in batch else None

    def _in_frame(self, batch: Batch, row: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Mask and picture of one row, in the frame that was asked for."""
        if self._frame == "network":
            return batch["mask"][row], batch["pixels"][row] if "pixels" in batch else None
        from vbp.images.decode import decode_upright
        from vbp.images.frame import place

        pixels_HWC = decode_upright(batch["data"][row])
        height, width = pixels_HWC.shape[:2]
        return place(batch["mask"][row], _frame_of(batch, row), width, height), pixels_HWC

    def _encode(self, kind: str, batch: Batch, row: int, mask_HW: np.ndarray, pixels_HWC: np.ndarray | None) -> bytes:
        from vbp.images import encode
        from vbp.images.overlay import overlay

        if kind == "mask":
            return encode.encode_mask(mask_HW, self._mask_format)
        if pixels_HWC is None:
            raise UsageError(f"The output {kind} needs a column pixels (uint8, B x H x W x 3) beside the mask.")
        if kind == "overlay":
            return encode.encode_jpeg(overlay(self._style, pixels_HWC, mask_HW, self._preprocessing))
        if kind == "input":
            return encode.encode_png(pixels_HWC)
        maps, masks = ([batch[n][row] for n in sorted(batch) if n.startswith(p)] for p in ("map_", "submask_"))
        return encode.encode_strip(maps, masks)


_MASK_COLUMNS = (
    "mask_mean", "mask_area", "peak_x", "peak_y", "mask_width", "mask_height", "image_peak_x", "image_peak_y",
)  # fmt: skip


def _facts_of(mask_HW: np.ndarray, covered: Frame | None) -> dict[str, Any]:
    """What the index says of one mask, by `_MASK_COLUMNS`; `covered`: what it covers of the photograph."""
    from vbp.images.frame import point_in_image

    height, width = mask_HW.shape
    peak_y, peak_x = divmod(int(mask_HW.argmax()), width)
    place = (None, None) if covered is None else point_in_image(peak_x, peak_y, (width, height), covered)
    values = (
        float(mask_HW.mean(dtype=np.float64)), float((mask_HW > 0.5).mean()), peak_x, peak_y, width, height, *place,
    )  # fmt: skip
    return dict(zip(_MASK_COLUMNS, values, strict=True))


def _frame_of(batch: Batch, row: int) -> Frame:
    from vbp.images.frame import Frame

    return Frame(*(float(batch[f"frame_{side}"][row]) for side in ("left", "top", "right", "bottom")))


class Write(Step):
    """``file_*`` -> objects in storage, then one part of the index for each shard: the only commit record.

    Returns one row a part: ``shard``, ``ok``, ``error``, ``reasons`` (JSON: errors by ``stage: type``) and the seconds
    of each stage.

    Args:
        output: URL of the output.
        attempt: this run's id; it must hold the lease.
        suffixes: file name suffixes of each kind of output.
        constants: index columns that are the same in every row.
        storage_options: non-secret options by URL prefix.
        layout: how the files lie in the output.
        generation: of the manifest.
        threads: writes in flight.

    Raises:
        StorageError: the store refuses a write: the run stops, nothing is reported as done.
        LeaseLostError: another run has taken over the output.
    """

    stage = "write"

    def __init__(
        self,
        output: str,
        attempt: str,
        suffixes: Mapping[str, str],
        constants: Mapping[str, Any],
        storage_options: Mapping[str, Any] | None = None,
        *,
        layout: str = "files",
        generation: str = "",
        threads: int = 16,
    ) -> None:
        self._folder = HeldFolder(output, storage_options, attempt, looks=False)
        self._attempt, self._generation = attempt, generation
        self._constants = constants
        self._layout = make_layout(layout, self._folder, suffixes, threads)

    def __call__(self, batch: Batch) -> Batch:
        """Write files, then parts; the seconds of this step reach the report alone, after the fact."""
        started = time.perf_counter()
        self._folder.look()
        columns = dict(batch)
        files = {kind: columns.pop(f"file_{kind}") for kind in KINDS if f"file_{kind}" in columns}
        columns |= {name: objects([value] * len(columns["key"])) for name, value in self._constants.items()}
        stages = [name for name in columns if name.startswith("seconds_")]
        columns["seconds"] = np.sum([columns[name] for name in stages], axis=0)
        columns["finished_at"] = objects([datetime.now(UTC)] * len(columns["key"]))
        good = set(good_rows(columns))
        columns["status"] = objects(["ok" if row in good else "error" for row in range(len(columns["key"]))])
        parts = list(self._write_files(columns, files))
        self._folder.look()
        reports = [self._commit(shard, part) for shard, part in parts]
        spent = {name: float(np.sum(columns[name])) for name in stages}
        spent["seconds_write"] = time.perf_counter() - started
        # one report carries the batch's seconds, the others none: their sum is what counts
        for i, report in enumerate(reports):
            report |= {name: value if i == 0 else 0.0 for name, value in spent.items()}
        return {name: np.array([report[name] for report in reports]) for name in reports[0]} if reports else {}

    def _write_files(self, columns: Batch, files: Batch) -> Iterator[tuple[int, pa.Table]]:
        """Each shard in the batch (Ray may bring rows of two together), and its part, once its files are there."""
        table = as_table(columns, _WRITTEN)
        shards, positions = np.asarray(columns["shard"]), np.asarray(columns["position"])
        for shard in np.unique(shards):
            rows = np.flatnonzero(shards == shard)
            rows = rows[np.argsort(positions[rows])]
            part = table.take(pa.array(rows))
            own = {kind: [contents[row] for row in rows] for kind, contents in files.items()}
            for name, values in self._layout.write(int(shard), part, own).items():
                field = part.schema.field(name)
                part = part.set_column(part.schema.get_field_index(name), field, pa.array(values, field.type))
            yield int(shard), part

    def _commit(self, shard: int, part: pa.Table) -> dict[str, Any]:
        write_part(self._folder, part, shard, self._attempt, self._generation)
        causes = zip(part["error_stage"].to_pylist(), part["error_type"].to_pylist(), strict=True)
        reasons = Counter(f"{stage}: {kind}" for stage, kind in causes if stage is not None)
        errors = reasons.total()
        return {"shard": shard, "ok": part.num_rows - errors, "error": errors, "reasons": json.dumps(reasons)}


_WRITTEN = PART_SCHEMA.remove(PART_SCHEMA.get_field_index("shard"))  # write_part adds the shard itself


def as_table(columns: Batch, schema: pa.Schema) -> pa.Table:
    """Columns as Arrow, by `schema`; absent columns are null, and so is NaN in whole numbers (Ray makes it of null)."""
    rows = len(columns["key"])
    arrays = []
    for field in schema:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(rows, field.type))
        else:
            plain = [None if is_missing(value) else value for value in np.asarray(values).tolist()]
            if pa.types.is_integer(field.type):
                plain = [None if value is None else int(value) for value in plain]
            arrays.append(pa.array(plain, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def is_missing(value: Any) -> bool:
    """Whether a cell is null: None, or the NaN that Ray makes of it on the way through Arrow and NumPy."""
    return value is None or bool(value != value)
