"""What of a forward pass can be computed in integers: its convolutions, and the additions that end residual blocks."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from torch.fx import Node

from vbp.saliency.forward import ForwardPass, last_tap
from vbp.saliency.prepared.chains import (
    RELU,
    activation_of,
    addition_to,
    chain_of,
    is_convolution,
    is_unchanged,
    nodes_until,
)
from vbp.saliency.shapes import ImageShape, Shapes, larger


def quantisable_chains(forward: ForwardPass) -> list[list[Node]]:
    """The chains whose convolution can be computed in integers, from the input upwards."""
    model = forward.model
    nodes = nodes_until(last_tap(forward.graph))
    convolutions = [node for node in nodes if is_convolution(node, model) and reads_unchanged(node, model)]
    return [chain_of(node, model, RELU) for node in convolutions]


def reads_unchanged(reader: Node, model: nn.Module) -> bool:
    """Whether a node reads its input as it was made, so that the node may read the bytes that were made of it."""
    map_ = reader.all_input_nodes[0]
    return is_unchanged(map_, map_, reader, model)


class Addition(NamedTuple):
    """A convolution's output and another map are added, and a ReLU follows."""

    chain: list[Node]
    """The convolution, and the batch norm after it if there is one; only the addition reads them."""
    node: Node
    """The addition."""
    relu: Node
    """The ReLU, which alone reads the sum."""

    @property
    def other(self) -> Node:
        """The other map."""
        first, second = self.node.all_input_nodes
        return second if first is self.chain[-1] else first


def quantisable_additions(forward: ForwardPass) -> dict[Node, Addition]:
    """The additions that can be computed in integers, together with the convolution, by their nodes.

    Their two maps may still differ in shape, see `of_equal_shapes`.
    """
    model = forward.model
    found: dict[Node, Addition] = {}
    for chain in quantisable_chains(forward):
        if activation_of(chain[-1], model) is None and (addition := addition_to(chain[-1], model)):
            node, other, relu = addition
            if is_unchanged(other, other, node, model):
                found.setdefault(node, Addition(chain, node, relu))
    return found


def of_equal_shapes(additions: dict[Node, Addition], model: nn.Module, shape: ImageShape) -> list[Node]:
    """The additions whose two maps have the same shape, for images of this shape and larger ones."""
    sizes = [Shapes(model, each) for each in (shape, larger(shape))] if additions else []

    def equal(addition: Node) -> bool:
        pairs = [[size.size(node) for node in addition.all_input_nodes] for size in sizes]
        return all(first is not None and first == second for first, second in pairs)

    return [addition for addition in additions if equal(addition)]
