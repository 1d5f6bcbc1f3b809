"""Truth: where the object of an image really is, from boxes or a mask, in the network's frame.

Shapes: H, W = height and width of a mask in the network's frame; h, w = of the upright image.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vbp.errors import TruthError, UsageError
from vbp.images.frame import Frame

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels of the upright image: a whole image is (0, 0, width, height)."""
TOLERANCE = 1.0
"""So many pixels may a box extend beyond the image: tools round in different ways."""
BORDER = 255
"""In masks with a palette, as PASCAL VOC has them: the border between objects, which is neither."""
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_CORNERS = 3
"""The fewest of a polygon."""


@dataclass(frozen=True)
class Truth:
    """The true objects of one image; a pixel that belongs to any of them is inside."""

    boxes: tuple[Box, ...] = ()
    mask_hw: NDArray[np.bool_] | None = field(default=None, compare=False)
    runs: tuple[Mapping[str, Any], ...] = ()
    """Objects as COCO's compressed run lengths."""
    size: tuple[int, int] | None = None
    """Width and height of the image, as the truth says; None if it does not say so."""

    @property
    def shows_object(self) -> bool:
        """Whether there is any; without one the image has no scores of where the mask lies."""
        return bool(self.boxes or self.runs or (self.mask_hw is not None and self.mask_hw.any()))

    def in_frame(self, image: tuple[int, int], frame: Frame, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Which pixels of the network's frame show an object: those whose centre lies in one.

        Args:
            image: width and height of the upright image.
            frame: the frame's place in it.
            shape: H and W.

        Returns:
            bool (H, W). Padding around the image shows no object.

        Raises:
            TruthError: the truth cannot be of this image: it is of another size, or a box lies outside.
        """
        self._check(image)
        x_W = frame.left + (np.arange(shape[1]) + 0.5) * (frame.right - frame.left) / shape[1]
        y_H = frame.top + (np.arange(shape[0]) + 0.5) * (frame.bottom - frame.top) / shape[0]
        inside_HW = np.zeros(shape, bool)
        for left, top, right, bottom in self.boxes:
            inside_HW |= np.outer((y_H >= top) & (y_H < bottom), (x_W >= left) & (x_W < right))
        if (mask_hw := self._mask(image)) is not None:
            width, height = image
            seen_HW = np.outer((y_H >= 0) & (y_H < height), (x_W >= 0) & (x_W < width))
            rows_H, columns_W = (
                np.clip(np.floor(values), 0, most - 1).astype(int) for values, most in ((y_H, height), (x_W, width))
            )
            inside_HW |= seen_HW & mask_hw[np.ix_(rows_H, columns_W)]
        return inside_HW

    def _mask(self, image: tuple[int, int]) -> NDArray[np.bool_] | None:
        if not self.runs:
            return self.mask_hw
        with _numpy_of_today():
            from pycocotools import mask

            drawn_hw: NDArray[np.bool_] = mask.decode(mask.merge(list(self.runs))).astype(bool)
        if drawn_hw.shape != image[::-1]:
            raise TruthError(
                f"the truth's segmentation is of {_times(drawn_hw.shape[::-1])} pixels, not {_times(image)}."
            )
        return drawn_hw

    def _check(self, image: tuple[int, int]) -> None:
        if self.size is not None and self.size != image:
            turned = ", with width and height swapped, or of the image before it is turned upright"
            how = turned if self.size == image[::-1] else ""
            raise TruthError(f"the truth is of an image of {_times(self.size)} pixels, not {_times(image)}{how}.")
        for box in self.boxes:
            if not _lies_in(box, image):
                transposed = (box[1], box[0], box[3], box[2])
                how = "; with x and y swapped it would fit" if _lies_in(transposed, image) else ""
                raise TruthError(f"the box {_edges(box)} lies outside the image of {_times(image)} pixels{how}.")
            if max(box[2:]) <= 1 < min(image):
                raise TruthError(
                    f"the box {_edges(box)} lies in the first pixel; coordinates must be pixels, not shares."
                )


def _lies_in(box: Box, image: tuple[int, int]) -> bool:
    left, top, right, bottom = box
    return (
        -TOLERANCE <= left < right <= image[0] + TOLERANCE and -TOLERANCE <= top < bottom <= image[1] + TOLERANCE
    )  # comparisons with NaN are false


def _edges(box: Box) -> str:
    names = ("left", "top", "right", "bottom")
    return ", ".join(f"{name} {value:g}" for name, value in zip(names, box, strict=True))


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def voc_truth(data: bytes) -> Truth:
    """The boxes of an annotation in the XML of PASCAL VOC and ImageNet; their pixels count from 1, ends included.

    Raises:
        TruthError: it is no such XML, or has no box.
    """
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise TruthError(f"the truth is no XML ({error}).") from error
    boxes = [_voc_box(each) for each in root.iter("bndbox")]
    if not boxes and root.tag != "annotation":
        raise TruthError(f"the truth is no annotation: it has no <bndbox>, and begins with <{root.tag}>.")
    width, height = (_number(root, f"size/{name}", 0) for name in ("width", "height"))
    return Truth(tuple(boxes), size=(int(width), int(height)) if width and height else None)


def _voc_box(element: ElementTree.Element) -> Box:
    left, top, right, bottom = (_number(element, name) for name in ("xmin", "ymin", "xmax", "ymax"))
    return left - 1, top - 1, right, bottom


def _number(element: ElementTree.Element, name: str, default: float | None = None) -> float:
    text = element.findtext(name)
    if text is None and default is not None:
        return default
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TruthError(f"the truth's <{name}> is {text!r}, which is no number.")
    return value


def mask_truth(data: bytes) -> Truth:
    """The object as an image: everything that is not black; in a picture with a palette see `_object_of`.

    Raises:
        TruthError: it is no image that Pillow reads.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            values = np.asarray(image)
            colours = _colours(image) if image.mode == "P" else None
            if image.mode in ("LA", "RGBA"):  # a mask drawn on transparent ground has its object in the colours
                values = values[..., :-1] * (values[..., -1:] > 0)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TruthError(f"the truth is no image ({error}).") from error
    object_hw = _object_of(values, colours)
    return Truth(mask_hw=object_hw, size=(object_hw.shape[1], object_hw.shape[0]))


def _colours(image: Image.Image) -> list[tuple[int, ...]]:
    """The palette, filled up with white."""
    levels = (image.getpalette("RGB") or [])[: 3 * 256]
    levels += [255] * (3 * 256 - len(levels))
    return [tuple(levels[first : first + 3]) for first in range(0, len(levels), 3)]


def _object_of(values: NDArray[Any], colours: list[tuple[int, ...]] | None) -> NDArray[np.bool_]:
    """What is not black.

    With a palette the number 0 is the background, if its colour is black, and all others are objects, whatever their
    colour, but 255 is a border unless it is white.  Where 0 has another colour, a program has sorted the palette, and
    colours decide.
    """
    if colours is None:
        return np.asarray(np.any(values.reshape(*values.shape[:2], -1), axis=2))
    if colours[0] == _BLACK:
        return np.asarray((values != 0) & ((values != BORDER) | (colours[BORDER] == _WHITE)))
    object_hw: NDArray[np.bool_] = np.array([colour != _BLACK for colour in colours])[values]
    if object_hw.all():
        told = ", ".join(map(str, colours[0]))
        raise TruthError(
            f"the truth's palette begins with the colour {told}, and no black is there to be the background."
        )
    return object_hw


def coco_truths(data: bytes, name: str) -> dict[str, Truth]:
    """The truths of a COCO file by the images' file names; an image without annotations has none.

    Objects with a segmentation (polygons or run lengths) are masks, others boxes.

    Args:
        data: the JSON.
        name: what it is called in messages.

    Raises:
        UsageError: it is no COCO file, or a part of it cannot be; names the annotation.
    """
    try:
        content = json.loads(data)
        images = {each["id"]: each for each in content["images"]}
        by_image: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--truth (={name}) is no COCO file ({type(error).__name__}: {error}); it needs `images` with `id` and "
            "`file_name`, and `annotations` with `image_id` and `bbox` or `segmentation`."
        ) from error
    if strange := by_image.keys() - images.keys():
        raise UsageError(f"--truth (={name}) has annotations of images that it does not list: {sorted(strange)[:3]}.")
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    first: dict[str, Mapping[str, Any]] = {}
    for number, found in by_image.items():  # files that were put together may list an image twice
        file_name = str(images[number].get("file_name"))
        first.setdefault(file_name, images[number])
        by_name[file_name] += found
    return {file_name: _coco_truth(first[file_name], found, name) for file_name, found in by_name.items()}


