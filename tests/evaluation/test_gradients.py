import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.evaluation.kinds import KINDS, images
from vbp.errors import ModelError
from vbp.evaluation.gradients import NOISE, SAMPLES, guided_backprop, input_gradient, smooth_grad
from vbp.evaluation.subject import Batch, Subject
from vbp.saliency.method import Method
from vbp.saliency.smoothing import noisy_copies

pytest.importorskip("captum")

CLASSES = torch.tensor([4, 0])


def subject(network):
    return Subject(network, Method(), 500)


def batch():
    return Batch(*images(2, 16, 24), CLASSES)


def test_input_gradient_by_finite_differences():
    network = KINDS["gated"]().double()
    images_BCHW = batch().images_BCHW.double()
    found_BHW = input_gradient(subject(network))(Batch(images_BCHW, batch().pixels_BHWC, CLASSES))
    for row, column in ((0, 0), (7, 11), (15, 23)):
        slopes = []
        for colour in range(3):
            shift_BCHW = torch.zeros_like(images_BCHW)
            shift_BCHW[:, colour, row, column] = 1e-5
            with torch.no_grad():
                up, down = network(images_BCHW + shift_BCHW), network(images_BCHW - shift_BCHW)
            slopes.append(((up - down) / 2e-5)[[0, 1], CLASSES].abs())
        torch.testing.assert_close(found_BHW[:, row, column], torch.stack(slopes).amax(0), rtol=1e-5, atol=1e-9)


def test_smooth_grad_is_the_mean_gradient_of_noisy_copies():
    network, given = KINDS["residual"](), batch()
    total_BCHW = torch.zeros(())
    for copy_BCHW in noisy_copies(given.images_BCHW, SAMPLES, NOISE, 500):
        leaf_BCHW = copy_BCHW.requires_grad_()
        network(leaf_BCHW.clone()).gather(1, CLASSES[:, None]).sum().backward()
        total_BCHW = total_BCHW + leaf_BCHW.grad
    wanted_BHW = (total_BCHW / SAMPLES).abs().amax(1)
    torch.testing.assert_close(smooth_grad(subject(network))(given), wanted_BHW)


class Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, highest):
        result = value.clamp(0, highest)
        ctx.save_for_backward((value > 0) & (value < highest))
        return result

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(min=0) * ctx.saved_tensors[0], None


@pytest.mark.parametrize(("kind", "highest"), [("vgg", torch.inf), ("residual", torch.inf), ("bounded", 6)])
def test_guided_backprop_stops_negative_gradients_at_every_relu(kind, highest, monkeypatch):
    network, given = KINDS[kind](), batch()
    found_BHW = guided_backprop(subject(network))(given)
    assert not torch.allclose(found_BHW, input_gradient(subject(network))(given))
    for module in (nn.ReLU, nn.ReLU6):
        monkeypatch.setattr(module, "forward", lambda self, value: Guided.apply(value, highest))
    monkeypatch.setattr(F, "relu", lambda value, inplace=False: Guided.apply(value, highest))
    monkeypatch.setattr(torch.Tensor, "relu_", lambda value: Guided.apply(value, highest))
    leaf_BCHW = given.images_BCHW.clone().requires_grad_()
    network(leaf_BCHW.clone()).gather(1, CLASSES[:, None]).sum().backward()
    wanted_BHW = leaf_BCHW.grad.abs().amax(1)
    assert wanted_BHW.amax((1, 2)).min() > 0
    torch.testing.assert_close(found_BHW, wanted_BHW)


def test_hardtanh_from_0_is_a_relu_too():
    given = batch()
    bounded, hard = KINDS["bounded"](), KINDS["bounded"]()
    for place, module in enumerate(hard):
        if isinstance(module, nn.ReLU6):
            hard[place] = nn.Hardtanh(0, 6)
    wanted_BHW = guided_backprop(subject(bounded))(given)
    assert torch.equal(guided_backprop(subject(hard))(given), wanted_BHW)


def test_a_network_without_relu_has_no_guided_backpropagation():
    with pytest.raises(ModelError, match="no ReLU"):
        guided_backprop(subject(KINDS["gated"]()))(batch())
