"""What holds for every method on every kind of network; what a method computes is in the tests of its own module."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from tests.evaluation.kinds import KINDS, every_kind, images, state
from vbp.choices import METHOD_NAMES
from vbp.errors import UsageError
from vbp.evaluation import saliencies as module
from vbp.evaluation.saliencies import Saliencies
from vbp.saliency.method import Method
from vbp.saliency.visualbackprop import VisualBackProp

REFUSED = {
    ("vbp-reference", "residual"),
    ("vbp-reference", "gated"),
    ("vbp-reference", "bounded"),
    ("vbp-reference", "channels-last"),
    ("guided-backprop", "gated"),
    ("guided-backprop", "channels-last"),
}
"""The preset `reference` needs a first map of the input's size, and guided backpropagation a ReLU."""
CLASSES = [4, 0, 2]

needs_libraries = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("captum", "pytorch_grad_cam", "zennit")), reason="no libraries"
)


@pytest.mark.parametrize("name", METHOD_NAMES)
@every_kind
@needs_libraries
def test_every_method_on_every_kind(kind, name):
    network = KINDS[kind]()
    saliencies = Saliencies(network, Method())
    images_BCHW, pixels_BHWC = images()
    refusal = saliencies.refusal(name, (2, 3, 32, 40))
    assert (refusal is not None) is ((name, kind) in REFUSED), refusal
    if refusal:
        assert refusal.startswith(f"method {name!r} cannot be applied to {type(network).__name__}: ")
        return
    found_BHW = saliencies(name, images_BCHW, pixels_BHWC, CLASSES)
    assert found_BHW.shape == (3, 32, 40)
    assert found_BHW.dtype == np.float32
    assert np.isfinite(found_BHW).all()
    assert found_BHW.min() >= 0
    assert found_BHW.max((1, 2))[:2].min() > 0  # of the third image nothing may speak for class 2
    # an image's saliency depends on that image alone, and is the same again, in another object too
    alone_BHW = Saliencies(network, Method())(name, images_BCHW[1:2], pixels_BHWC[1:2], CLASSES[1:2])
    np.testing.assert_allclose(alone_BHW[0], found_BHW[1], atol=2e-5 * found_BHW.max())
    assert np.array_equal(saliencies(name, images_BCHW, pixels_BHWC, CLASSES), found_BHW)


@every_kind
@needs_libraries
def test_no_method_leaves_a_trace(kind):
    network = KINDS[kind]().train()
    for parameter in list(network.parameters())[::2]:
        parameter.requires_grad_(False)
    first = next(network.parameters())
    first.grad = torch.ones_like(first)
    images_BCHW, pixels_BHWC = images()
    vbp = VisualBackProp(network)
    masks, output = vbp(images_BCHW.clone()), vbp.explain(images_BCHW.clone()).output
    before = state(network)
    gradients = {name: (one.requires_grad, one.grad) for name, one in network.named_parameters()}
    kept_BCHW = images_BCHW.clone()
    torch.manual_seed(8)
    saliencies = Saliencies(network, Method())
    for name in METHOD_NAMES:
        if (name, kind) not in REFUSED:
            saliencies(name, images_BCHW, pixels_BHWC, CLASSES)
    drawn = torch.rand(1)
    torch.manual_seed(8)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(images_BCHW, kept_BCHW)
    assert torch.equal(vbp(images_BCHW.clone()), masks)
    assert torch.equal(vbp.explain(images_BCHW.clone()).output, output)
    assert state(network) == before
    assert {name: (one.requires_grad, one.grad) for name, one in network.named_parameters()} == gradients


def test_a_method_that_does_not_exist_is_named():
    saliencies = Saliencies(KINDS["vgg"](), Method())
    for ask in (saliencies.refusal, lambda name: saliencies(name, *images())):
        with pytest.raises(UsageError, match=r"method 'grad-cam' is none of vbp, .*gradcam"):
            ask("grad-cam")


@needs_libraries
def test_without_a_classifier_methods_for_classes_are_refused():
    features = nn.Sequential(*list(KINDS["vgg"]())[:-3])
    saliencies = Saliencies(features, Method(), has_classifier=False)
    images_BCHW, pixels_BHWC = images()
    assert saliencies.refusal("gradcam") == (
        "method 'gradcam' explains a class, and this network has no classifier: leave it out, or give a checkpoint "
        "with one."
    )
    for name in ("vbp", "random-twin", "eigencam", "edge"):
        assert saliencies.refusal(name, (2, 3, 32, 40)) is None
        assert saliencies(name, images_BCHW, pixels_BHWC, None).shape == (3, 32, 40)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    saliencies = Saliencies(KINDS["vgg"](), Method())
    assert saliencies.refusal("gradcam") == (
        "method 'gradcam' needs the package grad-cam: pip install 'visualbackprop[eval]'."
    )
    assert saliencies.refusal("edge") is None


def test_a_method_that_gives_no_numbers_is_refused(monkeypatch):
    broken = {**module.MAKERS, "edge": lambda subject: lambda batch: torch.full((2, 32, 32), torch.nan)}
    monkeypatch.setattr(module, "MAKERS", broken)
    refusal = Saliencies(KINDS["vgg"](), Method()).refusal("edge", (2, 3, 32, 32))
    assert refusal == (
        "method 'edge' cannot be applied to Sequential: its values are not finite. Leave this method out."
    )


@needs_libraries
def test_it_works_in_inference_mode():
    network = KINDS["residual"]()
    images_BCHW, pixels_BHWC = images()
    wanted = Saliencies(network, Method())("gradcam", images_BCHW, pixels_BHWC, CLASSES)
    with torch.inference_mode():
        found = Saliencies(network, Method())("gradcam", images_BCHW.clone(), pixels_BHWC, CLASSES)
    assert np.array_equal(found, wanted)