def _coco_truth(image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]], name: str) -> Truth:
    boxes: list[Box] = []
    runs: list[Mapping[str, Any]] = []
    for each in annotations:
        try:
            if each.get("segmentation"):
                runs += _runs(each["segmentation"], int(image["width"]), int(image["height"]))
            else:
                left, top, width, height = map(float, each["bbox"])
                boxes.append((left, top, left + width, top + height))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(
                f"--truth (={name}): annotation {each.get('id')} of {image.get('file_name')} has neither a bbox of "
                f"four numbers nor a segmentation that can be read ({type(error).__name__}: {error})."
            ) from error
    size = (int(image["width"]), int(image["height"])) if {"width", "height"} <= image.keys() else None
    return Truth(tuple(boxes), runs=tuple(runs), size=size)


def _runs(segmentation: Any, width: int, height: int) -> list[Mapping[str, Any]]:
    """Polygons, or run lengths of either kind, as compressed run lengths, which are small.

    Raises:
        ValueError: it is neither.
    """
    with _numpy_of_today():
        try:
            from pycocotools import mask
        except ImportError as error:
            raise UsageError(
                "--truth has segmentations, and pycocotools reads them: pip install 'visualbackprop[eval]'."
            ) from error
        if isinstance(segmentation, Mapping) and isinstance(segmentation["counts"], str | bytes):
            return [segmentation]
        if isinstance(segmentation, list) and any(len(each) < 2 * _CORNERS or len(each) % 2 for each in segmentation):
            raise ValueError(f"a polygon has at least {_CORNERS} corners of two numbers")
        try:
            runs = mask.frPyObjects(segmentation, height, width)
        except Exception as error:  # the library has no other class for it
            raise ValueError(error) from error
    return [runs] if isinstance(segmentation, Mapping) else list(runs)


@contextmanager
def _numpy_of_today() -> Iterator[None]:
    """Pycocotools makes arrays in a way that NumPy will give up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
