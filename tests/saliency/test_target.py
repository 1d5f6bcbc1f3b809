"""Class weighting against Grad-CAM written out with autograd, and against pytorch-grad-cam."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vbp.errors import UsageError
from vbp.networks.models import load_model
from vbp.saliency import VisualBackProp

from .conftest import randomise, small_vgg


def gap_network():
    """Global average pooling and one linear layer behind the last map, as in residual networks."""
    return randomise(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 7, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 5),
        ),
        seed=4,
    )  # fmt: skip


def grad_cam(features, head, images, classes):
    """Grad-CAM before its normalisation, image by image."""
    cams = []
    for image, number in zip(images, classes, strict=True):
        kept = features(image[None]).detach().requires_grad_()
        head(kept.clone())[0, number].backward()
        weight = kept.grad[0].mean((1, 2))
        cams.append((weight[:, None, None] * kept[0].detach()).sum(0).clamp(min=0))
    return torch.stack(cams)[:, None]


def led_down(model, deepest, images):
    """The paper's chain of `gap_network` below its deepest map."""
    stem = model[1](model[0](images)).detach().mean(1, keepdim=True)
    ones = torch.ones(1, 1, 3, 3)
    up = F.conv_transpose2d(deepest, ones, padding=1)
    mask = up.repeat_interleave(2, 2).repeat_interleave(2, 3) * stem
    mask = F.conv_transpose2d(mask, ones, padding=1)
    least, largest = mask.amin((1, 2, 3), True), mask.amax((1, 2, 3), True)
    return (mask - least) / (largest - least)


