"""What is in an ONNX graph: who makes and reads each tensor, its shape, and its value if that is constant."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, external_data_helper, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vbp.errors import UsageError

OLDEST_OPSET = 11
"""Before it, padding and slicing are other operators."""
SMALL = 1024
"""Most elements of a constant whose value may decide a shape; larger ones are weights."""

SHAPING = frozenset(("Pad", "Slice", "Reshape", "Resize", "Expand"))
"""Operators whose inputs after the first decide the shape of what they give."""

Length = int | str | None
"""Of an axis: a number, or the name of one that is told when the graph runs, or nothing."""


class Graph:
    """A model's graph, which is not changed.

    Args:
        model: its weights may lie in other files.
        folder: where these files are.

    Raises:
        UsageError: the model is damaged, or its opset is too old.
    """

    def __init__(self, model: onnx.ModelProto, folder: str = ""):
        self.model = model
        self.opset = _opset(model)
        self.nodes = list(model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = [value for value in model.graph.input if value.name not in self.initializers]
        self.outputs = [value.name for value in model.graph.output]
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self._folder = folder
        self._constants: dict[str, NDArray[Any] | None] = {}
        self._types: dict[str, onnx.TypeProto.Tensor] = {}
        self._computed: dict[str, TensorProto] = {}
        self._check()

    def _check(self) -> None:
        known = {"", *self.initializers, *(one.values.name for one in self.model.graph.sparse_initializer)}
        known.update(value.name for value in self.inputs)
        for node in self.nodes:
            if missing := next((name for name in node.input if name not in known), None):
                raise UsageError(f"the model is damaged: {described(node)} reads {missing!r}, which nothing makes.")
            known.update(node.output)
        if missing := next((name for name in self.outputs if name not in known), None):
            raise UsageError(f"the model is damaged: nothing makes its output {missing!r}.")

    @cached_property
    def names(self) -> set[str]:
        """Of all tensors and nodes."""
        tensors = {value.name for value in self.model.graph.input} | set(self.outputs) | set(self.initializers)
        return tensors.union(*((node.name, *node.output, *node.input) for node in self.nodes))

    @cached_property
    def readers(self) -> dict[str, list[NodeProto]]:
        """The nodes that read a tensor."""
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    def shape(self, name: str) -> tuple[Length, ...] | None:
        """A tensor's shape; None if not even its rank is known."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        kind = self._kinds.get(name)
        if kind is None or not kind.HasField("shape"):
            return None
        return tuple(_length(dimension) for dimension in kind.shape.dim)

    def element_type(self, name: str) -> int:
        """Of a tensor, as `TensorProto` numbers them; 0 if unknown."""
        kind = self._kinds.get(name)
        return kind.elem_type if kind else TensorProto.UNDEFINED

    @property
    def _kinds(self) -> dict[str, onnx.TypeProto.Tensor]:
        """What ONNX infers of all tensors, repeated while lengths that the graph computes tell it more."""
        if not self._types:
            self._types = self._inferred()
            while computed := self._newly_computed():
                self._computed |= computed
                self._constants = {name: value for name, value in self._constants.items() if value is not None}
                self._types = self._inferred()
        return self._types

    def _inferred(self) -> dict[str, onnx.TypeProto.Tensor]:
        inferred = onnx.shape_inference.infer_shapes(self._skeleton(), data_prop=True).graph
        values = [*inferred.input, *inferred.value_info, *inferred.output]
        return {value.name: value.type.tensor_type for value in values}

    def _newly_computed(self) -> dict[str, TensorProto]:
        """Values that decide shapes which are not known yet, by float arithmetic, say, which ONNX does not follow."""
        found: dict[str, TensorProto] = {}
        for node in self.nodes:
            lengths = self.shape(node.output[0]) or (None,)
            if node.op_type not in SHAPING or all(isinstance(length, int) for length in lengths):
                continue
            for name in set(node.input[1:]) & self.producers.keys() - self._computed.keys():
                if self.producers[name].op_type != "Constant" and (value := self.constant(name)) is not None:
                    found[name] = numpy_helper.from_array(value, f"vbp/computed/{name}")
        return found

    def _skeleton(self) -> onnx.ModelProto:
        """The model without its weights: large ones make the inference of shapes slow, and it does not need them."""
        whole = self.model
        weights = {name for name, tensor in self.initializers.items() if np.prod(tensor.dims) > SMALL}
        small = [self._loaded(tensor) for name, tensor in self.initializers.items() if name not in weights]
        small += self._computed.values()
        stand_ins = [
            helper.make_tensor_value_info(name, self.initializers[name].data_type, list(self.initializers[name].dims))
            for name in sorted(weights)
        ]
        inputs = [value for value in whole.graph.input if value.name not in weights]
        graph = helper.make_graph(
            [self._told(node) for node in self.nodes],
            "skeleton",
            [*inputs, *stand_ins],
            whole.graph.output,
            small,
            value_info=whole.graph.value_info,
        )
        return helper.make_model(
            graph, opset_imports=whole.opset_import, ir_version=whole.ir_version, functions=whole.functions
        )

    def _told(self, node: NodeProto) -> NodeProto:
        """The node, with values that were computed in place of those that the graph computes."""
        if node.op_type not in SHAPING or not self._computed.keys() & set(node.input):
            return node
        told = NodeProto()
        told.CopyFrom(node)
        told.input[1:] = [self._computed[name].name if name in self._computed else name for name in node.input[1:]]
        return told

    def _loaded(self, tensor: TensorProto) -> TensorProto:
        if not external_data_helper.uses_external_data(tensor):
            return tensor
        loaded = TensorProto()
        loaded.CopyFrom(tensor)
        external_data_helper.load_external_data_for_tensor(loaded, self._folder)
        loaded.data_location = TensorProto.DEFAULT
        del loaded.external_data[:]
        return loaded

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of a tensor that depends on no input of the graph; None for others."""
        if name not in self._constants:
            self._constants[name] = self._evaluated(name)
        return self._constants[name]

    def _evaluated(self, name: str) -> NDArray[Any] | None:
        if name in self.initializers:
            return numpy_helper.to_array(self._loaded(self.initializers[name]), self._folder)
        node = self.producers.get(name)
        if node is None or node.domain not in ("", "ai.onnx") or has_subgraphs(node):
            return None
        if node.op_type == "Shape":
            return self._picked(node, lambda lengths: lengths)
        maker = self.producers.get(node.input[0]) if node.input else None
        values = {source: self.constant(source) for source in node.input if source}
        if maker is not None and maker.op_type == "Shape" and values.get(node.input[0]) is None:
            return self._part_of_a_shape(maker, node, values)
        if any(value is None for value in values.values()):
            return None
        inputs = [helper.make_tensor_value_info(source, TensorProto.UNDEFINED, None) for source in values]
        output = helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None)
        graph = helper.make_graph([node], "constant", inputs, [output])
        model = helper.make_model(graph, opset_imports=self.model.opset_import)
        (found,) = ReferenceEvaluator(model).run(None, values)
        return np.asarray(found)

    def _part_of_a_shape(
        self, shape: NodeProto, node: NodeProto, values: dict[str, NDArray[Any] | None]
    ) -> NDArray[Any] | None:
        """Lengths that are picked out of a shape of which others, such as the number of images, are open."""
        picks = [values[name] for name in node.input[1:] if name]
        if any(pick is None for pick in picks):
            return None
        if node.op_type == "Gather":
            return self._picked(shape, lambda lengths: lengths[picks[0]])
        if node.op_type == "Slice":
            start, stop = (int(np.ravel(pick)[0]) for pick in picks[:2] if pick is not None)
            stride = int(np.ravel(picks[3])[0]) if len(picks) > 3 and picks[3] is not None else 1
            return self._picked(shape, lambda lengths: lengths[start:stop:stride])
        return None

    def _picked(self, node: NodeProto, pick: Callable[[NDArray[Any]], Any]) -> NDArray[Any] | None:
        """What `pick` takes of the lengths that a node Shape gives; None if one of these is open."""
        settings = attributes(node)
        shape = self.shape(node.input[0])
        if shape is None:
            return None
        lengths = np.array(shape[settings.get("start", 0) : settings.get("end")], dtype=object)
        picked = np.asarray(pick(lengths), dtype=object)
        is_known = all(isinstance(length, int) for length in picked.ravel())
        return picked.astype(np.int64) if is_known else None


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name; texts are bytes."""
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def described(node: NodeProto) -> str:
    """A node for messages: its operator, with the domain if it is none of ONNX's own, and its name."""
    domain = f" of the domain {node.domain}" if node.domain not in ("", "ai.onnx") else ""
    return f"{node.op_type}{domain} {node.name or node.output[0]!r}"


def has_subgraphs(node: NodeProto) -> bool:
    """Whether a node runs a graph of its own, as If and Loop do."""
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(one.type in kinds for one in node.attribute)


def _length(dimension: Any) -> Length:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    return str(dimension.dim_param) or None


def _opset(model: onnx.ModelProto) -> int:
    versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    if not versions:
        raise UsageError(
            "the model names no version of ONNX's operators (opset), so it may be cut short: copy it again."
        )
    if versions[0] < OLDEST_OPSET:
        raise UsageError(
            f"the model has opset {versions[0]}, and at least {OLDEST_OPSET} is needed: convert it with "
            "onnx.version_converter.convert_version(model, 17)."
        )
    return int(versions[0])
