"""Which tensors operations change in place, and which share memory."""

import operator

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from vbp.saliency.operations import changed_by, memory_of


def last_node(function):
    graph = fx.symbolic_trace(function).graph
    return list(graph.nodes)[-2]


@pytest.mark.parametrize(
    ("function", "changed"),
    [
        (lambda x, y: x.add_(y), "x"),
        (lambda x, y: torch.relu_(x), "x"),
        (lambda x, y: F.elu(y, 1.0, True), "y"),
        (lambda x, y: torch.add(x, x, out=y), "y"),
        (lambda x, y: x + y, None),
        (lambda x, y: x & y, None),  # Python calls it and_
        (lambda x, y: F.relu(x), None),
    ],
)
def test_what_an_operation_changes(function, changed):
    found = changed_by(last_node(function), nn.Module())
    assert (found and found.name) == changed


def test_an_operator_in_place():
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert changed_by(graph.call_function(operator.imul, (x, 2)), nn.Module()) is x
    assert changed_by(graph.call_function(operator.mul, (x, 2)), nn.Module()) is None


@pytest.mark.parametrize(
    ("function", "memory"),
    [
        (lambda x: x[:, 1].T.relu_().view(-1), "x"),
        (lambda x: x.chunk(2)[0].unfold(0, 2, 2), "x"),
        (lambda x: F.dropout(x.add(1), training=False).detach(), "add"),
        (lambda x: torch.relu(x), "relu"),
    ],
)
def test_where_a_result_may_lie(function, memory):
    assert memory_of(last_node(function), nn.Module()).name == memory
