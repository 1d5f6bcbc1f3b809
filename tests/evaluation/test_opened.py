import operator

import pytest
import torch
from torch import nn

from tests.evaluation.kinds import KINDS, every_kind, images, state
from vbp.evaluation.opened import opened, shared_copy, tap_of
from vbp.saliency.trace import trace


@every_kind
def test_it_computes_what_the_network_computes(kind):
    network = KINDS[kind]()
    images_BCHW, _ = images()
    again = opened(network, trace(network).graph)
    with torch.no_grad():
        wanted = network(images_BCHW.clone())
        # SiLU in place and out of place differ in last bits
        torch.testing.assert_close(again(images_BCHW), wanted, rtol=1e-6, atol=1e-6)
    leaf_BCHW = images_BCHW.clone().requires_grad_()
    again(leaf_BCHW)[:, 1].sum().backward()
    assert leaf_BCHW.grad.abs().amax((1, 2, 3)).gt(0).all()
    assert torch.equal(leaf_BCHW, images_BCHW)


@every_kind
def test_every_step_is_a_module_of_its_own_and_changes_nothing_in_place(kind):
    network = KINDS[kind]()
    found = trace(network)
    again = opened(network, found.graph)
    called = [node.target for node in again.graph.nodes if node.op == "call_module"]
    assert len(called) == len(set(called))
    assert len(called) == sum(node.op == "call_module" for node in found.graph.nodes)
    seen = []
    for module in again.children():
        module.register_forward_hook(lambda module, args, result: seen.append((result, result.detach().clone())))
    again(images()[0])
    assert all(torch.equal(result, before) for result, before in seen)


def test_tensors_are_shared_and_the_network_stays_as_it_is():
    network = KINDS["residual"]().train()
    found = trace(network)
    before = state(network)
    again = opened(network, found.graph)
    again(images()[0].requires_grad_())[:, 0].sum().backward()
    assert state(network) == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in again.parameters())
    places = {parameter.data_ptr() for parameter in network.parameters()}
    assert {parameter.data_ptr() for parameter in again.parameters()} <= places
    assert not again.training


def test_maps_pass_through_taps_and_are_recorded_from_the_first_on():
    network = KINDS["residual"]()
    found = trace(network)
    again = opened(network, found.graph, found.taps[1:])
    maps = {}
    for tap in found.taps[1:]:
        again.get_submodule(tap_of(tap)).register_forward_hook(
            lambda module, args, result, tap=tap: maps.update({tap: result})
        )
    output = again(images()[0])
    gradients = torch.autograd.grad(output[:, 0].sum(), list(maps.values()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert maps[found.taps[1]].is_leaf
    part = opened(network, found.graph, found.taps[-1:], whole=False)
    assert torch.equal(part(images()[0]), maps[found.taps[-1]])


def test_a_layer_takes_the_place_of_a_node():
    class Minus(nn.Module):
        def forward(self, left, right):
            return left - right

    network = KINDS["residual"]()
    graph = trace(network).graph
    added = opened(network, graph)
    subtracted = opened(
        network, graph, layer=lambda node, _: Minus() if node.target in (operator.add, operator.iadd) else None
    )
    assert sum(isinstance(module, Minus) for module in subtracted.modules()) == 1
    assert not torch.equal(added(images()[0]), subtracted(images()[0]))


def test_operators_that_end_in_an_underscore_stay():
    class Even(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images_BCHW):
            map_BCHW = torch.relu_(self.conv(images_BCHW))
            return map_BCHW * operator.and_(map_BCHW > 0.1, map_BCHW < 0.5)

    network = Even()
    with torch.no_grad():
        assert torch.equal(opened(network, trace(network).graph)(images()[0]), network(images()[0]))


def test_a_shared_copy_has_hooks_and_settings_of_its_own():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
    copy = shared_copy(network)
    copy[2].inplace = False
    copy[0].register_forward_hook(lambda *_: None)
    assert network[2].inplace
    assert not network[0]._forward_hooks
    with torch.no_grad():
        network[0].weight.zero_()
        network[1].running_mean.fill_(7)
    assert not copy[0].weight.any()
    assert copy[1].running_mean.eq(7).all()
    with pytest.raises(RuntimeError, match="does not require grad"):
        copy[0](torch.ones(1, 3, 1, 1)).sum().backward()
