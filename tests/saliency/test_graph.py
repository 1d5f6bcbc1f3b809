"""Which layers count as known ones, which are traced, and which are refused: each compared with its plain parts."""

import itertools
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from vbp.errors import ModelError
from vbp.saliency import VisualBackProp
from vbp.saliency.trace import trace

from .conftest import randomise, small_vgg

IMAGES = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(3))


def convolution(inputs=3, outputs=6, **settings):
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **settings})


class NormWithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class WrittenOutNorm(nn.BatchNorm2d):
    """As timm's: a norm in its own words, then its activation."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        torch._assert(x.ndim == 4, "4-d")
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)
        return self.act(x)


class NormOfGroups(nn.GroupNorm):
    def forward(self, x):
        return F.gelu(super().forward(x))


class NormOfChannels(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu()


class ConvolutionWithActivation(nn.Conv2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class ConvolutionWithShortcut(nn.Conv2d):
    def forward(self, x):
        return F.relu(x + super().forward(x))


class ConvolutionOfAPool(nn.Conv2d):
    def forward(self, x):
        return F.relu(super().forward(F.max_pool2d(x, 2)))


class StandardisedConvolution(nn.Conv2d):
    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, [1, 2, 3], keepdim=True)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return F.relu(F.conv2d(x, weight, self.bias, self.stride, self.padding))


class Blur(nn.Module):
    def __init__(self):
        super().__init__()
        line = torch.tensor([1.0, 2, 1])
        self.taps = nn.Parameter(line.outer(line)[None, None] / 16)

    def forward(self, x):
        weight = self.taps.expand(x.shape[1], 1, 3, 3)
        return F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, stride=2, groups=x.shape[1]))


class PoolWithActivation(nn.MaxPool2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Permuted(nn.Sequential):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def with_weights_of(layer, other):
    layer.load_state_dict(other.state_dict(), strict=False)
    return layer


def standardised(layer):
    weight = layer.weight.detach()
    variance, mean = torch.var_mean(weight, [1, 2, 3], keepdim=True)
    plain = convolution(6)
    plain.weight.data, plain.bias = (weight - mean) / torch.sqrt(variance + 1e-5), layer.bias
    return plain


def blurred(layer):
    plain = nn.Conv2d(6, 6, 3, 2, groups=6, bias=False)
    plain.weight.data = layer.taps.data.repeat(6, 1, 1, 1)
    return nn.Sequential(nn.ReflectionPad2d(1), plain)


FUSED = [
    (NormWithActivation(6), lambda layer: [with_weights_of(nn.BatchNorm2d(6), layer), nn.ReLU()]),
    (WrittenOutNorm(6), lambda layer: [with_weights_of(nn.BatchNorm2d(6), layer), nn.SiLU()]),
    (NormOfGroups(2, 6), lambda layer: [with_weights_of(nn.GroupNorm(2, 6), layer), nn.GELU()]),
    (NormOfChannels(6), lambda layer: [Permuted(with_weights_of(nn.LayerNorm(6), layer)), nn.ReLU()]),
    (ConvolutionWithActivation(6, 6, 3, padding=1), lambda layer: [with_weights_of(convolution(6), layer), nn.ReLU()]),
    (
        ConvolutionWithShortcut(6, 6, 3, padding=1),
        lambda layer: [Residual(with_weights_of(convolution(6), layer)), nn.ReLU()],
    ),
    (
        ConvolutionOfAPool(6, 6, 3, padding=1, padding_mode="reflect"),
        lambda layer: [
            nn.MaxPool2d(2), nn.ReflectionPad2d(1), with_weights_of(convolution(6, padding=0), layer), nn.ReLU()
        ],
    ),
    (StandardisedConvolution(6, 6, 3, padding=1), lambda layer: [standardised(layer), nn.ReLU()]),
    (Blur(), lambda layer: [blurred(layer), nn.ReLU()]),
    (PoolWithActivation(3, 2), lambda layer: [nn.MaxPool2d(3, 2), nn.ReLU()]),
]  # fmt: skip


@pytest.mark.parametrize(("fused", "parts"), FUSED, ids=lambda one: type(one).__name__)
def test_fused_layer_gives_the_mask_of_its_parts(fused, parts):
    layers = parts(randomise(fused))
    ends = convolution(), convolution(6, 4)
    one, other = (nn.Sequential(ends[0], *middle, ends[1], nn.ReLU()).eval() for middle in ([fused], layers))
    assert torch.equal(one(IMAGES), other(IMAGES))
    assert len(trace(one).stages) == len(trace(other).stages) == 2
    assert torch.equal(VisualBackProp(one)(IMAGES), VisualBackProp(other)(IMAGES))


class DataDependent(nn.Conv2d):
    def forward(self, x):
        right = int(x.sum())
        return super().forward(F.pad(x, (0, right, 0, 0)))


def test_what_cannot_be_looked_into_is_refused_with_its_line():
    network = nn.Sequential(DataDependent(3, 4, 3, 2), nn.ReLU())
    with pytest.raises(ModelError, match=r"cannot be traced .* in test_graph.py, line \d+: right = "):
        trace(network)


def test_weights_computed_from_the_image_have_their_size():
    class Dynamic(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight * x.mean(), padding=1)

    layer = nn.Conv2d(6, 4, 3, padding=1, bias=False)
    dynamic = with_weights_of(Dynamic(6, 4, 3, bias=False), layer)
    ends = convolution(), nn.ReLU()
    layer.weight.data = layer.weight * nn.Sequential(*ends)(IMAGES[:1]).mean()
    one, other = (nn.Sequential(*ends, middle, nn.ReLU()) for middle in (dynamic, layer))
    assert torch.equal(VisualBackProp(one)(IMAGES[:1]), VisualBackProp(other)(IMAGES[:1]))


def test_layer_whose_weights_were_replaced_has_their_size():
    network = nn.Sequential(convolution(), nn.ReLU())
    network[0].weight, network[0].padding = nn.Parameter(torch.ones(6, 3, 5, 5)), (2, 2)
    (stage,) = trace(network).stages
    assert stage.steps[0].kernel == (5, 5)


REPARAMETRISED = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    pytest.param(weight_norm, marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")),
    spectral_norm,
    lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
]


@pytest.mark.parametrize("change", REPARAMETRISED)
def test_layer_whose_weights_are_computed_by_pytorch_is_that_layer(change):
    network = small_vgg()
    network[2] = change(network[2])
    network.eval()(IMAGES)
    result = VisualBackProp(network).explain(IMAGES)
    plain = small_vgg()
    plain[2].weight.data = network[2].weight.detach().clone()
    assert torch.equal(result.output, plain(IMAGES))
    torch.testing.assert_close(result.mask, VisualBackProp(plain)(IMAGES), atol=1e-6, rtol=0)


def activated(layer, x):
    return F.relu(type(layer).forward(layer, x))


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
def test_method_replaced_on_a_layer_is_looked_into(method):
    network = nn.Sequential(convolution(), convolution(6), nn.ReLU())
    plain = nn.Sequential(network[0], nn.ReLU(), *network[1:])
    expected = VisualBackProp(plain)(IMAGES)
    original = getattr(network[0], method)
    setattr(network[0], method, lambda *args: F.relu(original(*args)))
    assert torch.equal(VisualBackProp(network)(IMAGES), expected)


def test_method_replaced_on_a_class_is_looked_into(monkeypatch):
    network = nn.Sequential(convolution(), nn.BatchNorm2d(6), convolution(6), nn.ReLU()).eval()
    original = nn.BatchNorm2d.forward
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: F.relu(original(self, x)))
    assert len(trace(network).stages) == 2


def test_forward_and_hooks_of_the_network_itself_are_followed():
    network = small_vgg()
    expected = VisualBackProp(network)(IMAGES * 2)
    network.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    assert torch.equal(VisualBackProp(network)(IMAGES), expected)
    network._forward_pre_hooks.clear()
    network.forward = MethodType(lambda self, x: nn.Sequential.forward(self, x * 2), network)
    assert torch.equal(VisualBackProp(network)(IMAGES), expected)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda one: nn.DataParallel(torch.compile(nn.DataParallel(one), backend="eager"))]
)
def test_wrappers_are_taken_off(wrap, inner):
    network = small_vgg()
    expected = VisualBackProp(network)(IMAGES)
    wrapped = nn.Sequential(wrap(network[:4]), wrap(network[4:])) if inner else wrap(network)
    assert torch.equal(VisualBackProp(wrapped)(IMAGES), expected)


class Changing(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.layers, self.change, self.count = small_vgg(), change, itertools.count()

    def forward(self, x):
        return self.layers(self.change(self, x))


@pytest.mark.parametrize(
    "change",
    [
        lambda net, x: F.relu(x) if next(net.count) % 2 else x,
        lambda net, x: x * next(net.count),
        lambda net, x: x + torch.rand(1),
    ],
)
def test_network_that_changes_between_two_passes_is_refused(change):
    with pytest.raises(ModelError, match="Changing does something else each time"):
        trace(Changing(change))


def test_constants_of_the_forward_pass_are_no_change():
    network = Changing(lambda net, x: x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
    assert len(trace(network).stages) == 4


class Optional(nn.Module):
    def __init__(self, rest):
        super().__init__()
        self.layers, self.rest = small_vgg(), rest

    def forward(self, image, meta=None, *, labels=None, features=False, **others):
        y = self.layers(image)
        return self.rest(y, meta, labels, features)


def test_further_arguments_keep_their_defaults():
    def rest(y, meta, labels, features):
        y = y if meta is None else y + meta
        y = y if labels is None else F.cross_entropy(y, labels)
        return (y, y) if features else y

    network = Optional(rest)
    result = VisualBackProp(network).explain(IMAGES)
    assert torch.equal(result.output, network(IMAGES))


class TwoInputs(nn.Module):
    def forward(self, image, meta, scale=1):
        return image * scale + meta


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = small_vgg()

    def forward(self, batch):
        return self.layers(batch["image"])


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda images: images, r"needs a torch\.nn\.Module, not function"),
        (TwoInputs(), r"TwoInputs\.forward needs meta besides the images"),
        (Dictionary(), "takes the images out of a dictionary"),
        (Changing(lambda net, x: x if x.amax() > 1 else x / 255), r"in test_graph\.py, line \d+: .*x\.amax\(\) > 1"),
    ],
)
def test_refusals_name_what_is_in_the_way(network, reason):
    with pytest.raises(ModelError, match=reason):
        trace(network)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_torchscript_is_refused():
    with pytest.raises(ModelError, match="is TorchScript"):
        VisualBackProp(torch.jit.script(small_vgg()))
