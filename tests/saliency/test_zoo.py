"""A small network of every family of torchvision: stages, sizes, masks. The whole table is `vbp.evidence.zoo`'s."""

import pytest
import torch

from vbp.networks.models import load_model
from vbp.saliency import Explainer, VisualBackProp
from vbp.saliency.geometry import map_sizes

STAGES = {
    "alexnet": 5,
    "convnext_tiny": 18,  # a block each; its stem and downsampling have no activation
    "densenet121": 5,  # the stem's, one a transition, and the last: no path avoids these
    "efficientnet_b0": 24,
    "efficientnet_v2_s": 45,
    "googlenet": 12,  # 3 convolutions, 9 concatenations
    "inception_v3": 16,  # 5 convolutions, 11 concatenations
    "mnasnet0_5": 25,
    "mobilenet_v2": 25,
    "mobilenet_v3_small": 17,
    "regnet_x_400mf": 23,  # the stem, 22 blocks
    "regnet_y_400mf": 17,
    "resnet18": 9,  # the stem, 8 blocks
    "resnet50": 17,
    "resnext50_32x4d": 17,
    "shufflenet_v2_x0_5": 18,  # 2 convolutions, 16 concatenations
    "squeezenet1_1": 18,  # 2 convolutions; each fire module's squeeze and concatenation
    "vgg11_bn": 8,
    "wide_resnet50_2": 17,
}


@pytest.mark.long
@pytest.mark.parametrize("name", STAGES)
def test_every_family_is_explained(name):
    network = load_model(name, "random").network
    vbp = VisualBackProp(network)
    assert len(vbp.stages) == STAGES[name]
    size = (75, 96) if name == "inception_v3" else (64, 81)
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(image)
    result = vbp.explain(image)
    assert torch.equal(result.output, expected)
    assert [tuple(kept.shape[2:]) for kept in result.maps] == map_sizes(vbp.stages, size)
    assert all(kept.min() >= 0 for kept in result.maps)
    assert result.mask.shape == (1, 1, *size)
    assert (result.mask.min(), result.mask.max()) == (0, 1)
    assert result.finite.all()
    assert not result.flat.any()


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121", "shufflenet_v2_x0_5", "convnext_tiny"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_engine_runs_them(name, precision):
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    explainer = Explainer(name, "random", device="cpu", precision=precision, batch_size=2)
    together = explainer(pixels)
    assert together.mask_BHW.shape == (2, 64, 64)
    assert together.logits_BK.shape == (2, 1000)
    assert together.finite_B.all()
    assert (explainer(pixels[1:]).mask_BHW == together.mask_BHW[1]).all()
