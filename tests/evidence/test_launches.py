"""The whole engine on a CUDA device without data: nothing waits, no operation is on two devices, kernels are few."""

from types import MethodType
from unittest import mock

import pytest
import torch
import torchvision
from torch._subclasses.fake_tensor import FakeTensorMode

from vbp import explainer
from vbp.evidence.launches import OFF, fake_cuda, fake_explainer, forget_tensors, main, watched
from vbp.pipeline.finishing import Finishing
from vbp.saliency import VisualBackProp
from vbp.saliency.prepared.captured import Captured
from vbp.saliency.prepared.watch import Watch


@pytest.fixture(autouse=True)
def _leave_nothing():
    yield
    forget_tensors()


VGG = {  # settings: the most kernels a batch
    "as it is": ({}, 165),
    "reference": ({"preset": "reference"}, 280),
    "merged": ({"pooling": "merged"}, 165),
    "unpool": ({"pooling": "unpool"}, 320),
    "last": ({"stages": "last"}, 125),
    "named": ({"stages": ("features.8", "features.29")}, 100),
    "times the input": ({"multiply_input": True}, 175),
    "smooth": ({"smooth": 3}, 640),
    "smooth, predicted": ({"smooth": 2, "target": "predicted"}, 560),
    "predicted": ({"target": "predicted"}, 195),
    "features": ({"classify": False}, 155),
    "float32": ({"precision": "float32"}, 165),
    "maps": ({"keep_maps": True}, 165),
}
FAMILIES = {  # the most kernels a batch
    "resnet50": 270,
    "densenet121": 580,
    "mobilenet_v3_large": 480,
    "efficientnet_b0": 600,
    "shufflenet_v2_x1_0": 330,
    "convnext_tiny": 480,
    "googlenet": 280,
    "inception_v3": 400,
}
OTHER_FORMATS = {"shufflenet_v2_x1_0": 18}
"""Convolutions whose map is not channels_last: torchvision shuffles channels by a copy that is contiguous."""


def check(watch, most, other_formats=0):
    assert watch.waits == []
    assert watch.mixed == []
    assert len(watch.other_formats) == other_formats, watch.other_formats
    assert watch.kernels.total() <= most, watch.kernels.most_common()


@pytest.mark.parametrize("name", VGG)
def test_vgg16_with_every_choice(name):
    settings, most = VGG[name]
    with fake_cuda():
        watch = watched(fake_explainer("vgg16", **{"precision": "bfloat16", "batch_size": 128, **settings}))
    check(watch, most)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(name):
    with fake_cuda():
        watch = watched(fake_explainer(name, precision="bfloat16", batch_size=128))
    check(watch, FAMILIES[name], OTHER_FORMATS.get(name, 0))


@pytest.mark.parametrize("name", ["resnet50", "inception_v3"])
def test_predicted_classes_of_other_families(name):
    with fake_cuda():
        watch = watched(fake_explainer(name, precision="bfloat16", target="predicted"))
    check(watch, 1.2 * FAMILIES[name])


@pytest.mark.parametrize("mask_format", ["png8", "png16", "npy"])
@pytest.mark.parametrize("overlay_style", [None, "heat", "red", "reference"])
def test_what_a_run_stores_is_computed_there_too(mask_format, overlay_style):
    finish = Finishing(mask_format=mask_format, overlay_style=overlay_style)
    with fake_cuda():
        plain = watched(fake_explainer("alexnet", precision="bfloat16"), 4, 64)
        finished = watched(fake_explainer("alexnet", precision="bfloat16", finish=finish), 4, 64)
    check(finished, plain.kernels.total() + 40)


def test_the_network_is_on_the_device_in_its_precision():
    with fake_cuda():
        fake = fake_explainer("alexnet", precision="bfloat16")
        kinds = {(each.device.type, each.dtype) for each in fake._vbp.model.parameters()}
        results = fake._compute(torch.empty(2, 64, 64, 3, dtype=torch.uint8, device="cuda"))
    assert kinds == {("cuda", torch.bfloat16)}
    assert {each.device.type for each in results} == {"cuda"}
    assert results[0].shape == (2, 64, 64)


def test_the_table_shows_every_optimisation(capsys):
    main(["alexnet", "--batch-size", "4", "--size", "64"])
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert head == ["network", "optimised", "kernels a batch", "GB a batch"]
    assert [row[1] for row in rows] == ["none", "fused", "pools", "means", "descent", "all"]
    kernels = {row[1]: int(row[2]) for row in rows}
    assert kernels["all"] < kernels["fused"] < kernels["none"]
    assert kernels["descent"] < kernels["none"]


def test_without_optimisations_nothing_is_replaced():
    with fake_cuda():
        watch = watched(fake_explainer("alexnet", switches=OFF, precision="bfloat16"), 4, 64)
    assert "cudnn_convolution_relu" not in watch.kernels
    assert watch.kernels["max_pool2d_with_indices"] == 3
    assert watch.kernels["convolution"] == watch.kernels["bias"] == 5


@pytest.mark.parametrize(("switches", "kind"), [(None, Captured), (OFF, MethodType)])
def test_the_work_of_a_batch_becomes_a_graph(switches, kind):
    with fake_cuda(), mock.patch.object(explainer, "Staged") as staged, mock.patch.object(explainer, "Cuda"):
        fake_explainer("alexnet", switches=switches)
    ((function, _), _) = staged.call_args
    assert type(function) is kind


def test_a_backward_pass_does_not_wait():
    """On a CPU without data: autograd cannot start on a CUDA device without a driver."""
    network = torchvision.models.resnet18(weights=None).eval().requires_grad_(False)
    vbp = VisualBackProp(network, smooth=1)
    with FakeTensorMode(allow_non_fake_inputs=True), Watch("cpu") as watch:
        vbp.explain(torch.empty(2, 3, 64, 64), target="predicted")
    assert watch.waits == []
    assert any("backward" in name for name in watch.kernels)
