"""The mask as nodes of an ONNX graph: the way down of `vbp.saliency.visualbackprop`, step by step.

Tensors are float32 (N, 1, H, W) unless their name says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from vbp.attach.geometry import Geometry, Place, Resampling, Transposed, Window
from vbp.attach.stages import Network, Stage
from vbp.attach.writer import Writer
from vbp.choices import Preset
from vbp.errors import ModelError
from vbp.saliency.cuts import Strand

PIXELS = (1, 2, 3)
"""All axes but the batch."""


class Mask(NamedTuple):
    """A mask on its way down."""

    tensor: str
    size: tuple[int | None, int | None]
    """(rows, columns), as far as they are known before the graph runs."""


def write_mask(network: Network, writer: Writer, output: str, preset: Preset = "paper") -> None:
    """Add the nodes that compute the mask from the stages' maps.

    Raises:
        ModelError: the preset `reference` does not fit the sizes of the maps, or these are open.
    """
    write = _reference if preset == "reference" else _paper
    _normalised(write(network, writer), writer, output)


def _paper(network: Network, writer: Writer) -> str:
    """The paper's method.

    Every product is divided by its maximum, which the last normalisation undoes: without it the values overflow
    float32 in deep networks.
    """
    *lower, top = network.stages
    mask = _scaled(_averaged(top, writer), writer)
    for stage, below in zip(network.stages[:0:-1], reversed(lower), strict=True):
        led = _lead_down(mask, stage, writer)
        product = writer.add("Mul", led.tensor, _averaged(below, writer).tensor)
        mask = _scaled(Mask(product, led.size), writer)
    return _scaled(_lead_down(mask, network.stages[0], writer), writer).tensor


def _reference(network: Network, writer: Writer) -> str:
    """The project devansh20la/VisualBackprop: fixed kernels, every product scaled to [0, 1], no last deconvolution."""
    *lower, top = network.stages
    first = network.stages[0].place.size
    if None in first or first != network.image.size:
        raise ModelError(
            f"preset 'reference' needs a first map of the input's size, known before the graph runs: it is {first}, "
            f"the input's {network.image.size}. Use 'paper', or export for one size."
        )
    mask = _averaged(top, writer)
    for below in reversed(lower):
        window = _reference_window(mask.size, below.place)
        led = _down(mask, window, writer)
        product = writer.add("Mul", led.tensor, _averaged(below, writer).tensor)
        mask = Mask(_min_max(product, writer)[0], led.size)
    return mask.tensor


def _reference_window(above: tuple[int | None, int | None], below: Place) -> Window:
    if above == below.size:
        return Window(below, (3, 3), before=(1, 1), after=(1, 1))
    pairs = zip(below.size, above, strict=True)
    if all(length is not None and half is not None and length // 2 == half for length, half in pairs):
        return Window(below, (4, 4), (2, 2), before=(1, 1), after=(1, 1))
    raise ModelError(f"preset 'reference' needs maps that halve, but {below.size} is followed by {above}: use 'paper'.")


def write_uint8(mask: str, writer: Writer, output: str) -> None:
    """Add floor(255 m + 0.5) as uint8."""
    levels = writer.add("Add", writer.add("Mul", mask, writer.number(255)), writer.number(0.5))
    writer.add("Cast", writer.add("Floor", levels), output=output, to=TensorProto.UINT8)


def _averaged(stage: Stage, writer: Writer) -> Mask:
    """The mean of a stage's map over its channels, negative values counted as 0.

    A convolution is what onnxruntime does fast, also in its own layout: ReduceMean takes four times as long there.
    """
    place = stage.place
    tensor = place.tensor if stage.is_float32 else writer.add("Cast", place.tensor, to=TensorProto.FLOAT)
    if stage.signed:
        tensor = writer.add("Relu", tensor)
    if isinstance(stage.channels, int):
        weights = np.full((1, stage.channels, 1, 1), 1 / stage.channels, np.float32)
        return Mask(writer.add("Conv", tensor, writer.constant(weights), kernel_shape=[1, 1]), place.size)
    others = [axis for axis in range(1, stage.rank) if axis not in (place.rows, place.columns)]
    mean = writer.along("ReduceMean", tensor, *others, keepdims=0)
    if place.rows > place.columns:
        mean = writer.add("Transpose", mean, perm=[0, 2, 1])
    return Mask(writer.along("Unsqueeze", mean, 1), place.size)


def _scaled(mask: Mask, writer: Writer) -> Mask:
    """Each mask divided by its maximum."""
    largest_N111 = writer.along("ReduceMax", mask.tensor, *PIXELS, keepdims=1)
    return mask._replace(tensor=writer.add("Div", mask.tensor, _or_one(largest_N111, writer)))


def _or_one(value_N111: str, writer: Writer) -> str:
    """The value, or 1 in place of 0."""
    is_zero = writer.add("Equal", value_N111, writer.number(0))
    return writer.add("Where", is_zero, writer.number(1), value_N111)


def _normalised(mask: str, writer: Writer, output: str) -> None:
    """Each mask scaled to [0, 1]; all 0 if it is flat or not finite."""
    scaled, spread_N111 = _min_max(mask, writer)
    # Infinity minus itself is NaN, which equals nothing. A maximum may pass over NaN, a sum does not.
    total_N111 = writer.along("ReduceSum", mask, *PIXELS, keepdims=1)
    nothing_N111 = writer.add("Sub", total_N111, total_N111)
    is_finite = writer.add("Equal", nothing_N111, writer.number(0))
    is_shown = writer.add("And", is_finite, writer.add("Greater", spread_N111, writer.number(0)))
    writer.add("Where", is_shown, scaled, writer.number(0), output=output)


def _min_max(mask: str, writer: Writer) -> tuple[str, str]:
    """Each mask scaled to [0, 1], a flat one to 0; and its maximum minus its minimum."""
    least_N111 = writer.along("ReduceMin", mask, *PIXELS, keepdims=1)
    largest_N111 = writer.along("ReduceMax", mask, *PIXELS, keepdims=1)
    spread_N111 = writer.add("Sub", largest_N111, least_N111)
    raised = writer.add("Sub", mask, least_N111)
    return writer.add("Div", raised, _or_one(spread_N111, writer)), spread_N111


def _lead_down(mask: Mask, stage: Stage, writer: Writer) -> Mask:
    """A stage's mask at the map below."""
    for strands in reversed(stage.segments):
        mask = _down_strands(mask, strands, writer)
    return mask


