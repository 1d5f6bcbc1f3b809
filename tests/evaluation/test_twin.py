import torch

from tests.evaluation.kinds import KINDS, images
from vbp.evaluation.twin import random_twin


def test_all_layers_are_drawn_anew_and_the_network_stays():
    network = KINDS["vgg-norm"]()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    twin = random_twin(network, 500)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(torch.equal(tensor, before[name]) for name, tensor in twin.state_dict().items() if tensor.ndim)
    assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_it_is_the_same_for_a_seed_and_takes_nothing_from_the_global_generator():
    network = KINDS["gated"]()
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    outputs = [random_twin(network, seed)(images()[0]) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
