"""The stages of sequential networks, and the refusal of what is no CNN."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from vbp.errors import ModelError
from vbp.saliency import VisualBackProp
from vbp.saliency.geometry import Pooling, Window
from vbp.saliency.trace import trace

CONVOLUTION = Window((3, 3), before=(1, 1), after=(1, 1))
POOL = Pooling((2, 2), (2, 2), maximum=True)


def convolution(inputs=3, outputs=4, **settings):
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **settings})


class Functional(nn.Module):
    """Calls everything as functions, defines its layers out of order, and ends without a head."""

    def __init__(self):
        super().__init__()
        self.second = convolution(4)
        self.first = convolution()

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.dropout(self.second(x).relu(), training=self.training)
        return F.relu(F.conv2d(x, self.second.weight, stride=(2, 1), padding=(1, 0)))


class DiscardedInPlace(nn.Module):
    """Uses in-place activations without taking their result."""

    def __init__(self, activate):
        super().__init__()
        self.activate, self.first, self.second = activate, convolution(), convolution(4)

    def forward(self, x):
        x = self.first(x)
        self.activate(x)
        return self.activate(self.second(x))


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
@pytest.mark.parametrize("suffix", ["", "_bn"])
def test_vgg(depth, suffix):
    with torch.device("meta"):
        model = torchvision.models.get_model(f"vgg{depth}{suffix}", weights=None)
    stages = trace(model).stages
    names = [name for name, module in model.features.named_modules() if isinstance(module, nn.ReLU)]
    assert [stage.name for stage in stages] == [f"features.{name}" for name in names]
    assert len(stages) == depth - 3
    assert stages[0].steps == (CONVOLUTION,)
    assert {stage.steps for stage in stages[1:]} == {(CONVOLUTION,), (POOL, CONVOLUTION)}
    assert sum(len(stage.steps) == 2 for stage in stages) == 4


def test_alexnet():
    with torch.device("meta"):
        stages = trace(torchvision.models.alexnet(weights=None)).stages
    pool = Pooling((3, 3), (2, 2), maximum=True)
    assert [stage.steps for stage in stages] == [
        (Window((11, 11), (4, 4), (2, 2), (2, 2)),),
        (pool, Window((5, 5), before=(2, 2), after=(2, 2))),
        (pool, CONVOLUTION),
        (CONVOLUTION,),
        (CONVOLUTION,),
    ]


def test_driving_network_of_the_authors():
    """BN-Conv-ReLU, 3x3 without padding, strides 1 and 2 in turn, a last batch norm behind the last ReLU."""
    widths = [1, 8, 8, 16, 16, 24]
    modules = []
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        modules += [nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride=1 + i % 2), nn.ReLU()]
    model = nn.Sequential(*modules, nn.BatchNorm2d(24), nn.Flatten(), nn.Linear(24, 1))
    stages = trace(model).stages
    assert [stage.steps[0].stride for stage in stages] == [(1, 1), (2, 2), (1, 1), (2, 2), (1, 1)]
    assert all(stage.steps == (Window((3, 3), stage.steps[0].stride),) for stage in stages)


def test_functions_are_followed_like_modules():
    stages = trace(Functional()).stages
    assert [stage.steps for stage in stages] == [
        (CONVOLUTION,),
        (POOL, CONVOLUTION),
        (Window((3, 3), (2, 1), (1, 0), (1, 0)),),
    ]


@pytest.mark.parametrize("activate", [nn.ReLU(inplace=True), F.relu_, lambda x: F.relu(x, True), lambda x: x.relu_()])
def test_in_place_activation_counts_though_its_result_is_discarded(activate):
    found = trace(DiscardedInPlace(activate))
    assert [stage.steps for stage in found.stages] == [(CONVOLUTION,), (CONVOLUTION,)]


def test_shared_modules_are_followed_call_by_call():
    shared, relu = convolution(4), nn.ReLU()
    stages = trace(nn.Sequential(convolution(), relu, shared, relu, shared, relu)).stages
    assert len(stages) == 3


def test_several_layers_may_lie_between_two_maps():
    model = nn.Sequential(
        nn.ReLU(), convolution(), nn.ReLU(), nn.AvgPool2d(3, ceil_mode=True), nn.ReLU(),
        nn.ZeroPad2d((1, 2, 3, 4)), convolution(4), nn.BatchNorm2d(4),
        convolution(4, padding="same", dilation=2), nn.GELU(),
    )  # fmt: skip
    first, second = trace(model).stages
    assert first.steps == (CONVOLUTION,)
    assert not first.signed
    assert second.signed
    assert second.steps == (
        Pooling((3, 3), (3, 3), ceil_mode=True),
        Window((1, 1), before=(3, 1), after=(4, 2)),
        CONVOLUTION,
        Window((3, 3), before=(2, 2), after=(2, 2), dilation=(2, 2)),
    )


def test_squares_of_pixels_are_channels_of_the_first_convolution():
    """TResNet's first layer: the network takes 3 channels, its first convolution 12."""

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(12, 4, 3, padding=1)

        def forward(self, x):
            images, channels, rows, columns = x.size()
            x = x.view(images, channels, rows // 2, 2, columns // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
            return self.convolution(x.view(images, channels * 4, rows // 2, columns // 2)).relu()

    vbp = VisualBackProp(Apart())
    assert vbp.stages[0].steps == (Window((2, 2), (2, 2)), Window((3, 3), before=(1, 1), after=(1, 1)))
    assert vbp(torch.rand(2, 3, 8, 10)).shape == (2, 1, 8, 10)


def test_same_padding_of_an_even_kernel_lies_on_the_far_side():
    (stage,) = trace(nn.Sequential(nn.Conv2d(3, 4, (4, 1), padding="same"), nn.ReLU())).stages
    assert stage.steps == (Window((4, 1), before=(1, 0), after=(2, 0)),)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("vgg11", ["features.1", "features.4", "features.9", "features.14", "features.19"]),
        ("resnet18", ["relu", "layer1.1.relu", "layer2.1.relu", "layer3.1.relu", "layer4.1.relu"]),
        ("densenet121", ["features.relu0", *(f"features.transition{i}.relu" for i in (1, 2, 3)), "relu"]),
    ],
)
def test_last_stages_are_the_last_of_each_resolution(name, last):
    with torch.device("meta"):
        found = trace(torchvision.models.get_model(name, weights=None))
    chosen = found.chosen("last")
    assert [stage.name for stage in chosen.stages] == last
    assert sum(len(stage.steps) for stage in chosen.stages) == sum(len(stage.steps) for stage in found.stages)


def test_convolutions_without_padding_keep_the_resolution():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=(1, 2)), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(),
    )  # fmt: skip
    assert [stage.name for stage in trace(model).chosen("last").stages] == ["3", "5", "10"]


