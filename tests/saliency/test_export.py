"""Network and mask as one graph equal the eager ones, for any number of images."""

import io
import warnings

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet, ResNet
from torchvision.models.resnet import BasicBlock

from vbp.errors import ModelError, UsageError
from vbp.saliency import VisualBackProp
from vbp.saliency.export import Explained, export, export_onnx

from .conftest import randomise, small_vgg


def small_resnet():
    return randomise(ResNet(BasicBlock, [1, 1, 0, 0], num_classes=5))


def small_densenet():
    return randomise(DenseNet(4, (2, 2), 8, num_classes=5))


def batch(count, size=(40, 48)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(count))


def assert_equal(found, images, vbp):
    expected = vbp.explain(images)
    output, mask = (torch.as_tensor(value).detach() for value in found)
    torch.testing.assert_close(output, expected.output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mask, expected.mask, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def vgg_without_activity_on_black():
    """A network, its VisualBackProp and their graph; made once, since exporting takes seconds."""
    network = small_vgg()
    for module in network:
        if isinstance(module, nn.Conv2d):
            module.bias.data.fill_(-1e-3)
    network.train()
    vbp = VisualBackProp(network)
    return vbp, export(vbp, batch(1))


@pytest.mark.long
def test_graph_takes_any_number_of_images(vgg_without_activity_on_black):
    vbp, program = vgg_without_activity_on_black
    assert vbp.model.training
    for count in (1, 3):
        assert_equal(program.module()(batch(count)), batch(count), vbp)


@pytest.mark.long
def test_graph_is_stored_and_loaded(vgg_without_activity_on_black):
    vbp, program = vgg_without_activity_on_black
    stored = io.BytesIO()
    torch.export.save(program, stored)
    loaded = torch.export.load(io.BytesIO(stored.getvalue()))
    assert_equal(loaded.module()(batch(3)), batch(3), vbp)


@pytest.mark.long
def test_graph_can_be_compiled(vgg_without_activity_on_black):
    vbp, program = vgg_without_activity_on_black
    compiled = torch.compile(program.module(), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_equal(compiled(batch(2)), batch(2), vbp)


@pytest.mark.long
def test_a_flat_mask_stays_flat_in_the_graph(vgg_without_activity_on_black):
    _, program = vgg_without_activity_on_black
    _, mask = program.module()(torch.cat([batch(1), torch.zeros(1, 3, 40, 48)]))
    assert mask.amax((1, 2, 3)).tolist() == [1, 0]
    assert not mask.isnan().any()


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (small_vgg, {"pooling": "unpool", "multiply_input": True}),
        (small_resnet, {"pooling": "merged"}),
        (small_densenet, {}),
    ],
)
def test_families_and_choices_are_exported(make, settings):
    vbp = VisualBackProp(make(), **settings)
    assert_equal(export(vbp, batch(2)).module()(batch(3)), batch(3), vbp)


@pytest.mark.long
def test_onnx_model_equals_eager(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    vbp = VisualBackProp(small_resnet())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        export_onnx(vbp, batch(2), tmp_path / "explained.onnx")
    session = runtime.InferenceSession(tmp_path / "explained.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        assert_equal(session.run(["output", "mask"], {"images": batch(count).numpy()}), batch(count), vbp)


def test_what_a_graph_cannot_hold_is_refused(vgg):
    with pytest.raises(UsageError, match=r"smoothing \(=2\) cannot be part of a graph"):
        Explained(VisualBackProp(vgg, smooth=2))
    with pytest.raises(ModelError, match="needs maps that halve|first map of input size"):
        export(VisualBackProp(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "reference"), batch(2))
