"""The hash of a network's structure: settings count, values of weights do not."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vbp.networks.structure import structure_sha256


class Net(nn.Module):
    def __init__(self, act=nn.ReLU, stride=1, repeat=False, **settings):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride), act())
        self.again = self.body if repeat else None
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.scale, self.shape, self.plan = 2, (1, [2, {"a": None}]), {3, 1}
        self.function, self.late = F.relu, partial(F.leaky_relu, negative_slope=0.1)
        self.place = "/home/me/code/net.json"
        for name, value in settings.items():
            setattr(self, name, value)


def test_weights_do_not_count_and_two_like_networks_are_one():
    torch.manual_seed(0)
    assert structure_sha256(Net()) == structure_sha256(Net())


@pytest.mark.parametrize(
    "change",
    [
        {"act": nn.Sigmoid}, {"act": partial(nn.LeakyReLU, 0.2)}, {"stride": 2}, {"repeat": True}, {"scale": 2.0},
        {"scale": 3}, {"shape": (1, [2, {"a": 0}])}, {"plan": {1, 2}}, {"function": F.silu}, {"act": nn.BatchNorm2d},
        {"late": partial(F.leaky_relu, negative_slope=0.2)}, {"table": torch.arange(3.0) * 2}, {"place": "/else"},
        {"more": nn.ReLU()}, {"more": torch.ones(1)}, {"more": None},
    ],
)  # fmt: skip
def test_what_changes_the_network_changes_the_hash(change):
    if change.get("act") is nn.BatchNorm2d:
        change = {"act": partial(nn.BatchNorm2d, 4)}
    assert structure_sha256(Net(**change)) != structure_sha256(Net())


def test_where_the_code_lies_does_not_count():
    moved = Net(place="/srv/code/net.json")
    assert structure_sha256(moved, "/srv/code") == structure_sha256(Net(), "/home/me/code")


def test_objects_without_a_text_of_their_own_and_lists_in_themselves():
    one, other = Net(helper=object()), Net(helper=object())
    one.loop, other.loop = [1], [1]
    one.loop.append(one.loop)
    other.loop.append(other.loop)
    assert structure_sha256(one) == structure_sha256(other)


def test_a_graph_is_told_by_its_code():
    class Two(nn.Module):
        def forward(self, x):
            return x * 2

    class Three(nn.Module):
        def forward(self, x):
            return x * 3

    one, other = (torch.fx.symbolic_trace(network()) for network in (Two, Three))
    assert structure_sha256(one) != structure_sha256(other)
