"""The rivals are measured fairly only if they compute what they should."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import reference
from vbp.evidence.rivals import bare_forward, out_of_place, reference_algorithm


def features():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
    )  # fmt: skip


@pytest.fixture
def network():
    """A network with a classifier of two classes, as torchvision's VGGs are built."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = features()
            self.classifier = nn.Linear(5 * 16, 2, bias=False)

        def forward(self, images_NCHW):
            return self.classifier(self.features(images_NCHW).flatten(1))

    return out_of_place(Network().eval())


@pytest.fixture
def images_NCHW():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_reference_algorithm_equals_the_oracle(images_NCHW):
    layers = features().requires_grad_(False)
    masks = reference_algorithm(layers)(images_NCHW)
    assert masks.shape == (2, 1, 16, 16)
    for image, mask in zip(images_NCHW, masks, strict=True):
        wanted = reference.reference_mask(reference.layers_of(layers), image.double().numpy())
        assert abs(mask[0].double().numpy() - wanted).max() < 5e-6


def test_bare_forward_is_the_feature_part(images_NCHW):
    assert bare_forward(features())(images_NCHW).shape == (2, 5, 4, 4)


@pytest.mark.long
def test_grad_cam_by_hand(network, images_NCHW):
    pytest.importorskip("pytorch_grad_cam")
    from vbp.evidence.rivals import grad_cam

    masks = grad_cam(network)(images_NCHW)
    assert masks.shape == (2, 16, 16)
    # of a linear classifier the gradient is its weight, whatever the image
    weights_C = network.classifier.weight[0].view(5, 16).mean(1)
    map_hw = (weights_C.view(5, 1, 1) * network.features(images_NCHW)[0]).sum(0).relu().detach()
    assert np.unravel_index(masks[0].argmax(), (16, 16))[0] // 4 == int(map_hw.argmax()) // 4
    assert not network.features[-1]._forward_hooks


@pytest.mark.long
def test_eigen_cam_needs_no_gradients(network, images_NCHW):
    pytest.importorskip("pytorch_grad_cam")
    from vbp.evidence.rivals import eigen_cam

    masks = eigen_cam(network)(images_NCHW)
    assert masks.shape == (2, 16, 16)
    assert np.isfinite(masks).all()
    assert not network.features[-1]._forward_hooks


def test_guided_backprop_is_the_gradient_where_all_is_positive(images_NCHW):
    pytest.importorskip("captum")
    from vbp.evidence.rivals import guided_backprop

    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 2, bias=False))
    wanted = network[1].weight[0].view(3, 16, 16).expand(2, -1, -1, -1)
    assert torch.equal(guided_backprop(network)(images_NCHW), wanted)
    cut = nn.Sequential(*network, nn.ReLU(), nn.Linear(2, 1, bias=False))
    cut[3].weight.data.fill_(-1)
    assert not guided_backprop(cut)(images_NCHW).any()  # a negative gradient ends at a ReLU


def test_relevance_is_conserved(network, images_NCHW):
    pytest.importorskip("zennit")
    from vbp.evidence.rivals import lrp

    for name, parameter in network.named_parameters():
        if name.endswith("bias"):  # which would take its share
            parameter.data.zero_()
    relevance_NCHW = lrp(network)(images_NCHW)
    assert relevance_NCHW.shape == images_NCHW.shape
    output_N = network(images_NCHW)[:, 0]
    assert torch.allclose(relevance_NCHW.sum((1, 2, 3)), output_N, rtol=0.01)


def test_relus_are_put_out_of_place():
    assert not any(layer.inplace for layer in out_of_place(features()) if isinstance(layer, nn.ReLU))
