"""Add the mask to an ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from vbp.attach.descent import write_mask, write_uint8
from vbp.attach.geometry import Place
from vbp.attach.graph import Graph, Length
from vbp.attach.stages import Network, find_stages, only
from vbp.attach.writer import Writer
from vbp.choices import Preset
from vbp.errors import UsageError
from vbp.saliency.cuts import is_partial

MASK, MASK_UINT8 = "mask", "mask_uint8"


@dataclass(frozen=True)
class Attached:
    """A model with its mask."""

    model: onnx.ModelProto
    """The model, its new outputs last."""
    stages: tuple[str, ...]
    """The tensors whose maps are multiplied, from the input upwards."""
    opset: int
    """The version of ONNX's operators, that of the model before."""
    shape: tuple[Length, ...]
    """Of the mask: (N, 1, H, W), as far as it is known."""

    def as_json(self) -> dict[str, Any]:
        """For machines: all but the model."""
        return {"stages": list(self.stages), "opset": self.opset, "shape": list(self.shape)}


def attach(
    model: onnx.ModelProto,
    *,
    stages: Sequence[str] = ("all",),
    preset: Preset = "paper",
    uint8: bool = False,
    folder: str = "",
) -> Attached:
    """The model with one more output, ``mask``: float32 (N, 1, H, W) in [0, 1].

    Args:
        model: a network of one input: a batch of images, (N, C, H, W) or (N, H, W, C). It is not changed.
        stages: which maps are multiplied: ``all``, or names of tensors; the geometry of the others stays. A network
            with attention is explained up to its last stage below it, if that is named.
        preset: `paper`, the published method; or `reference`, the masks of devansh20la/VisualBackprop.
        uint8: one more output, ``mask_uint8``: floor(255 mask + 0.5).
        folder: where its weights are, if they are in other files.

    Returns:
        A copy, with nodes, constants and outputs behind those of the model, which stay as they are.

    Raises:
        ModelError: the network cannot be explained.
        UsageError: the model is damaged or too old, or has a tensor of an output's name, or no such stage.
    """
    graph = Graph(model, folder)
    for name in (MASK, MASK_UINT8)[: 1 + uint8]:
        if name in graph.names:
            again = " (was it attached before?)" if name in graph.outputs else ""
            raise UsageError(f"the model has a tensor {name!r} already{again}, and the new output needs that name.")
    network = find_stages(graph, is_partial(stages))
    network = Network(network.image, only(network.stages, stages))
    writer = Writer(graph)
    write_mask(network, writer, MASK, preset)
    if uint8:
        write_uint8(MASK, writer, MASK_UINT8)
    shape = _shape(graph, network.image)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.node.extend(writer.nodes)
    copy.graph.initializer.extend(writer.initializers)
    copy.graph.output.append(helper.make_tensor_value_info(MASK, TensorProto.FLOAT, shape))
    if uint8:
        copy.graph.output.append(helper.make_tensor_value_info(MASK_UINT8, TensorProto.UINT8, shape))
    return Attached(copy, tuple(stage.name for stage in network.stages), graph.opset, shape)


def _shape(graph: Graph, image: Place) -> tuple[Length, ...]:
    lengths = graph.shape(image.tensor) or ()
    return lengths[0], 1, lengths[image.rows], lengths[image.columns]
