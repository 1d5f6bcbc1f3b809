"""The check of a network's geometry by the network: it passes where geometry is right, and notices where it is not."""

import pytest
import torch
from torch import nn

from vbp.evidence import receptive
from vbp.saliency.geometry import Window

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("one_thread")

TINY = [
    "test_byobnet", "test_convnext", "test_efficientnet", "test_efficientnet_evos", "test_efficientnet_gn",
    "test_efficientnet_ln", "test_mambaout", "test_nfnet", "test_resnet",
]  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_windows_are_the_networks_own(name):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    receptive.enliven(model)
    assert receptive.problems(model, (64, 75)) == []


@pytest.mark.parametrize(
    ("window", "problem"),
    [
        (Window((3, 3)), "depends on pixels outside its window"),
        (Window((3, 3), before=(1, 1), after=(1, 1), dilation=(2, 2)), "depends on pixels outside its window"),
        (Window((5, 5), before=(2, 2), after=(2, 2)), "its window is"),
    ],
)
def test_a_wrong_window_is_noticed(monkeypatch, window, problem):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()).eval()
    assert receptive.problems(model, (9, 11)) == []
    monkeypatch.setattr("vbp.saliency.operations.window_of", lambda *_: window)
    monkeypatch.setattr("vbp.saliency.dataflow._has_its_size", lambda *_: True)
    assert any(problem in line for line in receptive.problems(model, (9, 11)))
