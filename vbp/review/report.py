"""A report for people: one HTML page without external files."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

import vbp
from vbp.errors import ImageError, StorageError
from vbp.networks.preprocessing import IMAGENET
from vbp.review.choice import Choice
from vbp.review.failures import Failures, failures
from vbp.review.output import Output
from vbp.review.page import page
from vbp.review.status import Status, status
from vbp.storage.files import read_uri, write_uri
from vbp.storage.outline import INDEXED, place_columns
from vbp.storage.results.files import OwnFiles, Tars, files_of

if TYPE_CHECKING:
    from PIL import Image

SAMPLE, SEED = 24, 500

_CLASSES = 200
"""The most folders that are shown, the largest first."""
_THUMBNAIL = 224
_THREADS = 8
_OTHERS = "(other folders)"
_MOST_LABELS = 10_000
_COLUMNS = ["key", "uri", "label", "status", "mask_mean", "mask_area", "correct", "predicted_label", "probability"]
_PLACE = place_columns(*INDEXED)
_FRAME = ["frame_left", "frame_top", "frame_right", "frame_bottom"]


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """The images of one first-level folder."""

    label: str | None
    images: int
    failed: int
    mask_area: float | None
    """Mean share of the mask above 0.5; None without a mask."""
    accuracy: float | None
    """Share of correct predictions; None if it is unknown which are correct."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image: facts, and pictures as data URLs (None if a picture cannot be read)."""

    key: str
    predicted_label: str | None
    probability: float | None
    correct: bool | None
    mask_mean: float
    mask_area: float
    input: str | None
    mask: str | None
    overlay: str | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of the page."""

    status: Status
    failures: Failures
    facts: Mapping[str, str]
    """Of the newest run."""
    stage_seconds: Mapping[str, float]
    classes: tuple[ClassRow, ...]
    classes_left_out: int
    samples: tuple[Sample, ...]
    version: str

    def as_json(self) -> dict[str, Any]:
        """JSON values, without the pictures."""
        pictures = ("input", "mask", "overlay")
        samples = [
            {name: value for name, value in dataclasses.asdict(sample).items() if name not in pictures}
            for sample in self.samples
        ]
        own = {"status": self.status.as_json(), "failures": self.failures.as_json(), "samples": samples}
        return {**_shallow(self), **own, "classes": [dataclasses.asdict(row) for row in self.classes]}


def report(
    output: Output, options: Mapping[str, Any] | None = None, *, sample: int = SAMPLE, seed: int = SEED
) -> Report:
    """Gather the content of the page.

    Args:
        output: the output to report on.
        options: options to read the images of the sample, as for ``Folder``.
        sample: images to show, chosen by `seed` and key.
        seed: another seed chooses other images.
    """
    files = files_of(output.folder, output.config)
    chosen, classes = Choice(sample if "mask" in files.kinds else 0, seed), _Classes()
    for table in output.rows([*_COLUMNS, *_PLACE, *_FRAME]):
        classes.add(table)
        measured = pc.and_(pc.is_valid(table["mask_mean"]), pc.is_valid(table["mask_area"]))
        chosen.offer(table.filter(measured).to_pylist())
    with ThreadPoolExecutor(_THREADS) as pool:
        samples = tuple(pool.map(lambda row: _sample(row, files, output, options), chosen.rows))
    rows = classes.rows()
    return Report(
        status=status(output.folder.url, options),
        failures=failures(output),
        facts=facts_of(output),
        stage_seconds=(output.record.get("summary") or {}).get("stage_seconds", {}),
        classes=tuple(rows[:_CLASSES]),
        classes_left_out=max(0, len(rows) - _CLASSES),
        samples=samples,
        version=vbp.__version__,
    )


def render(found: Report) -> str:
    """The page: one HTML file without scripts, which loads nothing."""
    return page("report.html.jinja", found=found, status=found.status, failures=found.failures)


def save(found: Report, target: str, options: Mapping[str, Any] | None = None) -> None:
    """Write the page to a path or URL; `options` as for ``Folder``."""
    write_uri(target, render(found).encode("utf-8", "backslashreplace"), options)


class _Classes:
    """Sums by label, from any number of tables."""

    def __init__(self) -> None:
        self._sums: dict[str | None, list[float]] = {}

    def add(self, rows: pa.Table) -> None:
        """Add the images of these rows."""
        table = pa.table(
            {
                "label": rows["label"],
                "failed": pc.equal(rows["status"], "error"),
                "area": rows["mask_area"],
                "correct": rows["correct"],
            }
        )
        sums = [("label", "count", pc.CountOptions(mode="all")), ("failed", "sum")]
        sums += [("area", "sum"), ("area", "count"), ("correct", "sum"), ("correct", "count")]
        for group in table.group_by("label").aggregate(sums).to_pylist():
            label = group["label"]
            if label not in self._sums and len(self._sums) >= _MOST_LABELS:
                label = _OTHERS
            numbers = [group[name] or 0 for name in _SUMS]
            before = self._sums.get(label, [0] * len(_SUMS))
            self._sums[label] = [one + other for one, other in zip(before, numbers, strict=True)]

    def rows(self) -> list[ClassRow]:
        """The folders, the largest first."""
        found = [
            ClassRow(
                label=label,
                images=int(images),
                failed=int(failed),
                mask_area=area / masks if masks else None,
                accuracy=correct / judged if judged else None,
            )
            for label, (images, failed, area, masks, correct, judged) in self._sums.items()
        ]
        return sorted(found, key=lambda row: (-row.images, row.label or ""))


_SUMS = ("label_count", "failed_sum", "area_sum", "area_count", "correct_sum", "correct_count")


def facts_of(output: Output) -> dict[str, str]:
    """The settings of the newest attempt that have an effect on the results."""
    config, record = output.config, output.record
    weights = (record.get("fingerprint") or {}).get("weights")
    versions = record.get("versions") or {}
    facts = {
        "input": record.get("input"),
        "run": record.get("run_id"),
        "model": config.get("model"),
        "weights": config.get("weights"),
        "sha256 of the weights": weights,
        "preset": config.get("preset"),
        "frame": f"{config['size']} pixels, fit {config['fit']}, at the size of the {config['frame']}"
        if config
        else None,
        "pixels": _pixels(record.get("fingerprint") or {}),
        "precision": f"{record['precision']} on {record['device']}" if "precision" in record else None,
        "versions": ", ".join(f"{name} {versions[name]}" for name in ("vbp", "torch", "python") if name in versions),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _pixels(fingerprint: Mapping[str, Any]) -> str:
    """The preprocessing, in words; ImageNet's if an older run did not record it."""
    seen = {**IMAGENET.as_json(), **{name: fingerprint[name] for name in IMAGENET.as_json() if name in fingerprint}}
    numbers = (", ".join(f"{value:g}" for value in seen[name]) for name in ("mean", "std"))
    return "{}, {}, mean {}, std {}".format(seen["channels"], seen["interpolation"], *numbers)


