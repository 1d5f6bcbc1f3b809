"""New nodes and constants for a graph, under names that it does not have yet."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vbp.attach.graph import Graph

AXES_ARE_INPUTS = {"ReduceSum": 13, "ReduceMean": 18, "ReduceMax": 18, "ReduceMin": 18, "Unsqueeze": 13}
"""The opset in which an operator's axes became an input."""


class Writer:
    """Collects what is to be added to a graph.

    Attributes:
        nodes: in order of execution.
        initializers: the constants that they read.
    """

    def __init__(self, graph: Graph):
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._opset = graph.opset
        self._prefix = "vbp"
        while any(name.startswith(f"{self._prefix}/") for name in graph.names):
            self._prefix += "_"
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], str] = {}

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        name = f"{self._prefix}/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))
        return output or name

    def constant(self, value: NDArray[Any]) -> str:
        """A constant, stored once."""
        key = value.tobytes(), str(value.dtype), value.shape
        if key not in self._constants:
            name = f"{self._prefix}/constant_{len(self.initializers)}"
            self.initializers.append(numpy_helper.from_array(value, name))
            self._constants[key] = name
        return self._constants[key]

    def number(self, value: float) -> str:
        """A float32 constant without axes."""
        return self.constant(np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        """An int64 constant of one axis."""
        return self.constant(np.array(values, np.int64))

    def along(self, operator: str, tensor: str, *axes: int, **attributes: Any) -> str:
        """A reduction over axes, or new axes, as the graph's opset writes them."""
        if self._opset >= AXES_ARE_INPUTS[operator]:
            return self.add(operator, tensor, self.integers(*axes), **attributes)
        return self.add(operator, tensor, axes=list(axes), **attributes)
