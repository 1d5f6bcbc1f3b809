"""Programs of torch.export: their network computes the same, and what cannot be followed is one sentence."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vbp.errors import ModelError, WeightsError
from vbp.networks.models import load_model
from vbp.networks.sources.exported import rebuilt
from vbp.saliency import VisualBackProp


class Small(nn.Module):
    """Branches, a scale, an upsampling, a concatenation, activations in place, a shuffle of channels."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding="same", groups=2)
        self.last, self.fc = nn.Conv2d(16, 6, 1), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x):
        x = F.relu_(self.norm(self.first(x)))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        y = F.max_pool2d(F.hardswish(self.deep(x)) * self.scale, 2)
        y = F.interpolate(y, scale_factor=2.0)
        x = F.silu(self.last(torch.cat([x, y], 1)))
        x = F.dropout(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), training=self.training)
        return self.fc(x)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(3)
    network = Small().train()
    network(torch.randn(4, 3, 32, 32))  # statistics that are not the usual ones
    return network.eval()


@pytest.fixture(scope="module")
def program(small):
    return torch.export.export(small, (torch.randn(2, 3, 32, 32),))


def test_it_computes_and_is_explained_as_the_network_itself(small, program, tmp_path):
    torch.export.save(program, tmp_path / "small.pt2")
    model = load_model(str(tmp_path / "small.pt2"), size=32)
    images_BCHW = torch.randn(5, 3, 32, 32)  # more than the program was exported with
    with torch.inference_mode():
        torch.testing.assert_close(model.network(images_BCHW), small(images_BCHW))
    one, other = VisualBackProp(model.network), VisualBackProp(small)
    torch.testing.assert_close(one(images_BCHW), other(images_BCHW), atol=1e-6, rtol=0)
    assert len(one.stages) == len(other.stages)
    assert (model.num_classes, model.preprocessing, model.weights) == (3, None, "own")


def test_what_is_no_program(program, tmp_path):
    torch.export.save(program, tmp_path / "small.pt2")
    whole = (tmp_path / "small.pt2").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nothing"):
        (tmp_path / "cut.pt2").write_bytes(content)
        with pytest.raises(ModelError, match=r"cut\.pt2' is no program that torch .* can load") as caught:
            load_model(str(tmp_path / "cut.pt2"))
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"none\.pt2' cannot be read"):
        load_model(str(tmp_path / "none.pt2"))
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ModelError, match="is a folder"):
        load_model(str(tmp_path / "folder.pt2"))


def test_it_holds_its_own_weights(tmp_path):
    with pytest.raises(WeightsError, match=r"net\.pt2 holds its own weights: leave out --weights \(=random\)"):
        load_model(str(tmp_path / "net.pt2"), "random")


class Mixed(nn.Module):
    """Changes the kind of its numbers, and computes in double precision with a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3, stride=2)

    def forward(self, x):
        return self.up(F.relu(self.first(x.double().clamp(-1, 1))).double())


def test_kinds_of_floating_point_numbers_do_not_matter():
    network = Mixed().double().eval()
    images_BCHW = torch.randn(2, 3, 8, 8)
    program = torch.export.export(network, (images_BCHW,)).run_decompositions()
    ours = rebuilt(program, "net")(images_BCHW)
    torch.testing.assert_close(ours, network(images_BCHW).float(), atol=1e-5, rtol=1e-5)


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


class Odd(nn.Module):
    def forward(self, x):
        return torch.fft.fft2(x).abs()


class Calls(nn.Module):
    """A convolution, and a function behind it."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), function

    def forward(self, x):
        return self.function(self, self.conv(x))


def in_training(self, x):
    return F.batch_norm(x, self.norm.running_mean.clone(), self.norm.running_var.clone(), training=True)


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (Calls(lambda self, x: F.dropout(x, 0.5, training=True)), 1, r"aten\.dropout\.default as in training"),
        (Calls(in_training), 1, r"aten\.batch_norm\.default as in training"),
        (Calls(lambda self, x: x.int().float()), 1, r"aten\.\S+ between whole and other numbers"),
        (Calls(lambda self, x: x.bool()), 1, r"aten\.\S+ between whole and other numbers"),
        (Two(), 2, r"takes 2 inputs \(x, y\), not images alone"),
        (Odd(), 1, r"has the operator aten\.\w*fft\w*.*, which is"),
    ],
)
def test_what_is_not_followed(network, inputs, message, tmp_path):
    program = torch.export.export(network.eval(), (torch.randn(1, 3, 8, 8),) * inputs)
    torch.export.save(program, tmp_path / "odd.pt2")
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path / "odd.pt2"))


class Bent(nn.Module):
    """A GELU by hand, and further functions."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        x = self.first(x)
        x = F.celu(0.5 * x * (1 + torch.erf(x / 2**0.5)), 0.3)
        return F.selu(self.last(torch.log(torch.reciprocal(x.exp()))))


def test_activations_by_hand_and_of_fewer_networks():
    network = Bent().eval()
    images_BCHW = torch.randn(2, 3, 8, 8)
    ours = rebuilt(torch.export.export(network, (images_BCHW,)), "net")
    torch.testing.assert_close(ours(images_BCHW), network(images_BCHW))
    one, other = VisualBackProp(ours), VisualBackProp(network)
    assert len(one.stages) == len(other.stages) == 2
    torch.testing.assert_close(one(images_BCHW), other(images_BCHW), atol=1e-6, rtol=0)


class Then(nn.Module):
    """A convolution and ReLU, then a function."""

    def __init__(self, function):
        super().__init__()
        self.first, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, x):
        return self.function(F.relu(self.first(x)))


def exported(function, count=2):
    network = Then(function).eval()
    return network, torch.export.export(network, (torch.randn(count, 3, 8, 8),))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.elu(x - 1),
        lambda x: F.elu(x - 1, 0.3),
        lambda x: F.adaptive_max_pool2d(x, 2).flatten(1),
        lambda x: x.view(-1, 2, 6, 6).mul(2),
    ],
)
def test_functions_give_what_they_give_for_any_number_of_images(function):
    network, program = exported(function)
    images_BCHW = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(rebuilt(program, "net")(images_BCHW), network(images_BCHW))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.reshape(4, 2, 6, 6), r"aten\.reshape\.default that mixes images"),
        (lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[1], "whose second result is used"),
        (lambda x: torch.ops.aten.elu(x - 1, 1.0, 2.0), r"aten\.elu\.default with a scale"),
    ],
)
def test_what_would_be_wrong_for_other_images_is_refused(function, message):
    with pytest.raises(ModelError, match=message):
        rebuilt(exported(function)[1], "net")
