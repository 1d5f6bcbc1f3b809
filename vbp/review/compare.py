"""Compare the runs of a sweep: every two runs of an input, image by image, over an even sample.

Runs may differ in size, fit and frame.  So all masks of an image are reduced to the part of the picture that all
of them cover, at the smallest of their sizes, and compared there.

The level of chance is measured too: one run's mask of an image, compared with the other run's mask of another image.

Shape legend: R = runs, P = pixels of that part.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vbp.errors import ImageError, StorageError
from vbp.storage.files import Folder
from vbp.storage.ledger.combined import RUN, read_combined
from vbp.storage.outline import place_columns
from vbp.storage.results.read import read_result

COMPARISON = "comparison.parquet"
SAMPLE, SEED = 200, 500
TOP = 0.05
"""Share of the pixels that count as brightest, whose overlap is measured."""
MEASURES = ("correlation", "rank_correlation", "overlap", "peak_distance")

_THREADS = 8
_AT_ONCE = 16
"""Images whose masks are in memory at the same time."""
_CHANCE = 48
"""Images that are also compared with other images."""
_BOX = ("frame_left", "frame_top", "frame_right", "frame_bottom")
_PLACE = place_columns("mask")
_COLUMNS = ("key", "width", "height", "mask_mean", "prediction", *_PLACE, *_BOX)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs of one input; the measures are means over images, None where there is nothing to measure."""

    run: str
    other: str
    differ: tuple[str, ...]
    """Names of the input, variant or settings in which they differ."""
    images: int
    """Images of the sample that have a mask in both runs."""
    correlation: float | None
    """Pearson correlation of the pixels, in [-1, 1]; the brightest pixels dominate it."""
    rank_correlation: float | None
    """Spearman's rank correlation, in [-1, 1]; all pixels count equally."""
    overlap: float | None
    """Intersection over union of the brightest twentieth of both masks' pixels, in [0, 1]."""
    peak_distance: float | None
    """Distance between the maxima as a share of the diagonal, in [0, 1]."""
    correlation_by_chance: float | None
    """The four measures for masks of different images, one of each run: the level of chance."""
    rank_correlation_by_chance: float | None
    overlap_by_chance: float | None
    peak_distance_by_chance: float | None
    predictions_changed: float | None
    """Share of changed predictions, among images with a prediction in both runs."""
    least_alike: str | None
    """Key of the image with the lowest correlation."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of `compare`."""

    output: str
    sample: int
    """The most images of an input."""
    pairs: tuple[Pair, ...]
    """Pairs that differ in the fewest settings come first."""

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)


def compare(
    url: str, options: Mapping[str, Any] | None = None, *, sample: int = SAMPLE, seed: int = SEED
) -> Comparison:
    """Compare the runs of a sweep that has its combined index; only results are read.

    Args:
        url: URL of the sweep's output.
        options: as for ``Folder``.
        sample: the most images of an input.
        seed: another seed chooses other images.
    """
    output = Folder(url, options)
    rows, varied = _sampled(output, sample, seed)
    pairs: list[Pair] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for runs in _by_input(rows, varied):
            names = list(runs)
            if len(names) < 2:
                continue
            keys = sorted(set().union(*runs.values()))
            np.random.default_rng(seed).shuffle(keys)  # neighbours are compared, and should not be of one folder
            images = [[runs[name].get(key) for name in names] for key in keys]
            agreements, by_chance = _measured(images, pool, options)
            for one, other in combinations(range(len(names)), 2):
                facts = _facts(keys, images, agreements, one, other) | _chance(by_chance, one, other)
                differ = tuple(
                    name for name in varied[names[one]] if varied[names[one]][name] != varied[names[other]].get(name)
                )
                pairs.append(Pair(run=names[one], other=names[other], differ=differ, **facts))
    pairs.sort(key=lambda pair: (len(pair.differ), pair.differ))
    return Comparison(output=output.url, sample=sample, pairs=tuple(pairs))


