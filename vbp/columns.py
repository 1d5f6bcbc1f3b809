"""Columns: every column of a row between the listing and the index, declared once.

A row is one image.  Each step adds columns, and drops the bulky ones that it has used up::

    list     -> key uri path label size version gone   the manifest
    source   -> shard position, without size and gone  a batch
    fetch    -> data bytes sha256, without path
    decode   -> pixels width height format frame_*, without data
    (with ``--decode gpu`` some rows keep data, and the second half of decode makes their pixels beside explain)
    explain  -> mask flat log10_max device selected and the prediction; on CUDA overlay mask_mean ..., without pixels
    evaluate -> scores, in ``vbp evaluate``
    encode   -> file_* mask_mean mask_area peak_*, without pixels, mask and selected
    write    -> status mask_uri ... run_id, without file_*: one row of a part of the ledger
    index    -> the same row, without shard, position and scores, with gone as the manifest has it now

``COLUMNS`` is their table.  The schemas of manifest, parts and index are made from it.  A ``Contract`` declares the
columns of one step; a step that makes or drops another column is stopped at its first batch.  To add a
column, add a line here and compute it in the step that the line names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import pyarrow as pa


class ColumnError(ValueError):
    """The columns before or after a step are not the declared ones."""


class Column(NamedTuple):
    """One column."""

    name: str
    """Name; ``NN`` at its end means two digits, with a column for each stage of the network."""
    type: pa.DataType | None
    """Arrow type; None if the values are NumPy arrays, which are in no table."""
    made_by: str
    """The step that adds it."""
    meaning: str
    """One sentence for people."""
    nullable: bool = True
    dropped_by: str | None = None
    """The step that drops it; None: the index has it."""


_ERROR = "null where the status is ok"
_NO_MASK = "null without a mask"
_NO_CLASSES = "null where the network has no classifier"

COLUMNS = (
    Column("key", pa.string(), "list", "Path of the image below INPUT; its results are named by it.", nullable=False),
    Column("uri", pa.string(), "list", "URL of the image, or its path on a local disk.", nullable=False),
    Column("label", pa.string(), "list", "First folder of the key, or the manifest's label; null at the root."),
    Column("status", pa.string(), "write", "`ok`, or `error` for an image that failed.", nullable=False),
    Column("error_stage", pa.string(), "fetch", f"The step that failed, or `worker` for its process; {_ERROR}."),
    Column("error_type", pa.string(), "fetch", f"Name of the exception, such as `CorruptImageError`; {_ERROR}."),
    Column("error_message", pa.string(), "fetch", f"What the exception said, 500 characters at most; {_ERROR}."),
    Column("width", pa.int32(), "decode", "Width of the upright image, in pixels."),
    Column("height", pa.int32(), "decode", "Height of the upright image, in pixels."),
    Column("format", pa.string(), "decode", "Format of the image file, told by its content, such as `JPEG`."),
    Column("bytes", pa.int64(), "fetch", "Size of the image file, in bytes."),
    Column("sha256", pa.string(), "fetch", "SHA-256 of the image file, in hexadecimal digits."),
    Column("version", pa.string(), "list", "Changes with the image file: its etag, or when it was last modified."),
    Column("gone", pa.bool_(), "list", "Whether the last `--refresh` found INPUT without the image; its result stays."),
    Column("mask_uri", pa.string(), "write", f"URL or absolute path of the mask, or of the tar with it; {_NO_MASK}."),
    Column("mask_offset", pa.int64(), "write", "First byte of the mask in its tar; null for a file of its own."),
    Column("mask_length", pa.int64(), "write", "Bytes of the mask in its tar; null for a file of its own."),
    Column("overlay_uri", pa.string(), "write", f"URL or absolute path of the overlay, or of its tar; {_NO_MASK}."),
    Column("overlay_offset", pa.int64(), "write", "First byte of the overlay in its tar; null for a file of its own."),
    Column("overlay_length", pa.int64(), "write", "Bytes of the overlay in its tar; null for a file of its own."),
    Column("frame_left", pa.float64(), "decode", "Left edge of what the network saw, in pixels of the upright image."),
    Column("frame_top", pa.float64(), "decode", "Upper edge of what the network saw, in pixels of the upright image."),
    Column("frame_right", pa.float64(), "decode", "Right edge of what the network saw, in pixels of the image."),
    Column("frame_bottom", pa.float64(), "decode", "Lower edge of what the network saw, in pixels of the image."),
    Column("log10_max", pa.float64(), "explain", "Decimal logarithm of the mask's maximum before normalisation."),
    Column("mask_mean", pa.float32(), "encode", f"Mean of the mask, from 0 to 1; {_NO_MASK}."),
    Column("mask_area", pa.float32(), "encode", f"Share of the mask's pixels that are above 0.5; {_NO_MASK}."),
    Column("peak_x", pa.int32(), "encode", "Column of the mask's first maximum, in pixels of the mask, from 0."),
    Column("peak_y", pa.int32(), "encode", "Row of the mask's first maximum, in pixels of the mask, from 0."),
    Column("mask_width", pa.int32(), "encode", f"Width of the mask, in pixels; {_NO_MASK}."),
    Column("mask_height", pa.int32(), "encode", f"Height of the mask, in pixels; {_NO_MASK}."),
    Column("image_peak_x", pa.float64(), "encode", "The peak in the upright image, in pixels from its left edge."),
    Column("image_peak_y", pa.float64(), "encode", "The peak in the upright image, in pixels from its upper edge."),
    Column("flat", pa.bool_(), "explain", "Whether the mask has one value only, so that it shows nothing."),
    Column("prediction", pa.int32(), "explain", f"Number of the predicted class, from 0; {_NO_CLASSES}."),
    Column("predicted_label", pa.string(), "explain", f"Name of the predicted class; {_NO_CLASSES}."),
    Column("probability", pa.float32(), "explain", f"Softmax of the predicted class, from 0 to 1; {_NO_CLASSES}."),
    Column("correct", pa.bool_(), "explain", "Whether the prediction is the label's class; null where none is known."),
    Column("model", pa.string(), "write", "The network, as `--model` names it."),
    Column("weights", pa.string(), "write", "SHA-256 of the weights, in hexadecimal digits."),
    Column("preset", pa.string(), "write", "The preset: `paper` or `reference`."),
    Column("device", pa.string(), "explain", "The device that computed the mask, such as `cpu` or `cuda:0`."),
    Column("seconds", pa.float32(), "write", "Seconds of work before the files were written: its share of its batch."),
    Column("finished_at", pa.timestamp("ms", "UTC"), "write", "When its files were written, in UTC.", nullable=False),
    Column("run_id", pa.string(), "write", "The attempt at the run that made the row."),
    Column("shard", pa.int32(), "source", "The shard of the manifest that lists it.", False, "index"),
    Column("position", pa.int32(), "source", "Number of the row within the shard, from 0.", False, "index"),
    Column(
        "scores", pa.string(), "evaluate", "JSON: what `vbp evaluate` found, see `SCORE_COLUMNS`.", dropped_by="index"
    ),
    Column("path", pa.binary(), "list", "Path below INPUT, in the bytes of the file system.", dropped_by="fetch"),
    Column("size", pa.int64(), "list", "Size of the image file when it was listed, in bytes.", dropped_by="source"),
    Column("run", pa.int32(), "source", "Number of the run, among those that share the workers.", dropped_by="write"),
    Column("data", pa.binary(), "fetch", "The image file.", dropped_by="decode"),
    Column("pixels", None, "decode", "What the network sees: uint8 (H, W, 3), RGB.", dropped_by="encode"),
    Column("mask", None, "explain", "The mask (H, W): float32 in [0, 1], or from CUDA as stored.", dropped_by="encode"),
    Column("overlay", None, "explain", "The overlay, where CUDA draws it: uint8 (H, W, 3), RGB.", dropped_by="encode"),
    Column("map_NN", None, "explain", "A stage's averaged map: float32 (h, w).", dropped_by="encode"),
    Column("submask_NN", None, "explain", "A stage's intermediate mask: float32 (h, w).", dropped_by="encode"),
    Column("selected", pa.bool_(), "explain", "Whether --select asks for its mask.", dropped_by="encode"),
    Column("file_mask", pa.binary(), "encode", "The mask's file.", dropped_by="write"),
    Column("file_overlay", pa.binary(), "encode", "The overlay's file.", dropped_by="write"),
    Column("file_input", pa.binary(), "encode", "The file of what the network saw.", dropped_by="write"),
    Column("file_maps", pa.binary(), "encode", "The file of all maps and intermediate masks.", dropped_by="write"),
    Column("seconds_fetch", pa.float64(), "fetch", "Its share of the step's seconds.", dropped_by="write"),
    Column("seconds_decode", pa.float64(), "decode", "Its share of the step's seconds.", dropped_by="write"),
    Column("seconds_evaluate", pa.float64(), "evaluate", "Its share of the step's seconds.", dropped_by="write"),
    Column("seconds_explain", pa.float64(), "explain", "Its share of the step's seconds.", dropped_by="write"),
    Column("seconds_encode", pa.float64(), "encode", "Its share of the step's seconds.", dropped_by="write"),
)

INDEX_COLUMNS = tuple(column for column in COLUMNS if column.dropped_by is None)
"""The columns of ``OUTPUT/index``, in order."""
SAMPLE = (
    *("key", "uri", "label", "width", "height", "format", "bytes", "sha256", "version"),
    *("frame_left", "frame_top", "frame_right", "frame_bottom", "log10_max", "mask_mean", "mask_area"),
    *("peak_x", "peak_y", "flat", "prediction", "predicted_label", "probability", "correct"),
    *("model", "weights", "preset"),
)
"""What the ``.json`` of a WebDataset's sample says: nothing that changes from run to run, so that equal results are
equal bytes; for the same reason nothing that the first version did not say."""
ERRORS = ("error_stage", "error_type", "error_message")
STAGES = ("fetch", "decode", "explain", "evaluate", "encode", "write")
"""The steps, of which `evaluate` is in ``vbp evaluate`` alone."""
REPORT: Mapping[str, str] = {
    "shard": "Number of the shard.",
    "ok": "Images with a result.",
    "error": "Images that failed.",
    "reasons": "JSON: how many failed, by `stage: type`.",
    **{f"seconds_{stage}": "Seconds of the step." for stage in STAGES},
}
"""Columns of the last step's report, which has one row for each committed part."""

