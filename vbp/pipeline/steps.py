"""The five steps of the main job: Fetch, Decode, Explain, Encode, Write.

Each takes a batch of columns (``dict[str, np.ndarray]``, one entry an image).  The first four return it with the
columns that they make, and without the bulky ones that they have used up; the last one stores it.  The way of one
image::

    key, uri -> Fetch -> data -> Decode -> pixels -> Explain -> mask -> Encode -> file_* -> Write -> index row

With ``--decode gpu`` Decode has a second half, `DecodeOnDevice`, which runs where Explain runs.

``vbp.columns`` declares every column; a step that makes or loses another one raises a ``ColumnError``.

An image that fails keeps its row: the step that failed names itself in ``error_stage``, with ``error_type`` and
``error_message``, and the later steps pass the row on.  The steps know nothing of Ray; any of them serves in a
Ray Dataset of your own: ``dataset.map_batches(Decode, fn_constructor_kwargs={"size": 224}, ...)``.  The first four
pass on columns that are yours alone.

Shape legend: B = batch, H, W = height and width of the network's frame, 3 = RGB.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from typing_extensions import override

from vbp.choices import Fit, MaskFormat, OverlayStyle, Select
from vbp.columns import ERRORS, PART_SCHEMA, REPORT, ColumnError, Contract, kind_of
from vbp.errors import ImageError, NonFiniteActivationError, StorageError, UsageError
from vbp.networks.preprocessing import IMAGENET, Preprocessing
from vbp.pipeline.breaker import Breaker
from vbp.pipeline.finishing import MASK_FACTS, Finishing
from vbp.storage.addresses import without_secrets
from vbp.storage.files import Folder, read_uri
from vbp.storage.ledger.held import HeldFolder
from vbp.storage.ledger.parts import write_part
from vbp.storage.outline import KINDS
from vbp.storage.results.layouts import make_layout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vbp.explainer import Explainer
    from vbp.images.frame import Frame
    from vbp.networks.model import Model
    from vbp.pipeline.classes import ClassMap

Batch = dict[str, Any]
"""NumPy arrays by column name, with one entry for each image."""
FRAME = ("frame_left", "frame_top", "frame_right", "frame_bottom")
"""Columns with the place of the network's frame in the upright image."""


def objects(values: Sequence[Any]) -> np.ndarray:
    """A one-dimensional object array of `values`, even where NumPy would stack them or they are None."""
    return np.fromiter(values, object, len(values))


def _with_nulls(values: np.ndarray) -> np.ndarray:
    """A column of objects of its own, with None where Ray has made NaN of it."""
    return objects([None if value is None or is_missing(value) else value for value in values])


class Step:
    """One step; subclasses implement `run`, name their `stage`, and declare their `columns`."""

    stage: ClassVar[str]
    columns: Contract
    _ended = 0.0
    """When the last call ended."""

    def __call__(self, batch: Batch) -> Batch:
        """Run the step and add the column ``seconds_<stage>``: the seconds that it took, divided by the rows.

        If the step before has the same stage, the seconds of both are added.
        Of calls by several threads, seconds that they shared are counted once.

        Raises:
            ColumnError: a column is missing, or the step made or dropped a column that it does not declare.
        """
        started = time.perf_counter()
        self.columns.check_given(batch)
        rows = len(batch["key"])
        batch = dict(batch)
        for name in ERRORS:
            # A new column: batches from Ray's shared memory are read-only, and their nulls have become NaN.
            batch[name] = _with_nulls(batch[name]) if name in batch else objects([None] * rows)
        given = frozenset(batch)
        batch = self.run(batch)
        started, self._ended = max(started, self._ended), time.perf_counter()
        spent = f"seconds_{self.stage}"
        batch[spent] = batch.get(spent, 0.0) + np.full(rows, (self._ended - started) / max(rows, 1))
        self.columns.check_made(given, batch)
        return batch

    def run(self, batch: Batch) -> Batch:
        """Add this step's columns to `batch` and drop what it consumed."""
        raise NotImplementedError

    def fail(self, batch: Batch, row: int, error: BaseException) -> None:
        """Make row `row` an error row of this stage, with the type and message of `error`."""
        kind = type(error).__name__
        for name, value in zip(ERRORS, (self.stage, kind, str(error)[:500] or kind), strict=True):
            batch[name][row] = value


