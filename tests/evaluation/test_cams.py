import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.evaluation.kinds import CLASSES, KINDS, images
from vbp.evaluation.cams import eigen_cam, grad_cam, hires_cam, layer_cam, refine_cam
from vbp.evaluation.subject import Batch, Subject
from vbp.saliency.method import Method

pytest.importorskip("pytorch_grad_cam")


def batch(classes=(0, 3, 4), **size):
    images_BCHW, pixels_BHWC = images(len(classes), **size)
    return Batch(images_BCHW, pixels_BHWC, torch.tensor(classes))


def subject(network):
    return Subject(network, Method(), 500)


def whole_sized():
    """A network whose maps have the image's size, so that nothing has to be enlarged."""
    torch.manual_seed(2)
    features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 1), nn.ReLU())
    return features, nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)).eval()


def stretched(values_BHW):
    least, most = (edge(values_BHW, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    return (values_BHW - least) / (most - least)


def test_grad_cam_of_a_linear_head_is_cam():
    features, network = whole_sized()
    given = batch()
    with torch.no_grad():
        network[3].weight[:, 0].abs_()  # so that no map is all negative
        maps_BCHW = features(given.images_BCHW)
        cam_BHW = torch.einsum("bchw,bc->bhw", maps_BCHW, network[3].weight[given.classes]).relu().numpy()
    assert cam_BHW.max((1, 2)).min() > 0
    np.testing.assert_allclose(grad_cam(subject(network))(given), stretched(cam_BHW), atol=2e-6)


def test_eigen_cam_is_the_first_principal_component_with_a_positive_peak():
    features, network = whole_sized()
    given = batch()
    with torch.no_grad():
        maps_BPC = features(given.images_BCHW).flatten(2).mT.double().numpy()
    wanted = []
    for map_PC in maps_BPC:
        centred_PC = map_PC - map_PC.mean(0)
        _, vectors = np.linalg.eigh(centred_PC.T @ centred_PC)
        component_P = centred_PC @ vectors[:, -1]
        wanted.append((component_P * np.sign(component_P[abs(component_P).argmax()])).clip(0).reshape(32, 40))
    found = eigen_cam(subject(network))(given)
    np.testing.assert_allclose(found, stretched(np.stack(wanted)), atol=1e-5)


@pytest.mark.parametrize("kind", ["vgg", "residual", "gated", "bounded", "channels-last"])
def test_the_layer_is_the_last_stages_map(kind):
    """Of a head that averages over pixels, Grad-CAM is the classifier's weights times that map."""
    network = KINDS[kind]()
    if kind == "vgg":
        network[-3], network[-1] = nn.AdaptiveAvgPool2d(1), nn.Linear(12, CLASSES)
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        linear.weight.abs_()
    given, maps = batch(), []
    if kind == "vgg":
        network[-5].register_forward_hook(lambda module, args, map_BCHW: maps.append(map_BCHW))
    elif kind == "channels-last":
        network.last.register_forward_hook(lambda *call: maps.append(F.gelu(call[2]).permute(0, 3, 1, 2)))
    else:
        pool = next(module for module in network.modules() if isinstance(module, nn.AdaptiveAvgPool2d))
        pool.register_forward_pre_hook(lambda module, args: maps.append(args[0]))
    network(given.images_BCHW.clone())
    cam_Bhw = torch.einsum("bchw,bc->bhw", maps[0], linear.weight[given.classes]).relu().detach().numpy()
    assert cam_Bhw.max((1, 2)).min() > 0
    enlarged = F.interpolate(torch.from_numpy(stretched(cam_Bhw))[:, None], (32, 40), mode="bilinear")[:, 0].numpy()
    for hook in ("_forward_hooks", "_forward_pre_hooks"):
        for module in network.modules():
            getattr(module, hook).clear()
    np.testing.assert_allclose(grad_cam(subject(network))(given), stretched(enlarged), atol=1e-5)


@pytest.mark.parametrize(("method", "clamped"), [(hires_cam, False), (layer_cam, True)])
def test_values_are_weighted_by_their_own_gradients(method, clamped):
    features, _ = whole_sized()
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 32 * 40, CLASSES))
    network, given = nn.Sequential(features, head).eval(), batch()
    maps_BCHW = features(given.images_BCHW).detach().requires_grad_()
    score = head(maps_BCHW).gather(1, given.classes[:, None]).sum()
    (gradient_BCHW,) = torch.autograd.grad(score, maps_BCHW)
    weight_BCHW = gradient_BCHW.clamp(min=0) if clamped else gradient_BCHW
    wanted_BHW = (weight_BCHW * maps_BCHW).sum(1).relu().detach().numpy()
    assert wanted_BHW.max((1, 2)).min() > 0
    np.testing.assert_allclose(method(subject(network))(given), stretched(wanted_BHW), atol=1e-5)


def test_refine_cam_is_the_product_over_resolutions():
    """For a head that averages, and one weight of one channel, Grad-CAM++ is the map itself."""
    torch.manual_seed(0)
    lower, upper = (nn.Sequential(nn.Conv2d(inputs, 1, 3, 1, 1), nn.ReLU()) for inputs in (3, 1))
    upper[0].weight.data.abs_()
    network = nn.Sequential(lower, nn.AvgPool2d(2), upper, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 5))
    network[-1].weight.data.abs_()
    given = batch()
    with torch.no_grad():
        low_B1HW = lower(given.images_BCHW)
        high_B1hw = upper(network[1](low_B1HW))
    enlarged_B1HW = F.interpolate(
        torch.from_numpy(stretched(high_B1hw.numpy()[:, 0]))[:, None], (32, 40), mode="bilinear"
    )
    wanted_BHW = stretched(low_B1HW[:, 0].numpy()) * stretched(enlarged_B1HW[:, 0].numpy())
    np.testing.assert_allclose(refine_cam(subject(network.eval()))(given), stretched(wanted_BHW), atol=1e-5)
