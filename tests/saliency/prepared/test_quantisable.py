"""Which additions can be computed in integers: those that end residual blocks, and no others."""

import pytest
import torch
from torch import nn

from vbp.saliency import VisualBackProp
from vbp.saliency.prepared.quantisable import of_equal_shapes, quantisable_additions

from ..conftest import randomise


class Network(nn.Module):
    """A convolution, then a function of a convolution, a norm and the map between them, then a last convolution."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.conv, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 3)
        self.norm, self.side = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.middle = middle

    def forward(self, x):
        x = torch.relu(self.first(x))
        return torch.relu(self.last(self.middle(self, x)))


def found_in(middle):
    vbp = VisualBackProp(randomise(Network(middle)))
    additions = quantisable_additions(vbp._forward)
    return [additions[node] for node in of_equal_shapes(additions, vbp._forward.model, (1, 3, 24, 24))]


ADDED = {
    "an operator": lambda self, x: torch.relu(self.norm(self.conv(x)) + x),
    "the other way round": lambda self, x: torch.relu(x + self.norm(self.conv(x))),
    "a function": lambda self, x: torch.add(self.conv(x), x).relu_(),
    "a method": lambda self, x: self.conv(x).add(x).relu(),
    "in place": lambda self, x: self.conv(x).add_(x).relu_(),
    "two convolutions": lambda self, x: torch.relu(self.conv(x) + self.side(x)),
}


@pytest.mark.parametrize("middle", ADDED.values(), ids=ADDED)
def test_a_convolution_and_another_map_are_added(middle):
    (addition,) = found_in(middle)
    assert addition.chain[0].target == "conv"
    assert addition.other is not addition.chain[-1]
    assert addition.other in addition.node.all_input_nodes


def changed_before(self, x):
    y = torch.relu(self.conv(x))
    x.view(x.shape).mul_(0.5)
    return torch.relu(self.side(y) + x)


def read_twice(self, x):
    y = self.conv(x) + x
    return torch.relu(y) * y


OTHERS = {
    "without ReLU": lambda self, x: self.conv(x) + x,
    "of a number": lambda self, x: torch.relu(self.conv(x) + 1.0),
    "into the other map": lambda self, x: torch.relu(x.add_(self.conv(x))),
    "weighted": lambda self, x: torch.relu(torch.add(self.conv(x), x, alpha=2)),
    "after an activation": lambda self, x: torch.relu(torch.relu(self.conv(x)) + x),
    "to itself": lambda self, x: torch.relu(torch.add(*[self.conv(x)] * 2)),
    "of another size": lambda self, x: torch.relu(self.conv(x.mean((2, 3), keepdim=True)) + x),
    "of a map that was changed under another name": changed_before,
    "that is read twice": read_twice,
}


@pytest.mark.parametrize("middle", OTHERS.values(), ids=OTHERS)
def test_other_additions_stay(middle):
    assert not found_in(middle)