@pytest.mark.parametrize("classes", [3, [3, 0, 2]])
def test_deepest_map_is_grad_cams(classes, images_BCHW):
    model = gap_network()
    cam = grad_cam(model[:5], model[5:], images_BCHW, classes if isinstance(classes, list) else [classes] * 3)
    assert cam.amax((1, 2, 3)).min() > 0
    result = VisualBackProp(model).explain(images_BCHW, target=classes)
    torch.testing.assert_close(result.maps[-1] * 7, cam, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(result.mask, led_down(model, cam, images_BCHW), atol=1e-5, rtol=0)
    assert torch.equal(result.output, model(images_BCHW))
    assert not result.output.requires_grad
    assert not result.mask.requires_grad
    assert (result.mask - VisualBackProp(model)(images_BCHW)).abs().max() > 0.05


def test_behind_average_pooling_the_weights_are_the_linear_layers(images_BCHW):
    """Class activation mapping: no gradient is needed to say what they are."""
    model = gap_network()
    kept = model[:5](images_BCHW).detach()
    cam = torch.einsum("c,bchw->bhw", model[7].weight[2].detach(), kept)[:, None].clamp(min=0)
    result = VisualBackProp(model).explain(images_BCHW, target=2)
    torch.testing.assert_close(result.mask, led_down(model, cam, images_BCHW), atol=1e-5, rtol=0)


def test_a_classifier_of_several_layers_and_a_pool(vgg, images_BCHW):
    vgg = nn.Sequential(*vgg[:-1], nn.Linear(48, 9), nn.ReLU(inplace=True), randomise(nn.Linear(9, 5)))
    cam = grad_cam(vgg[:10], vgg[10:], images_BCHW, [1, 1, 1])
    result = VisualBackProp(vgg).explain(images_BCHW, target=1)
    torch.testing.assert_close(result.maps[-1] * 12, cam, atol=1e-6, rtol=1e-5)


def test_predicted_class_and_functions_of_the_output(vgg, images_BCHW):
    vbp = VisualBackProp(vgg)
    predicted = vgg(images_BCHW).argmax(1)
    expected = vbp(images_BCHW, target=predicted)
    assert torch.equal(vbp(images_BCHW, target="predicted"), expected)
    assert torch.equal(vbp(images_BCHW, target=predicted.tolist()), expected)
    assert torch.equal(vbp(images_BCHW, target=lambda output: output.amax(1)), expected)
    difference = vbp(images_BCHW, target=lambda output: output[:, 0] - output[:, 1])
    assert not torch.equal(difference, vbp(images_BCHW, target=0))


class Steering(nn.Module):
    """A regression network that gives a dict, and whose deepest map is changed in place behind it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 1)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        x.mul_(2)
        return {"angle": self.head(x.mean((2, 3)))[:, 0], "features": x}


def test_regression_by_a_function_of_the_output(images_BCHW):
    model = randomise(Steering(), seed=5)
    result = VisualBackProp(model).explain(images_BCHW, target=lambda output: output["angle"])
    kept = model.b(model.a(images_BCHW).relu()).relu().detach()
    cam = torch.einsum("c,bchw->bhw", model.head.weight[0].detach(), kept).clamp(min=0)[:, None]
    size = kept.shape[2] * kept.shape[3]
    torch.testing.assert_close(result.maps[-1], cam * 2 / 6 / size, atol=1e-7, rtol=1e-4)
    assert not result.output["features"].requires_grad


def test_class_that_nothing_speaks_for_gives_a_flat_mask(images_BCHW):
    model = gap_network()
    model[7].weight.data[2] = -1
    result = VisualBackProp(model).explain(images_BCHW, target=2)
    assert result.flat.all()
    assert result.mask.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours_never_change_a_bit(dtype, images_BCHW):
    vbp = VisualBackProp(small_vgg().to(dtype), multiply_input=True)
    images = images_BCHW.to(dtype)
    expected = vbp(images, target=[1, 2, 3])
    together = torch.cat([vbp(image[None], target=number) for number, image in enumerate(images, 1)])
    torch.testing.assert_close(expected, together, atol=1e-6 if dtype is torch.float32 else 0.05, rtol=0)
    images[0], images[2] = torch.nan, 1e30
    assert torch.equal(vbp(images, target=[4, 2, 0])[1], expected[1])


def test_works_where_gradients_are_off_and_with_frozen_weights(vgg, images_BCHW):
    expected = VisualBackProp(vgg)(images_BCHW, target=2)
    vgg.requires_grad_(False)
    with torch.inference_mode():
        fresh = images_BCHW + 0
        assert torch.equal(VisualBackProp(vgg)(fresh, target=2), expected)
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        assert torch.equal(VisualBackProp(vgg)(images_BCHW, target=2), expected)
        assert not torch.is_grad_enabled()
    vgg.requires_grad_(True)
    VisualBackProp(vgg)(images_BCHW, target=2)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in vgg.parameters())


def test_classifier_is_run_though_its_output_is_not_asked_for(vgg, images_BCHW):
    result = VisualBackProp(vgg).explain(images_BCHW, target=0, classify=False)
    assert result.output is None


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (5, "outside the network's classes 0 to 4"),
        ([0, -1, 2], "outside the network's classes"),
        ([0, 1], "one class, or one for each of 3 images, not torch.int64"),
        (torch.ones(3), "not torch.float32"),
        ("cat", "neither 'predicted' nor a class"),
        (lambda output: output, r"a tensor \(B,\)"),
        (lambda output: output.detach()[:, 0], "depends on the network's maps"),
        (lambda output: 1.0, "not float"),
    ],
)
def test_bad_targets_are_named(vgg, images_BCHW, target, reason):
    with pytest.raises(UsageError, match=reason):
        VisualBackProp(vgg)(images_BCHW, target=target)
    assert torch.is_grad_enabled()


def test_an_output_that_is_no_classifiers_needs_a_function(images_BCHW):
    with pytest.raises(UsageError, match=r"an output of shape \(B, K\), not .*dict"):
        VisualBackProp(randomise(Steering()))(images_BCHW, target=0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_deepest_map_equals_pytorch_grad_cams(name):
    grad_cam_package = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network = load_model(name, "random").network
    layer = {"resnet18": "layer4", "mobilenet_v3_small": "features"}[name]
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    first, second = network(images).argsort(1, descending=True)[:, :2].diagonal().tolist()
    kept = VisualBackProp(network).explain(images, target=[first, second]).maps[-1][:, 0]
    network.requires_grad_(True)
    with grad_cam_package.GradCAM(network, [network.get_submodule(layer)]) as cam:
        targets = [ClassifierOutputTarget(first), ClassifierOutputTarget(second)]
        cam(images, targets)
        (activations,), (gradients,) = (
            cam.activations_and_grads.activations,
            cam.activations_and_grads.gradients,
        )
        cams = cam.get_cam_image(images, None, targets, activations.numpy(), gradients.numpy(), False)
    assert cams.max() > 0
    np.testing.assert_allclose(kept * activations.shape[1], np.maximum(cams, 0), atol=1e-6 * cams.max(), rtol=1e-4)