_BY_NAME = {column.name: column for column in COLUMNS}
_NUMBERED = re.compile(r"(?<=_)\d\d\Z")


@cache
def kind_of(name: str) -> str:
    """The name under which a column is declared: ``map_NN`` for ``map_07``."""
    return _NUMBERED.sub("NN", name)


def made_by(step: str) -> frozenset[str]:
    """Columns that a step may add."""
    return frozenset(column.name for column in COLUMNS if column.made_by == step)


def dropped_by(step: str) -> frozenset[str]:
    """Columns that a step drops."""
    return frozenset(column.name for column in COLUMNS if column.dropped_by == step)


def schema_of(names: Iterable[str]) -> pa.Schema:
    """The Arrow schema of these columns, in this order."""
    return pa.schema([pa.field(name, _BY_NAME[name].type, _BY_NAME[name].nullable) for name in names])


INDEX_SCHEMA = schema_of(column.name for column in INDEX_COLUMNS)
PART_SCHEMA = schema_of([*INDEX_SCHEMA.names, "shard", "position", "scores"])
SCORE_COLUMNS = (
    Column("key", pa.string(), "evaluate", "The image's key, as in the index.", nullable=False),
    Column("label", pa.string(), "evaluate", "First folder of the key, or the manifest's label; null at the root."),
    Column("method", pa.string(), "evaluate", "Whose map it is: `vbp`, `gradcam`, ...", nullable=False),
    Column("metric", pa.string(), "evaluate", "`pointing-game`, ...; `seconds`: what the map cost.", nullable=False),
    Column("value", pa.float64(), "evaluate", "The number; null where the metric has none for this image."),
    Column("chance", pa.float64(), "evaluate", "What a map that knows nothing would score; null where unknown."),
    Column("settings", pa.string(), "evaluate", "The values on which the number depends, for people."),
)
"""The columns of ``OUTPUT/scores``, which has one row for each image, method and metric."""
SCORES = pa.schema([pa.field(column.name, column.type, column.nullable) for column in SCORE_COLUMNS])
MANIFEST_SCHEMA = schema_of(["key", "uri", "path", "label", "size", "version", "gone"])