def good_rows(batch: Batch) -> list[int]:
    """Numbers of the rows that have not failed."""
    return [row for row, stage in enumerate(batch["error_stage"]) if stage is None or is_missing(stage)]


class Fetch(Step):
    """``path`` or ``uri`` -> ``data`` (bytes), ``bytes`` (their number), ``sha256``; secrets are cut out of ``uri``.

    Args:
        root: the input folder that ``path`` is relative to; rows without ``path`` are read by ``uri``.
        storage_options: non-secret options by URL prefix.
        max_bytes: largest file that is read; None: no limit. A larger file becomes an error row; no more is read.
        threads: reads that run at the same time.
        breaker: stops the run when most reads fail because of the store.

    Raises:
        InterruptedRunError: the store refuses or does not answer most of the time.
    """

    stage = "fetch"
    columns = Contract.of("fetch", {"key", "uri"})

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
        """Whether the input folder has disappeared or is empty; an unmounted disk leaves an empty folder."""
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
        fast: decode large JPEGs at a reduced DCT scale; this gives slightly different pixels.
        keep_data: keep the column ``data``, for an Encode that draws on the original image.
        preprocessing: how the network wants pictures resized.
        side_by_side: decode on all cores of this process, each image on one.
        before_device: leave the files that a device decodes to `DecodeOnDevice`, which must come next: only those keep
            their ``data``, which are empty in other rows, and ``pixels`` are ragged. Not with `fast`, `keep_data` or
            fit original.
    """

    stage = "decode"

    def __init__(
        self,
        size: int = 224,
        fit: Fit = "crop",
        *,
        fast: bool = False,
        keep_data: bool = False,
        preprocessing: Preprocessing = IMAGENET,
        side_by_side: bool = False,
        before_device: bool = False,
    ) -> None:
        keeps = {"data"} if keep_data or before_device else set()
        self.columns = Contract.of("decode", {"key", "data"}, keeps=keeps)
        self._map = _mapping(side_by_side)
        self._keep_data, self._before_device = keep_data, before_device
        self._is_ragged, self._side = fit == "original" or before_device, 1 if fit == "original" else size
        self._how: dict[str, Any] = {"size": size, "fit": fit, "preprocessing": preprocessing}
        self._fast = fast

    @override
    def run(self, batch: Batch) -> Batch:
        from vbp.images.decode import Picture, decode, left_to_device

        data = batch["data"] if self._keep_data else batch.pop("data")
        pictures: list[Picture | None] = [None] * len(data)
        left = [b""] * len(data)

        def one(row: int) -> None:
            if self._before_device and (picture := left_to_device(data[row], **self._how)) is not None:
                pictures[row], left[row] = picture, data[row]
                return
            try:
                pictures[row] = decode(data[row], fast=self._fast, **self._how)
            except ImageError as error:
                self.fail(batch, row, error)

        self._map(one, good_rows(batch))
        blank = np.zeros((self._side, self._side, 3), np.uint8)
        pixels = [blank if p is None else p.pixels_HWC for p in pictures]
        batch["pixels"] = objects(pixels) if self._is_ragged else np.stack(pixels)
        if self._before_device:
            batch["data"] = objects(left)
        for name in ("width", "height", "format"):
            batch[name] = objects([None if p is None else getattr(p, name) for p in pictures])
        for name in ("left", "top", "right", "bottom"):
            batch[f"frame_{name}"] = objects([None if p is None else getattr(p.frame, name) for p in pictures])
        return batch


class DecodeOnDevice(Step):
    """``data`` that `Decode` has left -> ``pixels`` (B,H,W,3 uint8), on the device that holds the network.

    What the device cannot read is decoded as `Decode` does it, so that broken files fail with the same messages.

    Args:
        decoder: decodes JPEGs on the device; a RuntimeError says that it cannot.
        size: side of the network's frame.
        fit: crop, pad, stretch or trained.
        preprocessing: how the network wants pictures resized.
    """

    stage = "decode"
    columns = Contract.of("decode", {"key", "data", "pixels", "width", "height"})
    reads = columns.needs | {"format", *FRAME, *ERRORS, "seconds_decode"}
    """All columns that it looks at, if they are there."""

    def __init__(
        self,
        decoder: Callable[[Sequence[bytes]], Sequence[Tensor]],
        size: int = 224,
        fit: Fit = "crop",
        *,
        preprocessing: Preprocessing = IMAGENET,
    ) -> None:
        from vbp.images.device_decode import DeviceDecode

        self._how: dict[str, Any] = {"size": size, "fit": fit, "preprocessing": preprocessing}
        self._decode = DeviceDecode(decoder, **self._how)

    @override
    def run(self, batch: Batch) -> Batch:
        from vbp.images.decode import decode

        data, pixels = batch.pop("data"), [*batch["pixels"]]
        rows = [row for row in good_rows(batch) if data[row]]
        sizes = [(int(batch["width"][row]), int(batch["height"][row])) for row in rows]
        facts = {name: objects([*batch[name]]) for name in ("width", "height", "format", *FRAME)}
        found = self._decode([data[row] for row in rows], sizes)
        for row, pixels_HWC in zip(rows, found, strict=True):
            try:
                pixels[row] = decode(data[row], **self._how).pixels_HWC if pixels_HWC is None else pixels_HWC
            except ImageError as error:
                self.fail(batch, row, error)
                pixels[row] = np.zeros((self._how["size"], self._how["size"], 3), np.uint8)
                for name in facts:
                    facts[name][row] = None
        return batch | facts | {"pixels": np.stack(pixels)}


def _mapping(side_by_side: bool) -> Callable[[Callable[[int], None], Sequence[int]], None]:
    """Calls a function for each row, on one thread or on one for each core."""
    if not side_by_side:
        return lambda function, rows: [*map(function, rows)].clear()
    from vbp.explainer import single_threads

    pool = single_threads()
    return lambda function, rows: [*pool.map(function, rows)].clear()


class Explain(Step):
    """``pixels`` -> ``mask`` (B,H,W float32 in [0, 1]), ``flat``, ``log10_max``, ``device`` and the prediction columns.

    Keeps ``pixels`` for the overlay.  With ``maps`` also ``map_NN`` and ``submask_NN``, the averaged maps and the
    intermediate masks, deepest last.

    With ``finishing`` the mask comes as its file holds it, with the columns `MASK_FACTS` and the ``overlay`` of those
    that are drawn, and without ``pixels``, unless these are kept.

    Args:
        engine: keyword arguments of ``vbp.saliency.Explainer``, which is built once in each actor; or a network of
            your own, or a function that makes it. Either may also be the argument ``model``.
        preprocessing: the preprocessing of a network of your own.
        weights_sha256: SHA-256 that the checkpoint must have; None accepts any.
        structure_sha256: the same of the structure of what own code makes, which may read other files elsewhere.
        classes: which class each folder stands for; None without a classifier.
        select: which images get a mask: all, misclassified or correct.
        maps: keep averaged maps and intermediate masks.
        threads: CPU threads of the network in this process; 0 leaves the default.
        finishing: what the device makes of masks and pixels; None: nothing, Encode does it.

    Raises:
        UsageError: this worker found another checkpoint than the driver did, or a network of your own comes without
            its preprocessing.
    """

    stage = "explain"
    reads = frozenset(("key", "pixels", "label", *ERRORS))
    """All columns that it looks at, if they are there."""

    def __init__(
        self,
        engine: Mapping[str, Any] | nn.Module | Callable[[], nn.Module],
        *,
        preprocessing: Preprocessing | None = None,
        weights_sha256: str | None = None,
        structure_sha256: str | None = None,
        classes: ClassMap | None = None,
        select: Select = "all",
        maps: bool = False,
        threads: int = 0,
        finishing: Finishing | None = None,
    ) -> None:
        from vbp.explainer import Explainer, as_it_is

        self._blanks = {"mask": _BLANK} if finishing is None else finishing.blanks()
        self._drops: set[str] = set() if finishing is None or finishing.keep_pixels else {"pixels"}
        self.columns = Contract.of(
            "explain",
            {"key", "pixels"} | ({"label"} if classes else set()),
            without=(set() if maps else {"map_NN", "submask_NN"}) | ({"overlay"} - self._blanks.keys()),
            also_makes=() if finishing is None else MASK_FACTS,
            also_drops=self._drops,
        )
        if threads:
            import torch

            torch.set_num_threads(threads)
        named = engine if isinstance(engine, Mapping) else {"model": engine, "preprocessing": preprocessing}
        settings: dict[str, Any] = dict(named)
        if callable(settings.get("model")):
            settings["model"] = _own_network(settings["model"], settings.get("preprocessing"))
        self._explainer = Explainer(
            **settings, classify=classes is not None, keep_maps=maps, finish=finishing or as_it_is
        )
        found = self._explainer.model.sha256
        if weights_sha256 not in (None, found):
            raise UsageError(
                f"--weights (={settings['weights']}) is {found} on this worker, but {weights_sha256} where the run "
                "was started; put the same file everywhere, or name it by a URL that all workers can read. A function "
                "of your own must give the same weights each time."
            )
        if structure_sha256 not in (None, self._explainer.model.structure_sha256):
            raise UsageError(
                f"--model (={settings['model']}) makes another network on this worker than where the run was started; "
                "files that its code reads must be the same everywhere, or their values stand in --model-args."
            )
        self._classes = classes
        self._select = select

    @property
    def explainer(self) -> Explainer:
        """The network with its method."""
        return self._explainer

    @override
    def run(self, batch: Batch) -> Batch:
        rows = len(batch["key"])
        facts: dict[str, list[_Piece]] = {name: [] for name in _FACTS if name in self.columns.makes}
        planes: dict[str, list[_Piece]] = {name: [] for name in self._blanks}
        for group in self._groups(batch):
            try:
                found = self._explainer.arrays(_picked(batch["pixels"], group))
            except ImageError as error:
                for row in group:
                    self.fail(batch, row, error)
                continue
            finite, values = self._made(batch, np.array(group), found)
            for name in values:
                facts[name].append((finite, values[name]))
            for name in found:
                if name in self._blanks or kind_of(name) in ("map_NN", "submask_NN"):
                    planes.setdefault(name, []).append((group, found[name]))
        made = {name: _filled(pieces, rows) for name, pieces in facts.items()}
        made["device"] = objects([self._explainer.device] * rows)
        made["selected"] = self._selected(made["correct"])
        bulky = {name: _assembled(pieces, rows, self._blanks.get(name, _BLANK)) for name, pieces in planes.items()}
        return {name: values for name, values in batch.items() if name not in self._drops} | made | bulky

    def _selected(self, correct: np.ndarray) -> np.ndarray:
        wanted = {"misclassified": False, "correct": True}.get(self._select)
        return np.array([wanted is None or each is wanted for each in correct], bool)

    def _groups(self, batch: Batch) -> list[list[int]]:
        """Groups of rows that go to the engine together, one group if all have one shape; the engine makes batches."""
        rows = good_rows(batch)
        if batch["pixels"].dtype == object:  # fit original: a mask may not depend on the sizes of other images
            return [[row] for row in rows]
        return [rows] if rows else []

    def _made(self, batch: Batch, group: np.ndarray, found: Batch) -> tuple[np.ndarray, Batch]:
        """The rows of a group whose results are finite, and their facts; the other rows fail."""
        finite = found["finite"]
        for row in group[~finite]:
            self.fail(batch, row, NonFiniteActivationError("The network gave infinity or NaN for this image."))
        made = {"flat": found["flat"], "log10_max": found["log10_max"]}
        if self._classes is not None and found.keys() & {"logits", "prediction"}:
            made |= _predictions(found, batch["label"][group], self._classes)
        if "total" in found:
            made |= _mask_facts(found)
        # Arrays of their own: views, as `found` has them, would keep the memory of all masks.
        return group[finite], {name: values[finite] for name, values in made.items()}


def _predictions(found: Batch, labels: np.ndarray, classes: ClassMap) -> Batch:
    """The columns of the prediction; the device has predicted already, or gave the classifier's output."""
    if "logits" in found:
        logits_BK = found["logits"]
        numbers = logits_BK.argmax(1)
        shifted_BK = np.exp(logits_BK.astype(np.float64) - logits_BK.max(1, keepdims=True))
        probability = shifted_BK[np.arange(len(numbers)), numbers] / shifted_BK.sum(1)
    else:
        numbers, probability = found["prediction"], found["probability"]
    pairs = list(zip(labels, numbers.tolist(), strict=True))
    return {
        "prediction": numbers,
        "predicted_label": objects([classes.name(number) for _, number in pairs]),
        "probability": probability,
        "correct": objects(
            [classes.index[label] == number if label in classes.index else None for label, number in pairs]
        ),
    }