def save(found: Comparison, options: Mapping[str, Any] | None = None) -> None:
    """Write the result as ``OUTPUT/comparison.parquet``, with a row for each pair."""
    sink = io.BytesIO()
    rows = [dataclasses.asdict(pair) for pair in found.pairs]
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), sink)
    Folder(found.output, options).write(COMPARISON, sink.getvalue())


_BY_CHANCE = "{}_by_chance"
_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("other", pa.string()),
        ("differ", pa.list_(pa.string())),
        ("images", pa.int64()),
        *((name, pa.float64()) for name in (*MEASURES, *map(_BY_CHANCE.format, MEASURES), "predictions_changed")),
        ("least_alike", pa.string()),
    ]
)

_Row = Mapping[str, Any]
_Rows = Mapping[str, Mapping[str, _Row]]


def _sampled(output: Folder, sample: int, seed: int) -> tuple[dict[str, dict[str, _Row]], dict[str, dict[str, Any]]]:
    """Rows of an even choice of images by run and key, and the varied settings by run; in one pass over the index.

    The first run of an input decides which images are chosen, so that the runs share as many as possible.
    """
    keys: dict[Any, _EvenKeys] = {}
    rows: dict[str, dict[str, _Row]] = {}
    varied: dict[str, dict[str, Any]] = {}
    leaders: dict[Any, str] = {}
    for table in read_combined(output, _COLUMNS):
        first = table.slice(0, 1).to_pylist()[0]
        run = first[RUN]
        varied[run] = {name.removeprefix(f"{RUN}_"): first[name] for name in first if name.startswith(f"{RUN}_")}
        source = varied[run].get("input")
        chosen = keys.setdefault(source, _EvenKeys(sample, seed))
        explained = table.filter(pc.is_valid(table["mask_mean"]))
        if leaders.setdefault(source, run) == run:
            chosen.offer(explained)
        else:
            explained = explained.filter(pc.is_in(explained["key"], chosen.keys))
            rows.setdefault(run, {}).update({row["key"]: row for row in explained.to_pylist()})
    own = {leaders[source]: {row["key"]: row for row in chosen.rows.to_pylist()} for source, chosen in keys.items()}
    return {run: own.get(run, rows.get(run, {})) for run in varied}, varied


class _EvenKeys:
    """Keeps the rows with the smallest random numbers."""

    def __init__(self, most: int, seed: int) -> None:
        self._most, self._random = most, np.random.default_rng(seed)
        self._drawn = np.empty(0)
        self.rows: pa.Table = pa.table({"key": pa.array([], pa.string())})

    def offer(self, rows: pa.Table) -> None:
        """Consider these rows."""
        drawn = np.concatenate([self._drawn, self._random.random(rows.num_rows)])
        rows = pa.concat_tables([self.rows, rows]) if self.rows.num_rows else rows
        kept = np.sort(np.argsort(drawn, kind="stable")[: self._most])
        self._drawn, self.rows = drawn[kept], rows.take(pa.array(kept))

    @property
    def keys(self) -> pa.Array:
        """Keys of the rows that are kept."""
        return self.rows["key"].combine_chunks()


def _by_input(rows: _Rows, varied: Mapping[str, Mapping[str, Any]]) -> Iterator[_Rows]:
    for source in dict.fromkeys(varied[run].get("input") for run in rows):
        yield {run: rows[run] for run in rows if varied[run].get("input") == source}


@dataclass(frozen=True)
class _Agreement:
    """Measures of the masks of one image: R x R each, NaN if a mask is missing or flat."""

    has_mask_R: np.ndarray
    measures: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Image:
    """The masks of one image that can be read, if they have a common part."""

    present: Sequence[int]
    """The runs that have a mask, by number."""
    views_RHW: np.ndarray | None
    """Masks of these runs; None if there is nothing to compare."""


