"""Detectors and segmenters: by their backbone, by their pyramid, or whole."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import detection, segmentation

from vbp.saliency import VisualBackProp
from vbp.saliency.geometry import Branches, Resampling
from vbp.saliency.trace import trace

from .conftest import randomise

UNTRAINED = {"weights": None, "weights_backbone": None}
BODY = [
    "relu",
    *(f"layer{block}.{unit}.relu" for block, units in enumerate((3, 4, 6, 3), 1) for unit in range(units)),
]


def check(model, size, stages):
    vbp = VisualBackProp(randomise(model))
    names = [stage.name for stage in vbp.stages]
    assert names == stages if isinstance(stages, list) else len(names) == stages
    for height, width in (size, (size[0] + 11, size[1] - 6)):
        image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        result = vbp.explain(image)
        with torch.no_grad():
            expected = model(image)
        assert list(result.output) == list(expected)
        assert all(torch.equal(result.output[name], expected[name]) for name in expected)
        assert result.mask.shape == (1, 1, height, width)
        assert (result.mask.min(), result.mask.max()) == (0, 1)
        assert result.finite.all()
    return vbp


def on_meta(make):
    with torch.device("meta"):
        return make(**UNTRAINED)


@pytest.mark.parametrize("part", ["backbone.body", "backbone"])
@pytest.mark.parametrize("make", [detection.fasterrcnn_resnet50_fpn, detection.retinanet_resnet50_fpn])
def test_backbone_of_a_detector_has_the_stages_of_its_network(make, part):
    """With its pyramid too: all its maps are computed from the deepest stage."""
    prefix = "" if part == "backbone.body" else "body."
    names = [stage.name for stage in trace(on_meta(make).get_submodule(part)).stages]
    assert names == [prefix + name for name in BODY]


def test_detector_of_a_small_network_is_explained():
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(**UNTRAINED)
    check(model.get_submodule("backbone"), (64, 96), 22)


def test_lraspp_is_explained_whole():
    vbp = check(segmentation.lraspp_mobilenet_v3_large(**UNTRAINED, num_classes=4), (64, 96), 8)
    assert vbp.stages[-1].name == "classifier.add"


@pytest.mark.parametrize(("make", "stages"), [(segmentation.fcn_resnet50, 18), (segmentation.deeplabv3_resnet50, 20)])
def test_segmenter_is_traced_whole(make, stages):
    """The network's stages, and its head's."""
    assert len(trace(on_meta(make)).stages) == stages


class UNet(nn.Module):
    """As people write it: the size of the other map is asked for where the upsampled one is padded."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([self.block(3, 4), self.block(4, 8), self.block(8, 8)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(8, 8, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)])
        self.join = nn.ModuleList([self.block(16, 8), self.block(8, 4)])
        self.head = nn.Conv2d(4, 2, 1)

    @staticmethod
    def block(inputs, outputs):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, x):
        first = self.down[0](x)
        second = self.down[1](F.max_pool2d(first, 2))
        x = self.down[2](F.max_pool2d(second, 2))
        for up, join, skip in zip(self.up, self.join, (second, first), strict=True):
            x = up(x)
            rows, columns = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
            x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
            x = join(torch.cat([skip, x], dim=1))
        return {"out": self.head(x)}


def test_unet_of_ones_own():
    """Its first map and the last ones: every other one is passed by the first skip connection."""
    vbp = check(UNet(), (32, 48), ["down.0.2", "cat_1", "join.1.2"])
    (inside,) = [step for step in vbp.stages[1].steps if isinstance(step, Branches)]
    assert not any(isinstance(step, Resampling) for strand in inside.strands for step in strand.steps)
