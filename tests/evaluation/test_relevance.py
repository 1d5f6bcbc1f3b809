import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from tests.evaluation.kinds import CLASSES, KINDS, Head, images
from tests.small_networks import randomise
from vbp.errors import ModelError
from vbp.evaluation.relevance import lrp
from vbp.evaluation.subject import Batch, Subject
from vbp.saliency.method import Method

pytest.importorskip("zennit")

TARGETS = torch.tensor([4, 0])


def batch(rows=32, columns=40):
    return Batch(*images(2, rows, columns), TARGETS)


def subject(network):
    return Subject(network, Method(), 500)


def unbiased(network):
    """Without biases, which would take their share, and with a classifier that only speaks for classes."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if name.endswith(("bias", "running_mean")):
            tensor.data.zero_()
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    last.weight.data.abs_()
    return network


@pytest.mark.parametrize("kind", ["vgg", "vgg-norm", "residual", "bounded"])
def test_relevance_is_conserved(kind):
    """The pixels' relevance sums up to the score, if all of it is positive."""
    network, given = unbiased(KINDS[kind]()), batch()
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and kind in ("bounded", "residual"):
            module.weight.data.abs_()  # where nothing is active, relevance would end
    given = Batch(given.images_BCHW.abs(), given.pixels_BHWC, given.classes)
    with torch.no_grad():
        score_B = network(given.images_BCHW.clone()).gather(1, TARGETS[:, None])[:, 0]
    torch.testing.assert_close(lrp(subject(network))(given).sum((1, 2)), score_B, rtol=0.01, atol=0)


def test_a_gate_gets_no_relevance_and_takes_none():
    """Of a map times a gate all relevance goes to the map, in the shares that it has without the gate."""

    class Scaled(nn.Module):
        def __init__(self, gated):
            super().__init__()
            self.conv, self.top, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), Head(4)
            self.gated = gated

        def forward(self, images_BCHW):
            map_BCHW = F.relu(self.conv(images_BCHW))
            if self.gated:
                map_BCHW = map_BCHW * torch.sigmoid(map_BCHW.mean((2, 3), keepdim=True)).mean(1, keepdim=True)
            return self.head(F.relu(self.top(map_BCHW)))

    with_gate, without = (unbiased(randomise(Scaled(gated))) for gated in (True, False))
    given = batch()
    found_BHW, wanted_BHW = lrp(subject(with_gate))(given), lrp(subject(without))(given)
    factor_B11 = (found_BHW.sum((1, 2)) / wanted_BHW.sum((1, 2))).view(-1, 1, 1)
    assert factor_B11.lt(1).all()
    torch.testing.assert_close(found_BHW, wanted_BHW * factor_B11, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["resnet", "vgg"])
def test_it_equals_zennit_with_its_own_canonical_forms(family):
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    torch.manual_seed(1)
    if family == "resnet":
        network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], CLASSES)
        canonizer = ResNetCanonizer()
    else:
        features = torchvision.models.vgg.make_layers([4, "M", 6, 6, "M"], batch_norm=True)
        network = nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, CLASSES))
        canonizer = VGGCanonizer()
    randomise(network)
    given = batch()
    found_BHW = lrp(subject(network))(given)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False

    def score(output_BK):
        return output_BK.detach() * F.one_hot(TARGETS, CLASSES)

    with Gradient(network, EpsilonPlusFlat(canonizers=[canonizer])) as attributor:
        wanted_BCHW = attributor(given.images_BCHW.clone().requires_grad_(), score)[1]
    wanted_BHW = wanted_BCHW.sum(1).clamp(min=0)
    assert wanted_BHW.amax((1, 2)).min() > 0
    torch.testing.assert_close(found_BHW, wanted_BHW, rtol=1e-4, atol=1e-5 * wanted_BHW.max().item())


def test_an_operation_without_a_rule_is_named():
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), Head(4)

        def forward(self, images_BCHW):
            map_BCHW = F.relu(self.conv(images_BCHW))
            return self.head(map_BCHW) + torch.fft.fft2(map_BCHW).abs().mean((1, 2, 3))[:, None]

    with pytest.raises(ModelError, match="there is no rule for .*fft2"):
        lrp(subject(randomise(Fourier())))(batch())


def test_arithmetic_with_sizes_needs_no_rule():
    """As TensorFlow's "same" padding has it."""

    class Padded(nn.Module):
        def __init__(self, side):
            super().__init__()
            self.conv, self.head, self.side = nn.Conv2d(3, 4, 3, 2), Head(4), side

        def forward(self, images_BCHW):
            rows = images_BCHW.shape[-2] if self.side is None else self.side
            needed = (math.ceil(rows / 2) - 1) * 2 + 3 - rows
            return self.head(F.relu(self.conv(F.pad(images_BCHW, (0, 1, needed // 2, needed - needed // 2)))))

    computed, fixed = (randomise(Padded(side)) for side in (None, 32))
    assert torch.equal(lrp(subject(computed))(batch()), lrp(subject(fixed))(batch()))


def test_a_convolution_may_be_a_function():
    """As timm's convolutions with TensorFlow's padding are; its batch norm is folded as any other's."""

    class Called(nn.Conv2d):
        def forward(self, images_BCHW):
            padded = F.pad(images_BCHW, (1, 1, 1, 1))
            return F.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)

    def network(kind):
        return randomise(
            nn.Sequential(
                nn.Conv2d(3, 6, 3), nn.ReLU(), kind(6, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(),
                kind(6, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6),
                nn.ReLU(), Head(6),
            )
        )  # fmt: skip

    def padded(*args, **settings):
        return nn.Conv2d(*args, padding=1, **settings)

    found_BHW, wanted_BHW = (lrp(subject(network(kind)))(batch()) for kind in (Called, padded))
    assert wanted_BHW.amax((1, 2)).min() > 0
    torch.testing.assert_close(found_BHW, wanted_BHW)


def test_a_convolution_with_computed_weights_has_no_rule():
    class Standardised(nn.Conv2d):
        def forward(self, images_BCHW):
            return F.conv2d(images_BCHW, self.weight - self.weight.mean((1, 2, 3), keepdim=True))

    network = nn.Sequential(Standardised(3, 6, 3), nn.ReLU(), Head(6))
    with pytest.raises(ModelError, match="there is no rule for .*conv2d"):
        lrp(subject(randomise(network)))(batch())


def test_a_product_of_maps_has_no_rule():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), Head(4)

        def forward(self, images_BCHW):
            return self.head(F.relu(self.conv(images_BCHW) * self.other(images_BCHW)))

    with pytest.raises(ModelError, match="two maps of one size"):
        lrp(subject(randomise(Product())))(batch())