class DataDependent(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Twins(nn.Sequential):
    def forward(self, x):
        x = torch.flatten(super().forward(x), 1)
        return x.mean(1), x.amax(1)


def test_heads_may_branch_and_be_many():
    assert len(trace(Twins(convolution(), nn.ReLU(), nn.AdaptiveAvgPool2d(1))).stages) == 1


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (DataDependent(), "cannot be traced"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), "has no 2-d convolution"),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()), "has no 2-d convolution"),
        (nn.Sequential(convolution()), "no activation behind a 2-d convolution"),
        (nn.Sequential(convolution(), nn.ReLU(), nn.LPPool2d(2, 2), convolution(4)), r"not know: 2 \(LPPool2d\)"),
    ],
)
def test_refusals_say_why(model, reason):
    with pytest.raises(ModelError, match=reason):
        trace(model)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_b_16", "no activation behind a 2-d convolution"),
        ("swin_t", "no activation behind a 2-d convolution"),
        ("maxvit_t", r"an operation that moves pixels: blocks\.0.*\.reshape"),
    ],
)
def test_transformers_are_refused(name, reason):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    with pytest.raises(ModelError, match=reason):
        trace(model)


def test_tracing_leaves_the_model_as_it_was():
    model = nn.Sequential(convolution(), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout()).train()
    model[1].eval()
    trace(model)
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