def _measured(
    images: Sequence[Sequence[_Row | None]], pool: Executor, options: Mapping[str, Any] | None
) -> tuple[list[_Agreement], list[Mapping[str, np.ndarray]]]:
    """Measures of the masks of each image, and, for some images, with the masks of another image."""
    runs = len(images[0]) if images else 0
    agreements: list[_Agreement] = []
    by_chance: list[Mapping[str, np.ndarray]] = []
    for first in range(0, len(images), _AT_ONCE):
        opened = list(pool.map(lambda image: _opened(image, options), images[first : first + _AT_ONCE]))
        agreements += pool.map(lambda image: _agreement(image, runs), opened)
        if len(opened) > 1 and first < _CHANCE:
            by_chance += pool.map(lambda one, other: _unrelated(one, other, runs), opened, opened[1:] + opened[:1])
    return agreements, by_chance


def _opened(image: Sequence[_Row | None], options: Mapping[str, Any] | None) -> _Image:
    """The masks of one image; `image` has a row for each run."""
    masks = [None if row is None else _mask(row, options) for row in image]
    present = [number for number, mask in enumerate(masks) if mask is not None]
    views = _views(
        [(mask, _box(row, mask)) for row, mask in zip(image, masks, strict=True) if row and mask is not None]
    )
    return _Image(present, np.stack(views) if views else None)


def _agreement(image: _Image, runs: int) -> _Agreement:
    measures = {name: np.full((runs, runs), np.nan) for name in MEASURES}
    if image.views_RHW is not None:
        for name, values_RR in measures_of(image.views_RHW).items():
            measures[name][np.ix_(image.present, image.present)] = values_RR
    return _Agreement(np.isin(np.arange(runs), image.present), measures)


def _unrelated(image: _Image, other: _Image, runs: int) -> dict[str, np.ndarray]:
    """Measures of every run's mask of the first image with every run's mask of the other: R x R each."""
    measures = {name: np.full((runs, runs), np.nan) for name in MEASURES}
    if image.views_RHW is not None and other.views_RHW is not None:
        height, width = image.views_RHW.shape[1:]
        resized_RHW = np.stack([_resized(mask_HW, width, height) for mask_HW in other.views_RHW])
        both = measures_of(np.concatenate([image.views_RHW, resized_RHW]))
        own = len(image.present)
        for name, values in both.items():
            measures[name][np.ix_(image.present, other.present)] = values[:own, own:]
    return measures


def _resized(mask_HW: np.ndarray, width: int, height: int) -> np.ndarray:
    from PIL import Image

    if mask_HW.shape == (height, width):
        return mask_HW
    return np.asarray(Image.fromarray(mask_HW).resize((width, height), Image.Resampling.BILINEAR))


