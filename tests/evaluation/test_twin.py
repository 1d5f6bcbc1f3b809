import torch
from torch import nn

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


def test_an_image_still_matters_at_the_top_of_a_deep_twin():
    blocks = [layer for _ in range(13) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    twin = random_twin(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks), 500)
    tops_BP = twin(images(2)[0]).mean(1).flatten(1)
    assert 0.001 < tops_BP.mean() < 100
    assert torch.corrcoef(tops_BP)[0, 1] < 0.9
    assert (tops_BP.std(1) / tops_BP.mean(1)).min() > 0.1


def test_norms_forget_and_biases_are_none():
    twin = random_twin(KINDS["vgg-norm"](), 500)
    norms = [module for module in twin.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.running_mean.eq(0).all() and norm.running_var.eq(1).all() for norm in norms)
    assert not any(tensor.any() for name, tensor in twin.named_parameters() if name.endswith("bias"))
