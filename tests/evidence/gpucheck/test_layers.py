"""Each geometry of fused convolutions, on a CPU, where torch stands in for cuDNN."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vbp.evidence.gpucheck.layers import layers
from vbp.evidence.gpucheck.scope import Scope
from vbp.saliency import VisualBackProp
from vbp.saliency.prepared import cuda
from vbp.saliency.prepared.switches import Switches

DRY = Scope(device="cpu", batch_size=2, size=16, rounds=1, weights=None, is_dry=True)


class Block(nn.Module):
    """Two convolutions of one geometry, of which the second adds the first one's map."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, images):
        below = F.relu(self.second(F.relu(self.first(images))))
        return F.relu(self.third(below) + below)


@pytest.fixture
def prepared(monkeypatch):
    def relu(map_NCHW, weight, bias, *geometry):
        return F.conv2d(map_NCHW, weight, bias, *geometry).relu()

    def add_relu(map_NCHW, weight, other_NCHW, alpha, bias, *geometry):
        return (F.conv2d(map_NCHW, weight, bias, *geometry) + alpha * other_NCHW).relu()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    cuda.can_fuse.cache_clear()
    vbp = VisualBackProp(Block().bfloat16().to(memory_format=torch.channels_last))
    vbp._forward = cuda.fewer_kernels(vbp._forward, torch.device("cpu"), Switches())
    yield vbp
    cuda.can_fuse.cache_clear()


def test_what_cudnn_refuses_is_named_and_the_others_are_timed(prepared, monkeypatch):
    fused = torch.cudnn_convolution_relu

    def refusing(map_NCHW, *arguments):
        if map_NCHW.shape[1] == 3:
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        return fused(map_NCHW, *arguments)

    monkeypatch.setattr(torch, "cudnn_convolution_relu", refusing)
    refusal, *others = layers(DRY, "block", prepared)
    assert refusal == "cuDNN does not fuse 3x3 of 3 to 8, stride 2x2, on 16x16"
    assert len(others) == 2


def test_each_geometry_is_held_against_its_steps(prepared):
    figures = list(layers(DRY, "block", prepared))
    assert [each.name for each in figures] == [
        "block, fused: 3x3 of 3 to 8, stride 2x2, on 16x16",
        "block, fused: 1x1 of 8 to 8, stride 1x1, on 8x8",
        "block, fused: 1x1 of 8 to 8, stride 1x1, on 8x8, and addition",
    ]
    assert all(each.median > 0 and each.target > 0 and each.at_most and each.unit == "us" for each in figures)