@dataclass(frozen=True)
class Contract:
    """The columns that a step needs, makes and drops; a user's own columns pass through it."""

    step: str
    needs: frozenset[str]
    makes: frozenset[str]
    drops: frozenset[str]

    @classmethod
    def of(
        cls,
        step: str,
        needs: Collection[str],
        *,
        without: Collection[str] = (),
        also_makes: Collection[str] = (),
        keeps: Collection[str] = (),
        also_drops: Collection[str] = (),
    ) -> Contract:
        """The contract of a step, from the table.

        Args:
            step: its name, as in ``Column.made_by``.
            needs: columns that it must find in the batch.
            without: columns of its own that it does not make with its settings.
            also_makes: columns of a later step that it makes with its settings; that step may make them again.
            keeps: columns that it does not drop with its settings.
            also_drops: columns that another step would drop.
        """
        drops = (dropped_by(step) - frozenset(keeps)) | frozenset(also_drops)
        makes = (made_by(step) - frozenset(without)) | frozenset(also_makes)
        return cls(step, frozenset(needs), makes, drops)

    def check_given(self, given: Collection[str]) -> None:
        """Check the names of a batch before the step.

        Raises:
            ColumnError: a needed column is missing.
        """
        if missing := self.needs.difference(given):
            raise ColumnError(f"{self.step} needs the columns {sorted(missing)}; the batch has {sorted(given)}.")

    def check_made(self, given: Collection[str], found: Collection[str]) -> None:
        """Check the names of a batch after the step.

        Args:
            given: names before the step.
            found: names after it.

        Raises:
            ColumnError: the step made an undeclared column, or did not make a declared one; it lost a column, or
                kept one that it should have dropped.
        """
        given, found = set(given), set(found)
        new, lost = {kind_of(name) for name in found - given}, {kind_of(name) for name in given - found}
        unmade = {name for name in self.makes - found - new if not name.endswith("_NN")}
        for names, fault, cure in (
            (new - self.makes, "makes", "declare them in vbp/columns.py"),
            (unmade, "does not make", "make them, or take them out of vbp/columns.py"),
            (lost - self.drops, "loses", "keep them"),
            ({name for name in found if kind_of(name) in self.drops}, "leaves", "drop them"),
        ):
            if names:
                raise ColumnError(f"{self.step} {fault} the columns {sorted(names)}: {cure}.")
