import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from tests.evaluation.kinds import KINDS, images
from vbp.errors import ModelError
from vbp.evaluation.randomisation import cascade
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


class Functional(nn.Module):
    """A convolution whose kernel no layer holds, beside one that a layer holds."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.conv(torch.conv2d(x, self.kernel).relu()).relu()


def normed():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), spectral_norm(nn.Conv2d(4, 4, 3)), nn.ReLU())


@pytest.mark.parametrize("draw", [lambda network: random_twin(network, 500), cascade], ids=["twin", "cascade"])
@pytest.mark.parametrize(("network", "name"), [(Functional, "kernel"), (normed, "2.parametrizations.weight.original")])
def test_a_kernel_that_cannot_be_drawn_anew_is_refused(draw, network, name):
    """A twin that is partly trained would seem to show that training does not matter."""
    with pytest.raises(ModelError, match=rf"{name} would stay as it is.*reset_parameters"):
        draw(network().eval())


def test_a_twin_has_a_twin():
    """Also by the same seed, which draws some weights a second time: metrics of randomisation ask for it."""
    twin = random_twin(KINDS["vgg-norm"](), 500)
    assert all(torch.isfinite(tensor).all() for tensor in random_twin(twin, 500).parameters())