def measures_of(masks_RHW: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of every two masks of one image: R x R each, NaN if one of the two is flat."""
    count, height, width = masks_RHW.shape
    pixels_RP = masks_RHW.reshape(count, -1).astype(np.float64)
    pixels_RP[np.ptp(pixels_RP, axis=1) == 0] = np.nan
    top_RP = np.stack([_top(pixels_P) for pixels_P in pixels_RP])
    both_RR = top_RP @ top_RP.T
    sizes_R = top_RP.sum(1)
    peaks_R2 = np.stack(np.unravel_index(pixels_RP.argmax(1), (height, width)), axis=1)
    distance_RR = np.linalg.norm(peaks_R2[:, None] - peaks_R2[None], axis=2) / np.hypot(height, width)
    return {
        "correlation": _correlation(pixels_RP),
        "rank_correlation": _correlation(np.stack([_ranks(pixels_P) for pixels_P in pixels_RP])),
        "overlap": both_RR / (sizes_R[:, None] + sizes_R[None] - both_RR),
        "peak_distance": np.where(np.isnan(both_RR), np.nan, distance_RR),
    }


def _correlation(values_RP: np.ndarray) -> np.ndarray:
    centred_RP = values_RP - values_RP.mean(1, keepdims=True)
    scaled_RP = centred_RP / np.linalg.norm(centred_RP, axis=1, keepdims=True)
    products_RR: np.ndarray = scaled_RP @ scaled_RP.T
    return products_RR.clip(-1, 1)


def _ranks(values_P: np.ndarray) -> np.ndarray:
    """Ranks of the values; equal values get their mean rank."""
    _, inverse, counts = np.unique(values_P, return_inverse=True, return_counts=True, equal_nan=False)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return np.where(np.isnan(values_P), np.nan, ranks)


def _top(values_P: np.ndarray) -> np.ndarray:
    """1 for the brightest pixels and pixels equal to the last of them, but never for black ones; else 0."""
    place = min(len(values_P) - 1, int(TOP * len(values_P)))
    least = np.partition(values_P, -1 - place)[-1 - place]
    return np.where(np.isnan(values_P), np.nan, (values_P >= least) & (values_P > 0))


def _mask(row: _Row, options: Mapping[str, Any] | None) -> np.ndarray | None:
    """The mask of a row; None if it cannot be read."""
    from vbp.images.encode import decode_mask

    try:
        return decode_mask(read_result(row, options=options))
    except (ImageError, StorageError, OSError):
        return None


_Box = tuple[float, float, float, float]


def _box(row: _Row, mask_HW: np.ndarray) -> _Box:
    """The part of the picture that the mask covers, in pixels: the frame, or with ``--frame image`` all of it."""
    if mask_HW.shape == (row["height"], row["width"]):
        return 0.0, 0.0, float(row["width"]), float(row["height"])
    left, top, right, bottom = (float(row[name]) for name in _BOX)
    return left, top, right, bottom


def _views(masks: Sequence[tuple[np.ndarray, _Box]]) -> list[np.ndarray]:
    """The part of each mask that all masks cover, at the smallest of their sizes."""
    from PIL import Image

    if len({(mask.shape, box) for mask, box in masks}) <= 1:
        return [mask for mask, _ in masks]
    left, top = (max(box[side] for _, box in masks) for side in (0, 1))
    right, bottom = (min(box[side] for _, box in masks) for side in (2, 3))
    if left >= right or top >= bottom:
        return []
    parts = []
    for mask_HW, box in masks:
        x, y = mask_HW.shape[1] / (box[2] - box[0]), mask_HW.shape[0] / (box[3] - box[1])
        own = ((left - box[0]) * x, (top - box[1]) * y, (right - box[0]) * x, (bottom - box[1]) * y)
        parts.append((mask_HW, tuple(np.clip(own, 0, [*mask_HW.shape[::-1]] * 2).tolist())))
    size = (
        max(1, round(min(own[2] - own[0] for _, own in parts))),
        max(1, round(min(own[3] - own[1] for _, own in parts))),
    )
    return [
        np.asarray(Image.fromarray(mask_HW).resize(size, Image.Resampling.BILINEAR, box=own)) for mask_HW, own in parts
    ]


def _facts(
    keys: Sequence[str], images: Sequence[Sequence[_Row | None]], agreements: Sequence[_Agreement], one: int, other: int
) -> dict[str, Any]:
    """The fields of one `Pair`, without its names."""
    both = [number for number, found in enumerate(agreements) if found.has_mask_R[one] and found.has_mask_R[other]]
    values = {name: np.array([agreements[n].measures[name][one, other] for n in both]) for name in MEASURES}
    changed = [
        rows[one]["prediction"] != rows[other]["prediction"]  # type: ignore[index]
        for rows in images
        if all(row is not None and row["prediction"] is not None for row in (rows[one], rows[other]))
    ]
    known = np.isfinite(values["correlation"])
    least = int(np.where(known, values["correlation"], np.inf).argmin()) if known.any() else None
    return {
        "images": len(both),
        **{name: float(np.nanmean(each)) if np.isfinite(each).any() else None for name, each in values.items()},
        "predictions_changed": sum(changed) / len(changed) if changed else None,
        "least_alike": None if least is None else keys[both[least]],
    }


def _chance(by_chance: Sequence[Mapping[str, np.ndarray]], one: int, other: int) -> dict[str, float | None]:
    """The means at the level of chance for two runs, in both directions."""
    means = {}
    for name in MEASURES:
        values = np.array([found[name][pair] for found in by_chance for pair in ((one, other), (other, one))])
        means[_BY_CHANCE.format(name)] = float(np.nanmean(values)) if np.isfinite(values).any() else None
    return means