def _mask_facts(found: Batch) -> Batch:
    """The columns `MASK_FACTS`, of sums that the device computed."""
    height, width = found["mask"].shape[1:]
    peak_y, peak_x = np.divmod(found["peak"], width)
    size = height * width
    return {"mask_mean": found["total"] / size, "mask_area": found["above"] / size, "peak_x": peak_x, "peak_y": peak_y}


def _own_network(network: nn.Module | Callable[[], nn.Module], preprocessing: Preprocessing | None) -> Model:
    from torch import nn

    from vbp.networks.models import own_model

    if preprocessing is None:
        raise UsageError(
            "A network of your own needs preprocessing: Explain(network, preprocessing=Preprocessing(mean, std)) of "
            "vbp.networks.preprocessing, with the values that it was trained with."
        )
    return own_model(network if isinstance(network, nn.Module) else network(), preprocessing)


_FACTS = ("flat", "log10_max", "prediction", "predicted_label", "probability", "correct", *MASK_FACTS)
_Piece = tuple[Sequence[int] | np.ndarray, np.ndarray]
"""Row numbers, and an array with one entry for each of them."""


_BLANK = np.zeros((1, 1), np.float32)


def _picked(column: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """These rows of a column as one array, which is the column itself if they are all."""
    if column.dtype == object:
        return np.stack([column[row] for row in rows])
    return column if len(rows) == len(column) else column[rows]


def _filled(pieces: Sequence[_Piece], rows: int) -> np.ndarray:
    """One column with `rows` rows from its pieces; None in rows of no piece."""
    if len(pieces) == 1 and len(pieces[0][0]) == rows:
        return pieces[0][1]
    column = objects([None] * rows)
    for group, values in pieces:
        column[group] = values
    return column


def _assembled(pieces: Sequence[_Piece], rows: int, blank: np.ndarray = _BLANK) -> np.ndarray:
    """One column with `rows` rows from its pieces; ragged if their shapes differ; zeros in rows of no piece."""
    if len(pieces) == 1 and len(pieces[0][0]) == rows:
        return pieces[0][1]
    shapes = {array.shape[1:] for _, array in pieces}
    if len(shapes) <= 1:
        column = np.zeros((rows, *next(iter(shapes), blank.shape)), blank.dtype)
        for group, array in pieces:
            column[group] = array
        return column
    column = objects([blank] * rows)
    for group, array in pieces:
        for row, value in zip(group, array, strict=True):
            column[row] = value
    return column


class Encode(Step):
    """``mask`` and ``pixels`` -> ``file_<kind>`` (bytes) and the mask's index columns (`_MASK_COLUMNS`).

    It takes masks of your own too: float32 in [0, 1], with ``pixels`` if an overlay is drawn.  Without the column
    ``selected`` all images are encoded; without ``frame_*`` the mask's place in the photograph is unknown.

    Args:
        outputs: some of mask, overlay, input, maps.
        mask_format: png8, png16 or npy.
        overlay_style: one of `vbp.choices.OverlayStyle`.
        frame: network, or image for results at the size of the original (needs ``data``).
        preprocessing: the network's preprocessing; the style ``reference`` needs it.
        finished: Explain had a ``finishing`` for these settings, so that nothing is left but to encode.
        side_by_side: encode on all cores of this process, each image on one.
    """

    stage = "encode"

    def __init__(
        self,
        outputs: Sequence[str] = ("mask", "overlay"),
        mask_format: MaskFormat = "png8",
        overlay_style: OverlayStyle = "heat",
        frame: str = "network",
        preprocessing: Preprocessing = IMAGENET,
        *,
        finished: bool = False,
        side_by_side: bool = False,
    ) -> None:
        self._outputs, self._mask_format, self._style, self._frame = (
            outputs,
            mask_format,
            overlay_style,
            frame,
        )
        self._preprocessing = preprocessing
        self._finished = finished
        self._map = _mapping(side_by_side)
        self.columns = Contract.of(
            "encode",
            {"key", "mask"} | self._needs_of_pictures(),
            without={f"file_{kind}" for kind in KINDS if kind not in outputs},
            also_drops={"data"},
        )

    def _needs_of_pictures(self) -> set[str]:
        """Columns that are needed for pictures of the input or the overlay, and those that are finished."""
        if self._frame == "image":
            return {"data", *FRAME}
        if self._finished:
            return (
                {*MASK_FACTS} | ({"overlay"} & set(self._outputs)) | ({"pixels"} if "input" in self._outputs else set())
            )
        return {"pixels"} if {"overlay", "input"} & set(self._outputs) else set()

    @override
    def run(self, batch: Batch) -> Batch:
        rows = len(batch["key"])
        columns = {name: objects([None] * rows) for name in _MASK_COLUMNS}
        selected = batch.get("selected", np.ones(rows, bool))
        files = {f"file_{kind}": objects([None] * rows) for kind in self._outputs}

        def one(row: int) -> None:
            try:
                mask_HW, pixels_HWC = self._in_frame(batch, row)
                for kind in self._outputs:
                    files[f"file_{kind}"][row] = self._encode(kind, batch, row, mask_HW, pixels_HWC)
            except (ImageError, OSError, ValueError) as error:  # an encoder refuses sizes that its format cannot hold
                self.fail(batch, row, error)
                return
            facts = tuple(batch[name][row] for name in MASK_FACTS) if self._finished else _mask_facts_of(mask_HW)
            for name, value in _placed(facts, mask_HW.shape, self._covered(batch, row, mask_HW)).items():
                columns[name][row] = value

        self._map(one, [row for row in good_rows(batch) if selected[row]])
        return {n: v for n, v in batch.items() if kind_of(n) not in self.columns.drops} | columns | files

    def _covered(self, batch: Batch, row: int, mask_HW: np.ndarray) -> Frame | None:
        """The part of the photograph that the written mask covers; None if that is unknown."""
        from vbp.images.frame import Frame

        if self._frame == "image":
            return Frame(0, 0, mask_HW.shape[1], mask_HW.shape[0])
        return frame_of(batch, row) if "frame_left" in batch else None

    def _in_frame(self, batch: Batch, row: int) -> tuple[np.ndarray, Any]:
        """Mask and picture of one row, in the configured frame; the picture is None if no output needs it."""
        if self._frame == "network":
            return batch["mask"][row], batch["pixels"][row] if "pixels" in batch else None
        from vbp.images.decode import decode_upright
        from vbp.images.frame import place

        pixels_HWC = decode_upright(batch["data"][row])
        height, width = pixels_HWC.shape[:2]
        return place(batch["mask"][row], frame_of(batch, row), width, height), pixels_HWC

    def _encode(self, kind: str, batch: Batch, row: int, mask_HW: np.ndarray, pixels_HWC: Any) -> bytes:
        from vbp.images import encode
        from vbp.images.overlay import overlay

        if kind == "mask":
            return encode.encode_mask(mask_HW, self._mask_format)
        if kind == "overlay":
            if self._finished:
                return encode.encode_jpeg(batch["overlay"][row])
            return encode.encode_jpeg(overlay(self._style, pixels_HWC, mask_HW, self._preprocessing))
        if kind == "input":
            return encode.encode_png(pixels_HWC)
        maps, masks = ([batch[n][row] for n in sorted(batch) if n.startswith(p)] for p in ("map_", "submask_"))
        return encode.encode_strip(maps, masks)


_MASK_COLUMNS = (*MASK_FACTS, "mask_width", "mask_height", "image_peak_x", "image_peak_y")


def _mask_facts_of(mask_HW: np.ndarray) -> tuple[Any, ...]:
    """Values of `MASK_FACTS` for one mask."""
    peak_y, peak_x = divmod(int(mask_HW.argmax()), mask_HW.shape[1])
    return float(mask_HW.mean(dtype=np.float64)), float((mask_HW > 0.5).mean()), peak_x, peak_y


def _placed(facts: tuple[Any, ...], shape: tuple[int, ...], covered: Frame | None) -> dict[str, Any]:
    """Values of `_MASK_COLUMNS` for one mask; `covered` is the part of the photograph that it covers."""
    from vbp.images.frame import point_in_image

    height, width = shape
    _, _, peak_x, peak_y = facts
    place = (None, None) if covered is None else point_in_image(peak_x, peak_y, (width, height), covered)
    return dict(zip(_MASK_COLUMNS, (*facts, width, height, *place), strict=True))


def frame_of(batch: Batch, row: int) -> Frame:
    """The place of a row's frame in its upright image."""
    from vbp.images.frame import Frame

    return Frame(*(float(batch[name][row]) for name in FRAME))


class Write:
    """The last step: ``file_*`` -> files in OUTPUT, then one part for each shard, the only record of what is done.

    It does not return the rows of the images but a report: one row for each part, with the columns of ``REPORT``.

    Args:
        output: URL of the output.
        attempt: id of this attempt, which must hold the lease.
        suffixes: file name suffixes of each kind of output.
        constants: index columns that have the same value in every row.
        storage_options: non-secret options by URL prefix.
        layout: files, webdataset or none.
        generation: the manifest's generation.
        threads: writes that run at the same time.

    Raises:
        StorageError: the store refuses a write; the run stops, and no image of the batch counts as done.
        LeaseLostError: another attempt has taken over the output.
        ColumnError: a column is missing, or the index has no such column.
    """

    columns = Contract.of("write", {"key", "uri", "shard", "position", *ERRORS})

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
        """Write files, then parts; only the report holds the seconds of this step, which are known afterwards."""
        started = time.perf_counter()
        self.columns.check_given(batch)
        self._folder.look()
        parts = list(self._write_files(batch))
        self._folder.look()
        reports = [self._commit(shard, part) for shard, part in parts]
        spent = {name: float(np.sum(batch.get(name, 0.0))) for name in REPORT if name.startswith("seconds_")}
        spent["seconds_write"] = time.perf_counter() - started
        # The first report carries the seconds of the whole batch, the others 0, because reports are summed.
        for i, report in enumerate(reports):
            report |= {name: value if i == 0 else 0.0 for name, value in spent.items()}
        return {name: np.array([report[name] for report in reports]) for name in REPORT} if reports else {}

    def _write_files(self, batch: Batch) -> Iterator[tuple[int, pa.Table]]:
        """Number and part of each shard in the batch, after its files are written (Ray may mix rows of two shards)."""
        files = {kind: batch[f"file_{kind}"] for kind in KINDS if f"file_{kind}" in batch}
        table = as_table(self._facts(batch))
        shards, positions = np.asarray(batch["shard"]), np.asarray(batch["position"])
        for shard in np.unique(shards):
            rows = np.flatnonzero(shards == shard)
            rows = rows[np.argsort(positions[rows])]
            part = table.take(pa.array(rows))
            own = {kind: [contents[row] for row in rows] for kind, contents in files.items()}
            for name, values in self._layout.write(int(shard), part, own).items():
                part = part.append_column(PART_SCHEMA.field(name), pa.array(values, PART_SCHEMA.field(name).type))
            yield int(shard), part

    def _facts(self, batch: Batch) -> Batch:
        """The index columns of each row, without the places of its files."""
        rows = len(batch["key"])
        seconds = [batch[name] for name in batch if name.startswith("seconds_")]
        facts = {name: values for name, values in batch.items() if name not in self.columns.drops and name != "shard"}
        facts |= {name: objects([value] * rows) for name, value in self._constants.items()}
        facts["seconds"] = np.sum(seconds, axis=0) if seconds else np.zeros(rows)
        facts["finished_at"] = objects([datetime.now(UTC)] * rows)
        facts["status"] = objects(["ok" if is_missing(stage) else "error" for stage in batch["error_stage"]])
        return facts

    def _commit(self, shard: int, part: pa.Table) -> dict[str, Any]:
        write_part(self._folder, part, shard, self._attempt, self._generation)
        causes = zip(part["error_stage"].to_pylist(), part["error_type"].to_pylist(), strict=True)
        reasons = Counter(f"{stage}: {kind}" for stage, kind in causes if stage is not None)
        errors = reasons.total()
        return {"shard": shard, "ok": part.num_rows - errors, "error": errors, "reasons": json.dumps(reasons)}


def as_table(batch: Batch) -> pa.Table:
    """Columns as an Arrow table, in the order of the index.  NaN, into which Ray turns nulls, becomes null again.

    Raises:
        ColumnError: ``PART_SCHEMA`` lacks a column.
    """
    if unknown := batch.keys() - set(PART_SCHEMA.names):
        raise ColumnError(f"the index has no columns {sorted(unknown)}: declare them in vbp/columns.py, or drop them.")
    fields = [field for field in PART_SCHEMA if field.name in batch]
    return pa.table([_array(batch[field.name], field.type) for field in fields], schema=pa.schema(fields))


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    plain = [None if is_missing(value) else value for value in np.asarray(values).tolist()]
    if pa.types.is_integer(kind):
        plain = [None if value is None else int(value) for value in plain]
    return pa.array(plain, kind)


def is_missing(value: Any) -> bool:
    """Whether a cell is null: None, or NaN, which Ray makes of None when it converts between Arrow and NumPy."""
    return value is None or bool(value != value)