def _sample(
    row: Mapping[str, Any], files: OwnFiles | Tars, output: Output, options: Mapping[str, Any] | None
) -> Sample:
    return Sample(
        **{name: row[name] for name in ("key", "predicted_label", "probability", "correct", "mask_mean", "mask_area")},
        input=_picture(lambda: _input(row, files, output, options)),
        mask=_picture(lambda: _mask(files.read(row, "mask"))),
        overlay=_picture(lambda: _open(files.read(row, "overlay"))) if "overlay" in files.kinds else None,
    )


def _picture(load: Any) -> str | None:
    """A thumbnail as a data URL; None if the picture cannot be read."""
    from PIL import Image

    try:
        image: Image.Image = load()
    except (ImageError, StorageError, OSError, ValueError):
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    kind = "PNG" if image.mode == "L" else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _input(
    row: Mapping[str, Any], files: OwnFiles | Tars, output: Output, options: Mapping[str, Any] | None
) -> Image.Image:
    """The network's input: as the run wrote it, else cut from the original."""
    from PIL import Image

    from vbp.images.decode import decode_upright

    if "input" in files.kinds:
        return _open(files.read(row, "input"))
    image = Image.fromarray(decode_upright(read_uri(row["uri"], options)))
    if output.config["frame"] == "image":
        return image
    side = min(_THUMBNAIL, output.config["size"])
    left, top, right, bottom = (row[name] for name in _FRAME)
    if output.config["fit"] == "original":
        return image
    return image.transform((side, side), Image.Transform.EXTENT, (left, top, right, bottom), Image.Resampling.BILINEAR)


def _mask(data: bytes) -> Image.Image:
    """The mask's square root, so that its faint parts are visible."""
    import numpy as np
    from PIL import Image

    from vbp.images.encode import decode_mask

    return Image.fromarray((255 * np.sqrt(decode_mask(data)) + 0.5).astype(np.uint8))


def _open(data: bytes) -> Image.Image:
    from PIL import Image

    from vbp.images.decode import decode_upright

    return Image.fromarray(decode_upright(data))


def _shallow(found: Report) -> dict[str, Any]:
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