def _down_strands(mask: Mask, strands: Sequence[Strand[Geometry]], writer: Writer) -> Mask:
    """The average over all paths of a segment."""
    if not strands:
        return mask
    shares: dict[int, list[Mask]] = {len(strands): [mask]}
    for number, strand in reversed(list(enumerate(strands, 1))):
        share = _sum(shares.pop(number), writer)
        if len(strand.sources) > 1:
            count = writer.number(len(strand.sources))
            share = share._replace(tensor=writer.add("Div", share.tensor, count))
        share = reduce(lambda found, step: _down(found, step, writer), reversed(strand.steps), share)
        for source in strand.sources:
            shares.setdefault(source, []).append(share)
    return _sum(shares[0], writer)


def _sum(shares: list[Mask], writer: Writer) -> Mask:
    if len(shares) == 1:
        return shares[0]
    return shares[0]._replace(tensor=writer.add("Sum", *(share.tensor for share in shares)))


def _down(mask: Mask, step: Geometry, writer: Writer) -> Mask:
    """The mask below one layer."""
    if isinstance(step, Resampling):
        rows_Hh, columns_wW = (writer.constant(array) for array in (step.rows_Hh, step.columns_Ww.T.copy()))
        product = writer.add("MatMul", writer.add("MatMul", rows_Hh, mask.tensor), columns_wW)
        return Mask(product, step.below.size)
    tensor = mask.tensor
    for axis in (1, 0):
        if isinstance(step, Transposed):
            tensor = _gathered(tensor, axis, step.window, writer)
        else:
            tensor = _spread(tensor, axis, step, mask.size[axis], writer)
    return Mask(tensor, step.below.size)


def _gathered(tensor: str, axis: int, window: Window, writer: Writer) -> str:
    """Along one axis, add up all values that a transposed convolution made from a pixel: a convolution with ones."""
    kernel = _pair(axis, window.kernel[axis], 1)
    return writer.add(
        "Conv",
        tensor,
        writer.constant(np.ones((1, 1, *kernel), np.float32)),
        kernel_shape=kernel,
        strides=_pair(axis, window.stride[axis], 1),
        dilations=_pair(axis, window.dilation[axis], 1),
        pads=[*_pair(axis, window.before[axis], 0), *_pair(axis, window.after[axis], 0)],
    )


def _spread(tensor: str, axis: int, window: Window, above: int | None, writer: Writer) -> str:
    """Along one axis, add every value to all pixels of its window: a transposed convolution with ones.

    It is written so that its result has the length of the map below. Where that is known only when the graph runs, a
    stride may leave some pixels too many, which are cut off then.
    """
    stride, reach = window.stride[axis], window.reach(axis)
    before, after, below = window.before[axis], window.after[axis], window.below.size[axis]
    if (window.kernel[axis], stride, before, after) == (1, 1, 0, 0):
        return tensor
    if stride == 1:
        # with a stride of 1, the length is told by the padding
        return _convolved(tensor, axis, window, (before, after, 0), writer)
    if above is not None and below is not None:
        excess = (above - 1) * stride + reach - before - below
        return _convolved(tensor, axis, window, (before, max(excess, 0), max(-excess, 0)), writer)
    longer = _convolved(tensor, axis, window, (before, min(after, 0), stride - 1), writer)
    return _cut(longer, axis, window.below, writer)


def _convolved(tensor: str, axis: int, window: Window, ends: tuple[int, int, int], writer: Writer) -> str:
    """The transposed convolution, with so many pixels cut off before and after, and others left empty behind."""
    before, after, empty = ends
    stride, dilation, kernel = window.stride[axis], window.dilation[axis], window.kernel[axis]
    lost = min(empty, stride - 1)
    padded = writer.add(
        "ConvTranspose",
        tensor,
        writer.constant(np.ones((1, 1, *_pair(axis, kernel, 1)), np.float32)),
        kernel_shape=_pair(axis, kernel, 1),
        strides=_pair(axis, stride, 1),
        dilations=_pair(axis, dilation, 1),
        pads=[*_pair(axis, max(before, 0), 0), *_pair(axis, max(after, 0), 0)],
        output_padding=_pair(axis, lost, 0),
    )
    added = max(-before, 0), max(-after, 0) + empty - lost
    if added == (0, 0):
        return padded
    pads = [0, 0, *_pair(axis, added[0], 0), 0, 0, *_pair(axis, added[1], 0)]
    return writer.add("Pad", padded, writer.integers(*pads))


def _cut(tensor: str, axis: int, below: Place, writer: Writer) -> str:
    """The first pixels, as many as the map below has."""
    place = (below.rows, below.columns)[axis]
    length = writer.add("Slice", writer.add("Shape", below.tensor), writer.integers(place), writer.integers(place + 1))
    return writer.add("Slice", tensor, writer.integers(0), length, writer.integers(axis + 2))


def _pair(axis: int, value: int, other: int) -> list[int]:
    return [value, other] if axis == 0 else [other, value]
