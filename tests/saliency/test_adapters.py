"""The calling conventions of other libraries, used by these libraries themselves."""

import numpy as np
import pytest
import torch
from torch import nn

from vbp.errors import UsageError
from vbp.saliency import VisualBackProp
from vbp.saliency.adapters import CaptumAttribution, GradCamStyle, explain_func


def test_captum_gets_the_mask_in_the_shape_of_the_inputs(vgg, images_BCHW):
    vbp = VisualBackProp(vgg)
    adapter = CaptumAttribution(vbp)
    found = adapter.attribute(images_BCHW)
    assert found.shape == images_BCHW.shape
    assert all(torch.equal(found[:, [channel]], vbp(images_BCHW)) for channel in range(3))
    (found,) = adapter.attribute((images_BCHW,), target=2)
    assert torch.equal(found[:, :1], vbp(images_BCHW, target=2))
    with pytest.raises(UsageError, match="one input, not 2"):
        adapter.attribute((images_BCHW, images_BCHW))


def test_captums_metrics_take_it(vgg, images_BCHW):
    metrics = pytest.importorskip("captum.metrics")
    adapter = CaptumAttribution(VisualBackProp(vgg))
    torch.manual_seed(0)
    found = metrics.sensitivity_max(adapter.attribute, images_BCHW, target=torch.tensor([0, 1, 2]), n_perturb_samples=2)
    assert found.shape == (3,)
    assert found.isfinite().all()
    assert (found > 0).all()

    def perturb(inputs):
        noise = torch.randn_like(inputs) * 0.01
        return noise, inputs - noise

    attributions = adapter.attribute(images_BCHW, target=1)
    found = metrics.infidelity(vgg, perturb, images_BCHW, attributions, target=1, n_perturb_samples=3)
    assert found.shape == (3,)
    assert found.isfinite().all()


def test_called_as_pytorch_grad_cam_is(vgg, images_BCHW):
    package = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.metrics.cam_mult_image import CamMultImageConfidenceChange
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    vbp = VisualBackProp(vgg)
    targets = [ClassifierOutputTarget(number) for number in (4, 0, 2)]
    masks = []
    for manager in (package.GradCAM(vgg, [vgg[9]]), GradCamStyle(vbp)):
        with manager as cam:
            masks.append(cam(input_tensor=images_BCHW, targets=targets))
            outputs = cam.outputs
        assert masks[-1].shape == (3, 32, 40)
        assert masks[-1].dtype == np.float32
        assert torch.equal(outputs, vgg(images_BCHW))
    np.testing.assert_array_equal(masks[1], vbp(images_BCHW, target=[4, 0, 2])[:, 0])
    changes = CamMultImageConfidenceChange()(images_BCHW, masks[1][:, None], targets, vgg)
    assert np.isfinite(changes).all()
    picture = np.full((32, 40, 3), 0.5, np.float32)
    assert show_cam_on_image(picture, masks[1][0], use_rgb=True).shape == (32, 40, 3)


def test_without_targets_the_mask_knows_no_class(vgg, images_BCHW):
    vbp = VisualBackProp(vgg)
    cam = GradCamStyle(vbp)
    np.testing.assert_array_equal(cam(images_BCHW), vbp(images_BCHW)[:, 0])
    with pytest.raises(UsageError, match="2 targets for 3 images"):
        cam(images_BCHW, [len, len])
    with pytest.raises(ValueError, match="goes its way"), cam:
        raise ValueError("goes its way")


def test_called_as_quantus_does(vgg, images_BCHW):
    """Arrays in, arrays out, and the network in whatever state a metric has put it."""
    inputs, targets = images_BCHW.numpy(), np.array([3, 0, 1])
    vbp = VisualBackProp(vgg)
    plain = explain_func(vgg, inputs, targets, device="cpu")
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(plain, vbp(images_BCHW))
    weighted = explain_func(model=vgg, inputs=inputs, targets=targets, class_weighted=True)
    np.testing.assert_array_equal(weighted, vbp(images_BCHW, target=[3, 0, 1]))
    last = explain_func(vgg, inputs, targets, stages="last")
    np.testing.assert_array_equal(last, VisualBackProp(vgg, stages="last")(images_BCHW))
    nn.init.zeros_(vgg[0].weight)
    assert not np.array_equal(explain_func(vgg, inputs, targets), plain)


def test_quantus_itself_takes_it(vgg, images_BCHW):
    quantus = pytest.importorskip("quantus")
    metric = quantus.Sparseness(disable_warnings=True, display_progressbar=False)
    inputs, targets = images_BCHW.numpy(), np.array([3, 0, 1])
    scores = metric(
        model=vgg, x_batch=inputs, y_batch=targets, a_batch=None, device="cpu",
        explain_func=explain_func, explain_func_kwargs={"class_weighted": True},
    )  # fmt: skip
    assert len(scores) == 3
    assert np.isfinite(scores).all()


def test_captums_noise_tunnel_takes_it(vgg, images_BCHW):
    attr = pytest.importorskip("captum.attr")
    vbp = VisualBackProp(vgg)
    tunnel = attr.NoiseTunnel(CaptumAttribution(vbp))
    torch.manual_seed(0)
    found = tunnel.attribute(images_BCHW, nt_samples=2, stdevs=0.0, target=1)
    torch.testing.assert_close(found[:, :1], vbp(images_BCHW, target=1), atol=1e-6, rtol=0)
    found = tunnel.attribute(images_BCHW, nt_samples=2, stdevs=0.5)
    assert not torch.equal(found[:, :1], vbp(images_BCHW))


@pytest.mark.parametrize("further", [{"baselines": 0}, {"n_steps": 5}, {"additional_forward_args": (1,)}])
def test_what_captums_other_methods_take_is_refused_by_name(vgg, images_BCHW, further):
    (name,) = further
    adapter = CaptumAttribution(VisualBackProp(vgg))
    with pytest.raises(UsageError, match=f"no use for {name}"):
        adapter.attribute(images_BCHW, target=1, **further)
    assert torch.equal(adapter.attribute(images_BCHW, **{name: None}), adapter.attribute(images_BCHW))


def test_smoothing_of_pytorch_grad_cam(vgg, images_BCHW):
    package = pytest.importorskip("pytorch_grad_cam")

    class Ours(package.EigenCAM):
        """Masks under pytorch-grad-cam's own smoothing."""

        def forward(self, input_tensor, targets, eigen_smooth=False):
            return VisualBackProp(vgg)(input_tensor)[:, 0].numpy()

    cam = GradCamStyle(VisualBackProp(vgg))
    expected = Ours(vgg, [vgg[9]])(images_BCHW, None, aug_smooth=True)
    found = cam(images_BCHW, aug_smooth=True)
    assert (found.shape, found.dtype) == ((3, 32, 40), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.array_equal(found, cam(images_BCHW))
    with pytest.raises(UsageError, match="eigen_smooth"):
        cam(images_BCHW, eigen_smooth=True)


def test_targets_need_an_output_with_a_row_an_image(vgg, images_BCHW):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = vgg

        def forward(self, x):
            x = self.layers(x)
            return x, x

    with pytest.raises(UsageError, match="one row an image, not tuple"):
        GradCamStyle(VisualBackProp(Twice()))(images_BCHW[:2], [len, len])
